"""Curves as data: writing, merging, charts; and choosing by a limit or a budget, against exhaustive search."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.budget import parse_budget
from slim_core.errors import BudgetError
from slim_core.graph import analyse
from slim_prune.allocation.grid import grid
from slim_prune.allocation.latency import search
from slim_prune.allocation.problem import Choice, Problem
from slim_prune.allocation.uniform import uniform
from slim_prune.costs import cost_models
from slim_prune.errors import PlanError
from slim_prune.sensitivity.choose import worth_of
from slim_prune.sensitivity.curves import Base, Curve, Curves, Point

IDENTITY = {"model": "m" * 64, "data": "d" * 64, "metric": "top1", "ranking": "r" * 64}


def curve(name: str, units: int, *points: tuple[int, float]) -> Curve:
    return Curve(name, units, 1, tuple(Point(name, kept, value, 50) for kept, value in points))


def curves(*items: Curve, **identity: str) -> Curves:
    return Curves("top1", True, Base(0.9, 50), items, {**IDENTITY, **identity}, ("a note",))


ONE = curve("one", 16, (4, 0.5), (8, 0.85), (12, 0.92))
TWO = curve("two", 8, (2, 0.1), (4, 0.7))


def test_curves_come_back_as_they_were(tmp_path: Path) -> None:
    both = curves(ONE, TWO)
    both.save(tmp_path / "curves.json")
    assert Curves.load(tmp_path / "curves.json") == both


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"curves": [{"name": "one"}]},
        {"curves": [{"name": "one", "units": 4, "channels_per_unit": 1, "points": [{"kept": 8}]}]},
        {"base": {}},
        {"curves": 3},
        {"curves": [{"name": "a", "units": 2, "channels_per_unit": 1, "points": []}] * 2},
    ],
)
def test_malformed_files_are_one_clear_error(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps(curves(ONE).to_json() | change))
    with pytest.raises(PlanError) as error:
        Curves.load(path)
    assert str(path) in str(error.value)


def test_drops_follow_the_direction_of_the_metric() -> None:
    assert [curves(ONE).drop(point) for point in ONE.points] == pytest.approx([0.4, 0.05, -0.02])
    loss = Curves("loss", False, Base(0.5, 50), (curve("one", 16, (4, 0.8)),), IDENTITY)
    assert loss.drop(loss["one"].points[0]) == pytest.approx(0.3)


def test_merging_parts_gives_the_whole() -> None:
    first = curves(curve("one", 16, (4, 0.5)), curve("two", 8))
    second = curves(curve("one", 16, (8, 0.85), (12, 0.92)), TWO)
    assert first.merge(second) == curves(ONE, TWO)
    assert first.merge(second, first) == curves(ONE, TWO)


@pytest.mark.parametrize(("key", "words"), [("model", "other weights"), ("data", "other data"), ("ranking", "order")])
def test_merging_what_measures_something_else_is_refused(key: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        curves(ONE).merge(curves(TWO, **{key: "x" * 64}))


def test_merging_contradictions_is_refused() -> None:
    with pytest.raises(PlanError, match="'one' with 4 units kept has two values"):
        curves(ONE).merge(curves(curve("one", 16, (4, 0.51))))
    with pytest.raises(PlanError, match="units"):
        curves(ONE).merge(curves(curve("one", 32, (4, 0.5))))


def test_charts_hold_the_measured_numbers() -> None:
    (chart,) = curves(ONE, TWO).charts()
    one, two = chart["series"]
    assert one["x"] == [25.0, 50.0, 75.0, 100.0]
    assert one["y"] == pytest.approx([0.4, 0.05, -0.02, 0.0])
    assert two["name"] == "two"
    assert len(curves(*(curve(str(n), 4, (1, 0.5)) for n in range(9))).charts()) == 3


def test_the_drawing_is_an_svg_with_a_curve_per_group(tmp_path: Path) -> None:
    curves(ONE, TWO, curve("<three> & more", 4, (1, 0.2))).plot(tmp_path / "curves.svg")
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    lines = [item for item in root.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 3
    assert all("nan" not in (item.get("points") or "") for item in lines)
    assert any(item.text == "<three> & more" for item in root.iter())


def test_a_limit_on_the_drop_gives_the_smallest_counts_that_hold_it() -> None:
    assert curves(ONE, TWO).choose(max_drop=0.06) == {"one": 8, "two": 8}
    assert curves(ONE, TWO).choose(max_drop=1.0) == {"one": 4, "two": 2}
    assert curves(ONE, TWO).choose(max_drop=0.0) == {"one": 12, "two": 8}
    with pytest.raises(PlanError, match="nothing to choose by"):
        curves(ONE).choose()


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.three, self.head = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 2)

    def forward(self, x):
        x = torch.relu(self.three(torch.relu(self.two(torch.relu(self.one(x))))))
        return self.head(x.mean((2, 3)))


def problem(budget: dict) -> Problem:
    coupling = analyse(Chain(), (torch.zeros(1, 3, 6, 6),))
    bounds = parse_budget(budget) if budget else ()
    choices = [Choice(group, grid(group, round_to=2)) for group in coupling.groups]
    return Problem(coupling, choices, cost_models(["macs", "params"]), bounds)


def random_curves(asked: Problem, seed: int) -> Curves:
    rng = np.random.default_rng(seed)
    items = []
    for choice in asked.choices:
        values = 0.9 - np.sort(rng.random(len(choice.counts) - 1))[::-1]
        items.append(curve(choice.name, choice.group.units, *zip(choice.counts[:-1], values.tolist(), strict=True)))
    return curves(*items)


def drops(measured: Curves, counts: dict[str, int]) -> float:
    envelopes = measured.envelope()
    return sum(envelopes[name](count) for name, count in counts.items())


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.3}, {"macs": 0.6, "params": 0.4}])
@pytest.mark.parametrize("seed", range(4))
def test_a_budget_is_met_with_the_smallest_sum_of_drops(budget: dict, seed: int) -> None:
    asked = problem(budget)
    measured = random_curves(asked, seed)
    names = [choice.name for choice in asked.choices]
    every = itertools.product(*(choice.counts for choice in asked.choices))
    everything = (dict(zip(names, counts, strict=True)) for counts in every)
    best = min(drops(measured, counts) for counts in everything if asked.meets(counts))
    chosen = measured.choose(problem=asked)
    assert asked.meets(chosen)
    assert drops(measured, chosen) == pytest.approx(best, abs=1e-5)
    searched = search(asked, worth_of(measured, asked), uniform(asked), whole=0)  # as in spaces too large to try all
    assert asked.meets(searched)
    assert drops(measured, searched) <= best + 0.02


def test_a_budget_and_a_limit_hold_together() -> None:
    asked = problem({"macs": 0.5})
    measured = curves(
        *(curve(c.name, c.group.units, *((n, 0.9 - 0.3 * (1 - n / c.group.units)) for n in c.counts[:-1]))
          for c in asked.choices)
    )  # fmt: skip
    chosen = measured.choose(problem=asked, max_drop=0.16)
    envelopes = measured.envelope()
    assert asked.meets(chosen)
    assert all(envelopes[name](count) <= 0.16 for name, count in chosen.items())
    with pytest.raises(BudgetError, match="no group loses more than"):
        measured.choose(problem=asked, max_drop=0.03)


def test_curves_of_another_model_or_without_a_group_are_refused() -> None:
    asked = problem({"macs": 0.5})
    with pytest.raises(PlanError, match="was not measured"):
        curves(curve("one", 16, (4, 0.5))).choose(problem=asked)
    wrong = curves(*(curve(c.name, c.group.units + 2, (2, 0.5)) for c in asked.choices))
    with pytest.raises(PlanError, match="another model"):
        wrong.choose(problem=asked)


@pytest.mark.parametrize(
    ("key", "value"), [("value", float("nan")), ("margin", float("inf")), ("samples", -3), ("samples", 2.5)]
)
def test_points_from_a_file_are_measurements(key: str, value: float) -> None:
    row = {**Point("a", 4, 0.5, 10).to_json(), key: value}
    with pytest.raises(ValueError, match="is no"):
        Point.from_json(row)
