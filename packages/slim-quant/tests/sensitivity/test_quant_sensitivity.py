"""Sensitivities: what is switched equals what is inserted and run from the start, to the bit; a kill loses nothing."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from quant_nets import pictures, trained
from torch import nn

import slim_quant
from slim_core.errors import PatternError, SlimError
from slim_core.tasks import ClassificationTask
from slim_core.training.evaluate import evaluate
from slim_quant import calibrate, prepare
from slim_quant.biases import round_biases
from slim_quant.calibration import CalibrationData
from slim_quant.diff.sums import decibels
from slim_quant.insert import insert
from slim_quant.placement import Placement
from slim_quant.sensitivity.found import Sensitivity
from slim_quant.units import Unit, placement_of, units_of

TASK = ClassificationTask(num_classes=10)
DATA = [pictures(32, 50), pictures(20, 51)]
CALIBRATION = [DATA[0][0], DATA[1][0]]
EXAMPLE = (CALIBRATION[0][:1],)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def found(model: nn.Module) -> Sensitivity:
    return slim_quant.sensitivity(
        model, CALIBRATION, example_inputs=EXAMPLE, task=TASK, val=DATA, metric="loss", mode="both", bits="w4a8"
    )


class Plain:
    """The plain way: build each model with the quantizers that are on, and run all of it."""

    def __init__(self, model: nn.Module) -> None:
        weight = slim_quant.Scheme(4, True, "per_channel")
        self.prepared = prepare(model, EXAMPLE, weight=weight)
        self.calibrated = calibrate(self.prepared, CalibrationData(CALIBRATION))
        self.units = units_of(self.prepared.graph, self.prepared.placement, self.prepared.target)

    def figures(self, units: list[Unit], *, all_else: bool = False) -> tuple[float | None, float]:
        prepared, calibrated = self.prepared, self.calibrated
        placement = placement_of(prepared.placement, units)
        if all_else:  # what belongs to no unit stays
            owned = {name for unit in self.units for name in unit.activations}
            kept = {item.node for item in placement.activations}
            placement = Placement(
                tuple(i for i in prepared.placement.activations if i.node in kept or i.node not in owned),
                placement.weights,
            )
        graph = copy.deepcopy(prepared.graph)
        nodes = {item.node for item in placement.activations}
        # a scale is that of the whole, whoever gives it its name
        roots: dict[str, str] = {}
        for item in placement.activations:
            roots.setdefault(item.scale, item.scale if item.scale in nodes else item.node)
        renamed = tuple(type(item)(item.node, roots[item.scale]) for item in placement.activations)
        scales = {roots[name]: value for name, value in calibrated.activations.items() if name in roots}
        schemes = {roots[name]: value for name, value in prepared.activations.items() if name in roots}
        weights = {item.name: calibrated.weights[item.name] for item in placement.weights}
        round_biases(graph, Placement(renamed, placement.weights), scales, weights)
        insert(graph, Placement(renamed, placement.weights), scales, weights, schemes,
               {name: prepared.weights[name] for name in weights})  # fmt: skip
        signal_power = noise = 0.0
        for x, _ in DATA:
            with torch.no_grad():
                one, other = prepared.graph(x).double(), graph(x).double()
            signal_power += float(one.square().sum())
            noise += float((one - other).square().sum())
        return decibels(signal_power, noise), evaluate(graph, TASK, DATA)["loss"]


@pytest.fixture(scope="module")
def plain(model: nn.Module) -> Plain:
    return Plain(model)


def test_switched_on_equals_inserted_and_run_whole(found: Sensitivity, plain: Plain) -> None:
    assert [unit.name for unit in plain.units] == [unit.name for unit in found.units]
    for unit in plain.units:
        point = found.point(unit.name, "w4a8")
        assert (point.sqnr_db, point.metric) == plain.figures([unit]), unit.name


def test_switched_off_equals_all_others_inserted(found: Sensitivity, plain: Plain) -> None:
    for unit in plain.units[::3]:
        rest = [other for other in plain.units if other is not unit]
        point = found.point(unit.name, "w4a8", "float")
        assert (point.sqnr_db, point.metric) == plain.figures(rest, all_else=True), unit.name


def test_the_whole_is_the_quantized_model(found: Sensitivity, model: nn.Module) -> None:
    weight = slim_quant.Scheme(4, True, "per_channel")
    result = slim_quant.quantize(model, CALIBRATION, example_inputs=EXAMPLE, weight=weight)
    assert found.whole["w4a8"]["metric"] == evaluate(result.model, TASK, DATA)["loss"]
    # the float model has its batch norms folded: the same up to rounding
    assert found.base == pytest.approx(evaluate(model, TASK, DATA)["loss"], rel=1e-4)


def test_without_room_for_activations_the_figures_are_the_same(model: nn.Module, found: Sensitivity) -> None:
    again = slim_quant.sensitivity(
        model, CALIBRATION, example_inputs=EXAMPLE, task=TASK, val=DATA, metric="loss", mode="both", bits="w4a8",
        memory=0,
    )  # fmt: skip
    assert again.points == found.points


def test_fewer_operators_are_run_than_in_the_plain_way(plain: Plain) -> None:
    """From the last layer on only that layer is computed; of the first one, everything."""
    from slim_quant.sensitivity.engine import Program
    from slim_quant.sensitivity.switches import OFF, Scales, switches

    program, scales = Program(plain.prepared.graph, OFF), Scales(plain.calibrated)
    steps = [len(program.change(switches([(unit, scales)])).steps) for unit in plain.units]
    assert steps[-1] <= 3
    assert sum(steps) < 0.75 * len(plain.units) * len(program.nodes)


def test_layers_are_ranked_and_drops_have_the_metrics_direction(found: Sensitivity) -> None:
    ranked = found.ranked("w4a8")
    assert [point.sqnr_db for point in ranked] == sorted(point.sqnr_db for point in ranked)
    saved = found.ranked("w4a8", "float")
    assert saved[0].sqnr_db == max(point.sqnr_db for point in saved)
    point = ranked[0]
    assert found.drop(point) == point.metric - found.base  # a loss: higher is worse
    assert found.gain(saved[0]) == saved[0].sqnr_db - found.whole["w4a8"]["sqnr_db"]


def test_kinds_of_operators_and_groups_of_ones_own(model: nn.Module, plain: Plain) -> None:
    by = slim_quant.sensitivity(model, CALIBRATION, example_inputs=EXAMPLE, by="operator", bits="w4a8")
    assert {unit.name for unit in by.units} == {"conv", "depthwise", "add", "concat", "pool", "linear"}
    convs = [unit for unit in plain.units if unit.op == "conv"]
    assert by.point("conv", "w4a8").sqnr_db == plain.figures(convs)[0]
    own = slim_quant.sensitivity(
        model, CALIBRATION, example_inputs=EXAMPLE, groups={"heads": ["hidden", "head"]}, bits="w4a8"
    )
    linear = [unit for unit in plain.units if unit.op == "linear"]
    assert own.point("heads", "w4a8").sqnr_db == plain.figures(linear)[0] == by.point("linear", "w4a8").sqnr_db


def test_units_count_what_they_hold(plain: Plain) -> None:
    units = {unit.name: unit for unit in plain.units}
    assert (units["stem"].params, units["stem"].macs) == (3 * 16 * 9, 3 * 16 * 9 * 256)
    assert (units["depthwise"].params, units["depthwise"].macs) == (16 * 9, 16 * 9 * 256)
    assert (units["hidden"].params, units["hidden"].macs) == (512, 512)
    assert units["add"].macs == 0


def test_written_sensitivities_come_back(found: Sensitivity, tmp_path: Path) -> None:
    found.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == found
    (tmp_path / "s.json").write_text('{"format": "something else"}')
    with pytest.raises(SlimError, match="no file of sensitivities"):
        Sensitivity.load(tmp_path / "s.json")


def test_the_folder_goes_on_and_refuses_other_models(model: nn.Module, tmp_path: Path) -> None:
    options = {"example_inputs": EXAMPLE, "folder": tmp_path, "include": ["head", "stem"]}
    first = slim_quant.sensitivity(model, CALIBRATION, **options)
    stamp = (tmp_path / "points.json").stat().st_mtime_ns
    assert slim_quant.sensitivity(model, CALIBRATION, **options).points == first.points
    assert (tmp_path / "points.json").stat().st_mtime_ns == stamp
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight[0, 0] += 1
    with pytest.raises(SlimError, match="points of something else: model"):
        slim_quant.sensitivity(other, CALIBRATION, **options)


def test_patterns_that_match_nothing(model: nn.Module) -> None:
    with pytest.raises(PatternError, match="'haed' matches no unit") as error:
        slim_quant.sensitivity(model, CALIBRATION, example_inputs=EXAMPLE, include=["haed"])
    assert "did you mean 'head'" in str(error.value)
    with pytest.raises(SlimError, match="no choice of bits"):
        slim_quant.sensitivity(model, CALIBRATION, example_inputs=EXAMPLE, bits="int8")


@pytest.mark.slow
def test_a_killed_measurement_goes_on_and_gives_the_same_file(tmp_path: Path) -> None:
    script = str(Path(__file__).parents[1] / "quant_killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole.json"
    subprocess.run([sys.executable, script, str(tmp_path / "a"), str(whole)], check=True, env=environment)
    kept = tmp_path / "b" / "points.json"
    for wanted in (2, 6):
        child = subprocess.Popen([sys.executable, script, str(kept.parent), str(tmp_path / "b.json")], env=environment)
        while child.poll() is None:
            if kept.exists() and len(json.loads(kept.read_text())["points"]) >= wanted:
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        child.wait()
    resumed = json.loads(kept.read_text())["points"]
    assert len(resumed) >= 2
    subprocess.run([sys.executable, script, str(kept.parent), str(tmp_path / "b.json")], check=True, env=environment)
    assert (tmp_path / "b.json").read_bytes() == whole.read_bytes()
