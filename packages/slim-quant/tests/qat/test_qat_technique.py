"""``quant.qat`` as a recipe runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from quant_nets import pictures, trained

from slim_core import Workload, load_plugins
from slim_core.errors import DataError, PatternError, UnknownNameError
from slim_core.tasks import ClassificationTask
from slim_core.technique import Run
from slim_quant.insert import is_quantized
from slim_quant.qat.technique import QATConfig, QATTechnique


def config(**settings: Any) -> QATConfig:
    return QATConfig.model_validate({"samples": 32, "fit": {"epochs": 2, "lr": 0.002}, **settings})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path, seed=0, registry=load_plugins().registry)


@pytest.fixture(scope="module")
def workload() -> Workload:
    batches = [pictures(32, 900 + index) for index in range(3)]
    return Workload(trained(), (pictures(1, 1)[0],), ClassificationTask(), train=batches, val=[pictures(64, 7)])


def test_it_is_registered_with_its_replayer() -> None:
    registry = load_plugins().registry
    assert registry.get("techniques", "quant.qat") is QATTechnique
    assert hasattr(registry.get("transforms", "quant.qat"), "replay")


def test_a_step_gives_a_quantized_workload_its_history_and_its_layers(workload: Workload, run: Run) -> None:
    before = {name: value.clone() for name, value in workload.model.state_dict().items()}
    result = QATTechnique().run(workload, config(quantizer="lsq", teacher={"weight": 0.5}, weight_bits=4), run)
    assert is_quantized(result.workload.model)
    assert [item.kind for item in result.workload.transforms] == ["quant.static"]
    assert [row["epoch"] for row in result.details["history"]] == [1, 2]
    assert result.details["history"][-1]["top1"] > 0.9
    assert {row["bits"] for row in result.details["layers"]} == {4}
    assert all(torch.equal(value, before[name]) for name, value in workload.model.state_dict().items())


def test_a_finished_step_is_not_trained_again_and_gives_the_same(workload: Workload, run: Run) -> None:
    first = QATTechnique().run(workload, config(), run)
    second = QATTechnique().run(workload, config(), run)
    assert first.details["history"] == second.details["history"]
    one, other = (item.workload.model.state_dict() for item in (first, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_rehearsal_finds_what_cannot_work(workload: Workload, run: Run) -> None:
    assert QATTechnique().rehearse(workload, config(), run) is None
    with pytest.raises(PatternError, match="'nothing' matches no layer"):
        QATTechnique().rehearse(workload, config(skip=["nothing"]), run)
    with pytest.raises(DataError, match="lacks training data"):
        QATTechnique().rehearse(Workload(workload.model, workload.example_inputs), config(), run)
    with pytest.raises(UnknownNameError):
        QATTechnique.check(config(observer="nope"), run.registry)


@pytest.mark.parametrize("setting", [
    {"quantizer": "nope"}, {"freeze_batch_norm": 2}, {"decay": 1}, {"strategy": "dynamic", "quantizer": "pact"},
    {"teacher": {"weight": 0}}, {"samples": 0}, {"fit": {"epoch": 1}},
])  # fmt: skip
def test_wrong_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**setting)
