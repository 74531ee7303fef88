"""Predictions against tables whose truth is known, and the pieces against scipy and scikit-learn."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.errors import MeasureError
from slim_latency.kernels import FEATURES, RISING, parse_key
from slim_latency.predict import Predictor, fit
from slim_latency.predict.boost import Trees, boost
from slim_latency.predict.fit import corrected, flops_line
from slim_latency.predict.lines import nonnegative
from slim_latency.table import DeviceTable, with_model

Make = Callable[..., DeviceTable]
UNSEEN = "Conv.nchwc f32[1,96,16,16] f32[112,96,3,3] -> f32[1,112,16,16] {activation=Clip}"


class TestLines:
    @pytest.mark.parametrize("seed", range(20))
    def test_it_is_scipys_answer(self, seed: int) -> None:
        scipy = pytest.importorskip("scipy.optimize")
        generator = np.random.default_rng(seed)
        matrix = generator.random((30, 6)) * 10.0 ** generator.integers(-6, 6, 6)
        target = matrix @ (generator.normal(size=6) / np.sqrt((matrix**2).sum(axis=0))) + 0.1 * generator.random(30)
        found = nonnegative(matrix, target)
        assert (found >= 0).all()
        best = scipy.nnls(matrix, target)[1]
        np.testing.assert_allclose(np.linalg.norm(matrix @ found - target), best, rtol=1e-6, atol=1e-9)

    def test_the_pull_leads_where_the_data_say_nothing(self) -> None:
        found = nonnegative(np.array([[1.0, 1.0]]), np.array([2.0]), ridge=1e-6, toward=np.array([2.0, 0.0]))
        np.testing.assert_allclose(found, [2.0, 0.0], atol=1e-3)


class TestBoost:
    @pytest.fixture
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(0)
        rows = generator.random((400, 3)) * 8
        return rows, np.sin(rows[:, 0]) + 0.5 * rows[:, 1] + 0.05 * generator.normal(size=400)

    def test_it_is_the_sum_of_scikit_learns_trees(self, data: tuple[np.ndarray, np.ndarray]) -> None:
        tree = pytest.importorskip("sklearn.tree")
        rows, target = data
        found = boost(rows, target, np.ones(400), rising=(), trees=5, rate=0.5)
        left, total = target.copy(), np.zeros(400)
        for number in range(5):
            one = tree.DecisionTreeRegressor(max_depth=3, min_samples_leaf=3, random_state=number)
            part = 0.5 * one.fit(rows, left).predict(rows)
            left, total = left - part, total + part
        np.testing.assert_allclose(found(rows), total, rtol=1e-9)

    def test_it_learns(self, data: tuple[np.ndarray, np.ndarray]) -> None:
        rows, target = data
        found = boost(rows, target, np.ones(400), rising=(), trees=200)
        assert np.abs(found(rows) - target).mean() < 0.1 * np.abs(target - target.mean()).mean()

    def test_it_never_falls_with_what_must_rise(self, data: tuple[np.ndarray, np.ndarray]) -> None:
        rows, target = data
        found = boost(rows, target - 2 * rows[:, 1], np.ones(400), rising=(0, 1), trees=50)
        for feature in (0, 1):
            line = np.tile(rows[7], (100, 1))
            line[:, feature] = np.linspace(-1, 9, 100)
            assert (np.diff(found(line)) >= -1e-12).all()

    def test_it_comes_back_from_json(self, data: tuple[np.ndarray, np.ndarray]) -> None:
        rows, target = data
        found = boost(rows, target, np.ones(400), rising=(1,), trees=20)
        again = Trees.from_json(json.loads(json.dumps(found.to_json())), 3)
        np.testing.assert_allclose(again(rows), found(rows), atol=1e-4)

    def test_arrays_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(MeasureError, match="do not fit"):
            Trees.from_json({"feature": [[0] * 7], "threshold": [[0.0] * 7] * 2, "leaf": [[0.0] * 8]}, 3)
        with pytest.raises(MeasureError, match="numbers that there are not"):
            Trees.from_json({"feature": [[5] * 7], "threshold": [[0.0] * 7], "leaf": [[0.0] * 8]}, 3)


class TestFit:
    def test_the_scale_of_the_anchors_is_found(self, make_table: Make) -> None:
        model = fit(make_table(30, factor=1.25), trees=False)
        assert model["scale"]["factor"] == pytest.approx(1.25, rel=1e-3)
        assert model["scale"]["fixed_us"] == pytest.approx(0, abs=0.5)

    def test_unseen_kernels_obey_the_law_that_made_the_seen_ones(
        self, make_table: Make, true_us: Callable[[str], float]
    ) -> None:
        predictor = Predictor.of(make_table(40))
        assert UNSEEN not in make_table(40).kernels
        assert predictor.micros([UNSEEN])[0] == pytest.approx(true_us(UNSEEN), rel=0.02)

    def test_measured_kernels_are_looked_up(self, make_table: Make) -> None:
        table = make_table(10)
        key, row = next(iter(table.kernels.items()))
        odd = dataclasses.replace(table, kernels={**table.kernels, key: dataclasses.replace(row, median_us=777.0)})
        predictor = Predictor.of(with_model(odd, fit(table, trees=False)))
        assert predictor.micros([key])[0] == pytest.approx(777.0 - 1.5)

    def test_held_out_networks(self, make_table: Make, networks_of: Callable[[random.Random], Sequence[str]],
                               true_us: Callable[[str], float]) -> None:  # fmt: skip
        table = make_table(30, factor=1.1)
        predictor = Predictor.of(with_model(table, fit(table)))
        for seed in range(100, 130):
            keys = networks_of(random.Random(seed))
            truth = 1.1 * sum(map(true_us, keys)) / 1e3
            assert predictor.estimate(keys).value_ms == pytest.approx(truth, rel=0.03)

    def test_intervals_hold_the_truth_as_often_as_they_say(
        self, make_table: Make, networks_of: Callable[[random.Random], Sequence[str]], true_us: Callable[[str], float]
    ) -> None:
        table = make_table(60, noise=0.05)
        predictor = Predictor.of(with_model(table, fit(table, trees=False)))
        draw, inside = random.Random(77), 0
        for seed in range(400):
            keys = networks_of(random.Random(1000 + seed))
            truth = 1.1 * sum(map(true_us, keys)) / 1e3 * (1 + 0.05 * draw.gauss(0, 1))
            found = predictor.estimate(keys, confidence=0.9)
            assert found.low_ms is not None and found.high_ms is not None  # noqa: PT018
            inside += found.low_ms <= truth <= found.high_ms
        assert 0.82 <= inside / 400 <= 0.97

    def test_the_baseline_is_the_line_through_the_networks(self, make_table: Make) -> None:
        table = make_table(12)
        exact = {
            name: dataclasses.replace(row, median_ms=0.25 + 3e-8 * row.macs) for name, row in table.networks.items()
        }
        found = flops_line(list(exact.values()))
        assert found["fixed_ms"] == pytest.approx(0.25, rel=1e-6)
        assert found["ms_per_mac"] == pytest.approx(3e-8, rel=1e-6)

    def test_trees_are_left_out_without_scikit_learn(self, make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "sklearn.tree", None)
        monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
        model = fit(make_table(20))
        assert all(found["trees"] is None for found in model["families"].values())

    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from([1, 3, 5]), st.integers(1, 20), st.integers(1, 20), st.sampled_from([4, 8, 16, 32]))
    def test_a_wider_convolution_costs_no_less(self, window: int, channels: int, made: int, size: int) -> None:
        predictor = _predictor()

        def at(inside: int, outside: int) -> float:
            key = (f"Conv.nchwc f32[1,{16 * inside},{size},{size}] f32[{16 * outside},{16 * inside},{window},{window}] "
                   f"-> f32[1,{16 * outside},{size},{size}] {{activation=Tanh}}")  # fmt: skip
            return float(predictor.micros([key])[0])

        assert at(channels, made) <= at(channels + 1, made) * (1 + 1e-9)
        assert at(channels, made) <= at(channels, made + 1) * (1 + 1e-9)

    def test_the_profilers_overhead_is_taken_off_and_never_everything(self) -> None:
        assert corrected(10.0, 1.5) == 8.5
        assert corrected(1.0, 1.5) == pytest.approx(0.15)
        assert corrected(0.0, 1.5) > 0


class TestEstimate:
    def test_shares_name_their_sources_and_sum_to_the_value(self, make_table: Make) -> None:
        table = make_table(20)
        odd = "Fancy.custom f32[1,64,8,8] -> f32[1,64,8,8]"
        keys = [*list(table.kernels)[:3], UNSEEN, odd]
        found = Predictor.of(table).estimate(keys, 10**6)
        assert [share.source for share in found.shares] == ["table", "regressor", "roofline"]
        assert [share.kernels for share in found.shares] == [3, 1, 1]
        assert sum(share.ms for share in found.shares) == pytest.approx(found.value_ms)
        assert sum(share.share for share in found.shares) == pytest.approx(1)
        assert found.shares[2].ms > 0
        assert found.flops_ms is not None

    def test_unknown_operators_make_it_partial(self, make_table: Make) -> None:
        table = make_table(20)
        found = Predictor.of(table).estimate(list(table.kernels)[:3], partial={"mylib.op": 2})
        assert found.partial == {"mylib.op": 2}
        assert found.high_ms is None
        assert "mylib.op (2)" in found.notes[0]

    def test_roofline_and_extrapolation_widen_the_interval(self, make_table: Make) -> None:
        table = make_table(30, noise=0.02)
        predictor = Predictor.of(with_model(table, fit(table, trees=False)))
        known = predictor.estimate(list(table.kernels)[:5])
        huge = predictor.estimate(["Conv.nchwc f32[1,2048,64,64] f32[2048,2048,3,3] -> f32[1,2048,64,64]"])
        odd = predictor.estimate(["Fancy.custom f32[1,64,8,8] -> f32[1,64,8,8]"])
        assert huge.extrapolated == 1
        assert _width(known) < _width(huge)
        assert _width(known) < _width(odd)

    def test_few_networks_give_no_interval(self, make_table: Make) -> None:
        found = Predictor.of(make_table(3)).estimate([UNSEEN])
        assert found.low_ms is None
        assert "give no interval" in found.notes[0]

    def test_a_table_without_kernels_is_good_for_ranking_only(self, make_table: Make) -> None:
        table = make_table(30)
        bare = with_model(dataclasses.replace(table, kernels={}, networks={}), fit(table, trees=False))
        found = Predictor.of(bare).estimate([UNSEEN])
        assert found.ranking_only
        assert found.low_ms is None
        assert "nothing was measured on this device: good for ranking only" in found.notes

    def test_no_kernels_take_no_time(self, make_table: Make) -> None:
        assert Predictor.of(make_table(10)).estimate([]).value_ms == 0

    def test_another_versions_model_is_refused(self, make_table: Make) -> None:
        table = make_table(10)
        model = {**fit(table, trees=False), "schema_version": 99}
        with pytest.raises(MeasureError, match="of another version"):
            Predictor.of(with_model(table, model))


_KEPT: dict[str, Predictor] = {}


def _predictor() -> Predictor:
    """One predictor for all of hypothesis' examples: trees and lines of noisy kernels."""
    if "one" not in _KEPT:
        rows = _noisy()
        _KEPT["one"] = Predictor.of(with_model(rows, fit(rows, folds=2)))
    return _KEPT["one"]


def _noisy() -> DeviceTable:
    from slim_latency.table import KernelRow

    draw, rows = random.Random(3), {}
    for _ in range(300):
        inside, outside, window, size = (draw.randint(1, 20), draw.randint(1, 20), draw.choice((1, 3, 5)),
                                         draw.choice((4, 8, 16, 32)))  # fmt: skip
        key = (f"Conv.nchwc f32[1,{16 * inside},{size},{size}] f32[{16 * outside},{16 * inside},{window},{window}] "
               f"-> f32[1,{16 * outside},{size},{size}]")  # fmt: skip
        time = 2 + parse_key(key).macs * 1e-5 * draw.uniform(0.7, 1.4)
        rows[key] = KernelRow(key, 5, time, time, time)
    assert set(RISING) <= set(FEATURES)
    header = {"runtime": {"name": "onnxruntime"}, "settings": {}, "profiler_overhead_us": 0.0, "device": {}}
    return DeviceTable("noisy", header, rows, {})


def _width(found: object) -> float:
    return float(found.high_ms / found.low_ms)  # type: ignore[attr-defined]
