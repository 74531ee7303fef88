"""The table of a measurement."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from slim_core.measure import Agreement, Measurement, Timing, this_device
from slim_core.measure.show import milliseconds, show


def timing(name: str, ratio: float, **changes: Any) -> Timing:
    fields: dict[str, Any] = {
        "median_ms": 4.0 * ratio, "q1_ms": 3.5 * ratio, "q3_ms": 4.75 * ratio, "min_ms": 3.0, "noise": 0.021,
        "drift": 0.0, "inner": 2, "warmup": 10, "info": {"runtime": "engine 1.2", "threads": 2}, "agreement": None,
        "samples_ms": (4.0 * ratio,),
    }  # fmt: skip
    return Timing(name=name, ratio=ratio, ratio_low=ratio * 0.9, ratio_high=ratio * 1.1, **{**fields, **changes})


def text(*timings: Timing, width: int = 100) -> str:
    measurement = Measurement(
        timings, replace(this_device(), cpu="Imaginary"), {}, {"rounds": 30}, 0.957, ("a note",), "2026-01-02T03:04:05"
    )
    stream = io.StringIO()
    Console(file=stream, width=width).print(show(measurement))
    return stream.getvalue()


def test_the_figures_against_the_first() -> None:
    shown = text(timing("before", 1.0), timing("after", 0.5))
    row = next(line for line in shown.splitlines() if "after" in line)
    assert row.split() == ["after", "2", "ms", "0.625", "ms", "2.1%", "2.00x", "1.82", "to", "2.22"]
    assert "96% interval" in shown
    assert "engine 1.2, 2 threads\nImaginary" in shown
    assert "30 interleaved rounds, 2026-01-02T03:04:05\nnote: a note" in shown


def test_runtimes_that_differ_have_a_column() -> None:
    shown = text(timing("a", 1.0), timing("b", 2.0, info={"runtime": "other 3", "threads": None}))
    row = next(line for line in shown.splitlines() if line.strip().startswith("b "))
    assert "other 3, default threads" in row


def test_agreement_is_told() -> None:
    shown = text(timing("a", 1.0, agreement=Agreement(0.001, 2.0, 61.5, None)))
    assert "a: max difference 0.001 of 2 (SQNR 61.5 dB)" in shown


def test_the_table_fits_eighty_columns() -> None:
    wide = timing("compressed.onnx", 0.123, noise=1.234, q1_ms=100.0, q3_ms=999.0)
    assert all(len(line) <= 80 for line in text(timing("original.onnx", 1.0), wide, width=200).splitlines()[:5])


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0123, "12.3 us"), (0.5, "0.5 ms"), (12.345, "12.3 ms"), (1234.5, "1.23 s")]
)
def test_milliseconds(value: float, shown: str) -> None:
    assert milliseconds(value) == shown
