"""The journal: whole lines survive, a torn one is dropped, and nothing foreign is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from slim_prune.errors import PlanError
from slim_prune.evolution.journal import NAME, Journal

IDENTITY = {"seed": 0, "budget": {"macs": 1.5}, "names": ["a", "b"]}


def filled(folder, results=3):
    with Journal(folder, IDENTITY) as journal:
        for number in range(results):
            journal.append("aging", number, {"counts": {"g": number}, "figures": {"top1": 0.5}})
    return folder / NAME


def test_what_was_written_is_known_to_the_next_run(tmp_path) -> None:
    filled(tmp_path)
    with Journal(tmp_path, IDENTITY) as journal:
        assert set(journal.known) == {("aging", 0), ("aging", 1), ("aging", 2)}
        assert journal.known["aging", 2]["counts"] == {"g": 2}


def test_a_line_that_was_torn_anywhere_is_dropped_and_written_anew(tmp_path) -> None:
    whole = filled(tmp_path).read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for cut in range(last, len(whole)):
        (tmp_path / NAME).write_bytes(whole[:cut])
        with Journal(tmp_path, IDENTITY) as journal:
            assert len(journal.known) == 2
            journal.append("aging", 2, {"counts": {"g": 2}, "figures": {"top1": 0.5}})
        assert (tmp_path / NAME).read_bytes() == whole


def test_a_torn_first_line_begins_again(tmp_path) -> None:
    whole = filled(tmp_path, 0).read_bytes()
    for cut in (0, 1, len(whole) - 1):
        (tmp_path / NAME).write_bytes(whole[:cut])
        with Journal(tmp_path, IDENTITY) as journal:
            assert journal.known == {}
        assert (tmp_path / NAME).read_bytes() == whole


def test_another_search_is_refused_and_told_what_differs(tmp_path) -> None:
    path = filled(tmp_path)
    before = path.read_bytes()
    with pytest.raises(PlanError, match="seed is 1, and there it is 0"):
        Journal(tmp_path, {**IDENTITY, "seed": 1})
    with pytest.raises(PlanError, match="1 more differ"):
        Journal(tmp_path, {**IDENTITY, "seed": 1, "more": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"null", b'{"by": "aging"}', b'{"by": "a", "trial": "x"}', b"\xff\xfe", b"[" * 100_000,
        b'{"by": "a", "trial": 1, "figures": {"top1": "0.5"}}', b'{"by": "a", "trial": 1, "figures": {"top1": NaN}}',
        b'{"by": "a", "trial": 1, "figures": [1]}', b'{"by": "a", "trial": 1, "counts": {"g": 1.5}}',
        b'{"by": "a", "trial": 1, "seconds": null}', b'{"by": "a", "trial": 1, "error": 5}',
    ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path, line) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(PlanError) as caught:
        Journal(tmp_path, IDENTITY)
    assert caught.value.where == f"{path}:3"


def test_a_file_of_another_kind_is_left_alone(tmp_path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"format": "other", "version": 1}) + "\n")
    with pytest.raises(PlanError, match="no journal that this version reads"):
        Journal(tmp_path, IDENTITY)


def test_two_processes_cannot_write_at_once_and_a_dead_one_does_not_lock(tmp_path) -> None:
    holder = "import sys, pathlib; from slim_prune.evolution.journal import Journal\n"
    holder += f"Journal(pathlib.Path(sys.argv[1]), {IDENTITY!r}); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PlanError, match="another process is searching"):
            Journal(tmp_path, IDENTITY)
    finally:
        other.kill()
        other.communicate()
    Journal(tmp_path, IDENTITY).close()


def test_a_closed_journal_gives_its_file_back(tmp_path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    filled(tmp_path)
    with pytest.raises(PlanError):
        Journal(tmp_path, {})
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_folder_nothing_is_kept() -> None:
    with Journal(None, IDENTITY) as journal:
        journal.append("aging", 0, {})
        assert journal.path is None
        assert journal.known == {}
