"""The grammar of budgets: every way of writing one, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_core.budget import Bound, parse_budget
from slim_core.errors import BudgetError

UNITS = {
    "k": 1e3, "M": 1e6, "G": 1e9, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2,
    "GiB": 1024.0**3, "us": 1e-3, "ms": 1.0, "s": 1e3,
}  # fmt: skip


def one(value: float | int | str) -> Bound:
    (bound,) = parse_budget({"macs": value})
    return bound


@pytest.mark.parametrize(
    ("value", "expected", "relative"),
    [
        (0.5, 0.5, True),
        (1, 1.0, True),
        (1.0, 1.0, True),
        ("0.5", 0.5, True),
        ("50%", 0.5, True),
        ("12.5 %", 0.125, True),
        ("100%", 1.0, True),
        (2, 2.0, False),
        (1_500_000, 1.5e6, False),
        ("1.2M", 1.2e6, False),
        ("400KB", 400e3, False),
        ("1MiB", 1048576.0, False),
        ("4.0ms", 4.0, False),
        ("250us", 0.25, False),
        ("1.5 s", 1500.0, False),
        ("0.5ms", 0.5, False),
        (".5", 0.5, True),
        ("1e6", 1e6, False),
        ("2.5e-1", 0.25, True),
    ],
)
def test_what_can_be_written(value: float | str, expected: float, relative: bool) -> None:
    bound = one(value)
    assert bound.value == pytest.approx(expected, rel=1e-12)
    assert bound.relative is relative


@given(st.floats(0.01, 1e6), st.sampled_from(sorted(UNITS)), st.booleans(), st.sampled_from(["", " "]))
def test_a_figure_with_a_unit_is_absolute_in_the_base_unit(number: float, unit: str, lower: bool, gap: str) -> None:
    bound = one(f"{number!r}{gap}{unit.lower() if lower else unit}")
    assert not bound.relative
    assert math.isclose(bound.value, number * UNITS[unit], rel_tol=1e-12)


@given(st.floats(1e-9, 1.0))
def test_a_number_up_to_one_is_a_share_however_it_is_written(share: float) -> None:
    for written in (share, repr(share)):
        assert one(written) == Bound("macs", share, relative=True)
    percent = one(f"{share * 100!r}%" if share < 0.999 else "99.9%")
    assert percent.relative


@given(st.floats(1.0, 1e12, exclude_min=True))
def test_a_number_above_one_is_absolute_however_it_is_written(number: float) -> None:
    for written in (number, repr(number)):
        assert one(written) == Bound("macs", number, relative=False)


@given(st.text(max_size=12) | st.floats() | st.integers() | st.none() | st.booleans() | st.lists(st.integers()))
def test_anything_else_is_a_budget_error(value: object) -> None:
    try:
        bound = one(value)  # type: ignore[arg-type]
    except BudgetError:
        return
    assert 0 < bound.value < math.inf
    assert not (bound.relative and bound.value > 1)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("fast", "cannot be read"),
        ("", "cannot be read"),
        ("-0.5", "cannot be read"),
        ("1.2Q", "unknown unit"),
        ("4 parsecs", "unknown unit"),
        (True, "is not a number"),
        (None, "is not a number"),
        ([0.5], "is not a number"),
        (0, "must be positive"),
        (-3, "must be positive"),
        (float("nan"), "must be positive"),
        (float("inf"), "must be positive"),
        ("0%", "must be positive"),
        ("150%", "more than the original"),
    ],
)
def test_what_is_refused_and_why(value: object, what: str) -> None:
    with pytest.raises(BudgetError, match=what) as caught:
        one(value)  # type: ignore[arg-type]
    assert "'macs'" in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("budget", [0.5, "macs", ["macs"]])
def test_what_is_no_mapping_is_refused(budget: object) -> None:
    with pytest.raises(BudgetError, match="a budget is a mapping from costs to bounds") as caught:
        parse_budget(budget)  # type: ignore[arg-type]
    assert "{'macs': 0.5}" in str(caught.value.hint)


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="is empty"):
        parse_budget({})


def test_several_bounds_keep_their_order_and_names() -> None:
    bounds = parse_budget({"macs": 0.5, "latency:onnxruntime-cpu": "4.0ms"})
    assert bounds == (Bound("macs", 0.5, True), Bound("latency:onnxruntime-cpu", 4.0, False))


def test_the_limit_of_a_share_and_of_a_figure() -> None:
    assert Bound("macs", 0.25, relative=True).limit(4e6) == 1e6
    assert Bound("macs", 3e6, relative=False).limit(4e6) == 3e6


def test_bounds_read_as_a_sentence() -> None:
    assert str(Bound("macs", 0.5, relative=True)) == "macs <= 0.5 of the original"
    assert str(Bound("bytes", 400e3, relative=False)) == "bytes <= 4e+05"
