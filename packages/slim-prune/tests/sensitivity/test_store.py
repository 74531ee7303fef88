"""Points on disk: torn and damaged lines, other identities, contradictions, other processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from slim_prune.errors import PlanError
from slim_prune.sensitivity.curves import Base, Point
from slim_prune.sensitivity.store import Store, clear

IDENTITY = {"model": "a" * 64, "data": "b" * 64, "metric": "top1"}
POINTS = [Point("one", 8, 0.1 + 0.2, 100), Point("two", 16, 1 / 3, 64, 0.01, "whole")]


def filled(folder: Path) -> Path:
    with Store(folder, IDENTITY) as store:
        store.add_base(Base(0.9, 100))
        store.add(POINTS)
    return folder / "points-1-of-1.jsonl"


def test_points_come_back_bit_for_bit(tmp_path: Path) -> None:
    filled(tmp_path)
    with Store(tmp_path, IDENTITY) as store:
        assert list(store.points.values()) == POINTS
        assert store.base == Base(0.9, 100)


def test_a_file_torn_at_any_byte_gives_the_points_before_and_goes_on(tmp_path: Path) -> None:
    path = filled(tmp_path)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with Store(tmp_path, IDENTITY) as store:
            assert set(store.points.values()) <= set(POINTS)
            assert len(store.points) == max(raw[:length].count(b"\n") - 2, 0)
            store.add(point for point in POINTS if (point.group, point.kept) not in store.points)
        with Store(tmp_path, IDENTITY) as store:
            assert set(store.points.values()) == set(POINTS)


def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"samples":64', b'"samples":65'))
    with pytest.raises(PlanError, match="checksum") as error:
        Store(tmp_path, IDENTITY)
    assert "line 4" in str(error.value)


@pytest.mark.parametrize(("key", "words"), [("model", "other weights"), ("data", "other data"), ("metric", "metric")])
def test_points_of_something_else_are_refused(tmp_path: Path, key: str, words: str) -> None:
    filled(tmp_path)
    with pytest.raises(PlanError, match=words):
        Store(tmp_path, {**IDENTITY, key: "other"})


def test_parts_are_read_together_and_must_agree(tmp_path: Path) -> None:
    for part, point in ((1, POINTS[0]), (2, POINTS[1])):
        with Store(tmp_path, IDENTITY, (part, 2)) as store:
            store.add([point])
    with Store(tmp_path, IDENTITY, (1, 2), worker=1) as store:
        assert set(store.points.values()) == set(POINTS)
    clash = Point("one", 8, 0.5, 100)
    other = tmp_path / "other"
    with Store(other, IDENTITY, (1, 3)) as store:
        store.add([clash])
    (other / "points-1-of-3.jsonl").rename(tmp_path / "points-1-of-3.jsonl")
    with pytest.raises(PlanError, match="'one' with 8 units kept has two values"):
        Store(tmp_path, IDENTITY, (1, 1))


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with Store(tmp_path, IDENTITY), pytest.raises(PlanError, match="another process"):
        Store(tmp_path, IDENTITY)
    Store(tmp_path, IDENTITY).close()


def test_the_whole_model_must_have_one_value(tmp_path: Path) -> None:
    filled(tmp_path)
    with Store(tmp_path, IDENTITY, (2, 2)) as store:
        store.add_base(Base(0.5, 100))
        with pytest.raises(PlanError, match=r"measured at 0\.\d and at 0\.\d"):
            store.reload()


def test_clearing_forgets(tmp_path: Path) -> None:
    filled(tmp_path)
    clear(tmp_path)
    with Store(tmp_path, IDENTITY) as store:
        assert store.points == {}


def test_what_another_process_is_writing_is_not_cleared(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with Store(tmp_path, IDENTITY, (1, 2)), pytest.raises(PlanError, match="another process is measuring"):
        clear(tmp_path)
    assert path.exists()
    clear(tmp_path)
    assert list(tmp_path.glob("points-*")) == []
