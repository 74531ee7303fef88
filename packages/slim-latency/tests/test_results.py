"""From lines to tables: known samples give known medians, and trouble is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slim_latency import agent
from slim_latency.importing import import_results
from slim_latency.results import read_results, table_of
from slim_latency.table import TableError

KEYS = ("Conv.nchwc f32[1,16,8,8] f32[32,16,1,1] -> f32[1,32,8,8]", "Gemm f32[1,32] -> f32[1,10]")


def header(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "header", "schema": agent.SCHEMA, "manifest": "m", "settings": dict(agent.SETTINGS, threads=2),
        "device": {"cpu": "none"}, "runtime": {"name": "onnxruntime", "version": "1"}, "layout_block": 16,
        "profiler_overhead_us": 1.5, **changes,
    }  # fmt: skip


def sample(number: int, ms: float, micros: tuple[float, float] = (10.0, 5.0), **changes: Any) -> dict[str, Any]:
    return {
        "kind": "sample", "model": "net", "round": number, "ms": ms, "profiled_ms": ms + 1,
        "kernels": [[key, value] for key, value in zip(KEYS, micros, strict=True)], "nodes": ["a", "b"], "at": 0.0,
        **changes,
    }  # fmt: skip


def test_medians_and_quartiles_over_rounds_and_places() -> None:
    rows = [
        header(),
        *(sample(number, ms, (10.0 + number, 5.0)) for number, ms in enumerate((3.0, 1.0, 2.0, 5.0, 4.0))),
    ]
    twice = [{**row, "model": "other"} for row in rows[1:]]
    table = table_of("d", [*rows, *twice], {"net": 777})
    assert table.networks["net"].median_ms == 3.0
    assert (table.networks["net"].q1_ms, table.networks["net"].q3_ms) == (2.0, 4.0)
    assert table.networks["net"].macs == 777
    assert table.networks["other"].macs == 32 * 64 * 16 + 32 * 10
    assert table.networks["net"].kernels == KEYS
    row = table.kernels[KEYS[0]]
    assert (row.count, row.median_us, row.q1_us, row.q3_us) == (10, 12.0, 11.0, 13.0)
    assert table.header["precision"] == "fp32"
    assert table.header["settings"]["threads"] == 2
    assert table.header["protocol"]["rounds"] == 7


def test_a_steady_device_is_not_warned_of() -> None:
    rows = [header(), *(sample(number, 2.0 + 0.001 * (number % 2)) for number in range(8))]
    assert table_of("d", rows).header["notes"] == []


def test_a_clock_that_is_throttled_is_flagged() -> None:
    rows = [header(), *(sample(number, 2.0 * (1.0 + 0.05 * number), mhz=2000 - 100 * number) for number in range(8))]
    table = table_of("d", rows)
    assert any("slower during the run" in note for note in table.header["notes"])
    assert any("the clock moved between 1300 and 2000 MHz" in note for note in table.header["notes"])
    assert table.noise is not None
    assert table.noise > 0.05
    assert any("noise floor" in note for note in table.header["notes"])


def test_other_kernels_in_another_round_are_no_measurement() -> None:
    other = sample(1, 2.0)
    other["kernels"] = other["kernels"][:1]
    with pytest.raises(TableError, match="ran other kernels in round 1"):
        table_of("d", [header(), sample(0, 2.0), other])


def test_independent_kernels_may_run_in_another_order_in_another_round() -> None:
    turned = sample(1, 2.0)
    turned["kernels"] = turned["kernels"][::-1]
    expected = table_of("d", [header(), sample(0, 2.0), sample(1, 2.0)])
    assert table_of("d", [header(), sample(0, 2.0), turned]) == expected


@pytest.mark.parametrize(
    "changes", [{"model": []}, {"ms": None}, {"kernels": [["k"]]}, {"kernels": 3}, {"at": "now"}, {"ms": "fast"}]
)
def test_lines_that_no_agent_writes_are_one_clear_error(changes: dict[str, Any]) -> None:
    with pytest.raises(TableError, match="that the agent does not write"):
        table_of("d", [header(), {**sample(0, 2.0), **changes}])


def test_nothing_measured_yet() -> None:
    with pytest.raises(TableError, match="no finished samples"):
        table_of("d", [header()])


class TestImport:
    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        log = agent.Log(str(tmp_path / "results.jsonl"))
        log.append(header())
        for number in range(4):
            log.append(sample(number, 2.0))
        log.close()
        return tmp_path / "results.jsonl"

    def test_lines_become_a_fitted_table(self, results: Path) -> None:
        table = import_results(results, "d", note="by hand")
        assert table.networks["net"].median_ms == 2.0
        assert table.model is not None
        assert table.header["notes"][0] == "by hand"

    def test_a_line_without_its_end_is_left_out(self, results: Path) -> None:
        results.write_bytes(results.read_bytes()[:-30])
        assert import_results(results, "d").networks["net"].rounds == 3

    def test_results_of_another_bundle(self, results: Path) -> None:
        (results.parent / "manifest.json").write_text('{"hash": "other", "models": []}')
        with pytest.raises(TableError, match="belong to another bundle"):
            import_results(results.parent, "d")

    @pytest.mark.parametrize("text", ["", "{}\n", "nonsense\n", '{"kind":"header"}\n', "[" * 100_000 + "\n"])
    def test_what_are_no_results(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "results.jsonl").write_text(text)
        with pytest.raises(TableError):
            read_results(tmp_path / "results.jsonl")

    def test_results_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(TableError, match="run the agent first"):
            import_results(tmp_path, "d")
