"""Device tables: exact round trips, every changed byte, merging and comparing."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from slim_core.errors import MeasureError
from slim_latency.predict import fit
from slim_latency.predict.estimate import Predictor
from slim_latency.table import (
    DeviceTable,
    KernelRow,
    TableError,
    diff_tables,
    merge_tables,
    precision_of,
    read_table,
    with_model,
    write_table,
)

Make = Callable[..., DeviceTable]
KEY = "Conv.nchwc f32[1,16,8,8] f32[32,16,1,1] -> f32[1,32,8,8]"


@pytest.fixture
def small(make_table: Make) -> DeviceTable:
    return make_table(6)


class TestFile:
    def test_it_comes_back_as_it_was(self, make_table: Make, tmp_path: Path) -> None:
        table = make_table(12)
        table = with_model(table, fit(table, folds=2, trees=False))
        path = write_table(table, tmp_path / "d.table.json")
        again = read_table(path)
        assert again == table
        assert again.to_text() == table.to_text()

    def test_the_order_of_rows_does_not_change_the_file(self, small: DeviceTable) -> None:
        turned = dataclasses.replace(
            small,
            kernels=dict(reversed(small.kernels.items())),
            networks=dict(reversed(small.networks.items())),
        )
        assert turned.to_text() == small.to_text()

    def test_every_changed_byte_is_refused(self, small: DeviceTable, tmp_path: Path) -> None:
        path = write_table(small, tmp_path / "d.table.json")
        data = path.read_bytes()
        draw = random.Random(0)
        for _ in range(150):
            position = draw.randrange(len(data))
            changed = bytearray(data)
            changed[position] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(TableError):
                read_table(path)

    @pytest.mark.parametrize("cut", [0, 1, 100, -1, -30])
    def test_a_cut_or_longer_file_is_refused(self, small: DeviceTable, tmp_path: Path, cut: int) -> None:
        path = write_table(small, tmp_path / "d.table.json")
        data = path.read_bytes()
        for text in (data[:cut], data + b" "):
            path.write_bytes(text)
            with pytest.raises(TableError):
                read_table(path)

    def test_a_number_that_was_changed_with_care_is_refused(self, small: DeviceTable, tmp_path: Path) -> None:
        key = next(iter(small.kernels))
        row = dataclasses.replace(small.kernels[key], median_us=1.0)
        other = dataclasses.replace(small, kernels={**small.kernels, key: row})
        text = other.to_text().replace(_digest(other), _digest(small))
        (tmp_path / "d.table.json").write_text(text)
        with pytest.raises(TableError, match="was changed after it was written") as caught:
            read_table(tmp_path / "d.table.json")
        assert caught.value.where == str(tmp_path / "d.table.json")

    def test_another_schema_says_what_to_do(self, small: DeviceTable, tmp_path: Path) -> None:
        (tmp_path / "d.table.json").write_text(small.to_text().replace('"schema_version":1', '"schema_version":9'))
        with pytest.raises(TableError, match="schema version 9") as caught:
            read_table(tmp_path / "d.table.json")
        assert "update slim-latency" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"format": "other"}', '{"format":"slim-latency-table","format":"x"}', "[" * 5000]
    )
    def test_what_is_no_table(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "d.table.json").write_text(text)
        with pytest.raises(TableError):
            read_table(tmp_path / "d.table.json")

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("header",), 5), (("header",), "abc"), (("header", "runtime"), 5), (("header", "settings"), []),
            (("header", "layout_block"), "x"), (("header", "profiler_overhead_us"), None), (("header", "notes"), 1),
            (("networks", 0, "noise"), "x"), (("networks", 0, "drift"), []), (("networks", 0, "name"), 5),
            (("networks", 0, "kernels"), ["a"]), (("networks", 0, "rounds"), 1e400), (("kernels", 0), [1]),
        ],
    )  # fmt: skip
    def test_values_of_another_kind_are_refused_whatever_the_hash_says(
        self, small: DeviceTable, tmp_path: Path, place: tuple[str | int, ...], value: object
    ) -> None:
        data = json.loads(small.to_text())
        inner = data
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        path = tmp_path / "d.table.json"
        path.write_text(json.dumps(data))
        with pytest.raises(TableError, match="not a device table"):
            read_table(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("families", 5), ("scale", {}), ("roofline", ["a"]), ("roofline", [float("inf")]), ("overhead_us", "q"),
         ("features", 3), ("families", {"Conv": {"line": [1.0], "low": [], "high": [], "trees": None}})],
    )  # fmt: skip
    def test_a_fitted_model_of_another_form_is_refused(self, small: DeviceTable, key: str, value: object) -> None:
        model = {**fit(small, folds=2, trees=False), key: value}
        with pytest.raises(MeasureError, match="fitted to this table"):
            Predictor.of(with_model(small, model))

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(TableError, match="cannot read the table"):
            read_table(tmp_path / "d.table.json")

    def test_writing_into_no_folder(self, small: DeviceTable, tmp_path: Path) -> None:
        with pytest.raises(TableError, match="there is no folder"):
            write_table(small, tmp_path / "no" / "d.table.json")

    def test_a_name_that_no_budget_could_say(self, small: DeviceTable) -> None:
        with pytest.raises(TableError, match="cannot name a device"):
            dataclasses.replace(small, name="My phone")

    def test_the_file_is_json_with_one_row_per_line(self, small: DeviceTable) -> None:
        text = small.to_text()
        data = json.loads(text)
        assert len(data["kernels"]) == len(small.kernels)
        assert sum(line.startswith('  ["') for line in text.splitlines()) == len(small.kernels)


class TestMerge:
    def test_common_kernels_are_averaged_by_their_counts(self, make_table: Make) -> None:
        first = _only(make_table(1), KernelRow(KEY, 1, 10.0, 9.0, 11.0))
        second = _only(make_table(1), KernelRow(KEY, 3, 20.0, 19.0, 23.0))
        assert merge_tables([first, second]).kernels[KEY] == KernelRow(KEY, 4, 17.5, 16.5, 20.0)

    def test_networks_of_both_are_there(self, make_table: Make) -> None:
        first, second = make_table(8), make_table(4, seed=5)
        renamed = dataclasses.replace(
            second,
            networks={f"x{n}": dataclasses.replace(row, name=f"x{n}") for n, row in second.networks.items()},
        )
        merged = merge_tables([first, renamed], "both")
        assert set(merged.networks) == {*first.networks, *renamed.networks}
        assert merged.name == "both"
        assert merged.model is None

    @pytest.mark.parametrize(
        ("part", "value"),
        [("layout_block", 8), ("precision", "int8"), ("runtime", {"name": "onnxruntime", "version": "2.0"}),
         ("settings", {"threads": 2, "level": "all"}), ("device", {"cpu": "other"})],
    )  # fmt: skip
    def test_figures_of_other_machines_and_settings_are_kept_apart(
        self, make_table: Make, part: str, value: object
    ) -> None:
        first = make_table(2)
        other = dataclasses.replace(first, header={**first.header, part: value})
        with pytest.raises(TableError, match="cannot be merged"):
            merge_tables([first, other])

    def test_two_networks_of_one_name(self, make_table: Make) -> None:
        with pytest.raises(TableError, match="network 'net-000' is another one"):
            merge_tables([make_table(2), make_table(2, seed=1)])


class TestDiff:
    def test_changed_missing_and_equal_kernels(self, make_table: Make) -> None:
        table = make_table(3)
        keys = list(table.kernels)
        slower = {key: _times(row, 2.0) for key, row in table.kernels.items()}
        del slower[keys[0]]
        slower[keys[1]] = table.kernels[keys[1]]
        found = diff_tables(table, dataclasses.replace(table, kernels=slower))
        assert found.same == 1
        assert {item.key for item in found.changes} == {keys[0], *keys[2:]}
        assert next(item for item in found.changes if item.key == keys[0]).after_us is None
        assert found.ratio == 2.0
        assert found.header == {}

    def test_overlapping_quartiles_are_no_change(self, make_table: Make) -> None:
        table = make_table(3)
        near = {key: _times(row, 1.03) for key, row in table.kernels.items()}
        assert diff_tables(table, dataclasses.replace(table, kernels=near)).changes == ()


def test_precision_is_that_of_what_multiplies() -> None:
    assert precision_of([KEY, "QuantizeLinear f32[1,2] -> u8[1,2]"]) == "fp32"
    assert precision_of(["QGemm.microsoft u8[1,2] -> u8[1,2]"]) == "int8"
    assert precision_of([KEY, "QGemm.microsoft u8[1,2] -> u8[1,2]"]) == "mixed"


def _times(row: KernelRow, factor: float) -> KernelRow:
    return KernelRow(row.key, row.count, row.median_us * factor, row.q1_us * factor, row.q3_us * factor)


def _only(table: DeviceTable, row: KernelRow) -> DeviceTable:
    return dataclasses.replace(table, kernels={row.key: row}, networks={})


def _digest(table: DeviceTable) -> str:
    return str(json.loads(table.to_text())["sha256"])
