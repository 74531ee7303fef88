"""``quant.ptq`` as a recipe runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from slim_core import Workload, load_plugins
from slim_core.data import TensorSource, begin_epoch
from slim_core.errors import DataError, PatternError, SlimError
from slim_core.tasks import ClassificationTask
from slim_core.technique import Run
from slim_quant.insert import is_quantized
from slim_quant.technique import PTQConfig, PTQTechnique


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=tmp_path, seed=0, registry=load_plugins().registry)


@pytest.fixture
def workload(net: nn.Module, x: Tensor) -> Workload:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(16, 3, 16, 16, generator=generator), torch.zeros(16, dtype=torch.long)) for _ in range(4)]
    return Workload(net, (x[:1],), ClassificationTask(), train=batches)


def test_it_is_registered_with_its_replayer() -> None:
    registry = load_plugins().registry
    assert registry.get("techniques", "quant.ptq") is PTQTechnique
    assert hasattr(registry.get("transforms", "quant.static"), "replay")


def test_a_step_gives_a_quantized_workload_and_leaves_the_given_one(
    workload: Workload, run: Run, net: nn.Module
) -> None:
    result = PTQTechnique().run(workload, PTQConfig(samples=32), run)
    assert is_quantized(result.workload.model)
    assert workload.model is net
    assert not workload.transforms
    assert [item.kind for item in result.workload.transforms] == ["quant.static"]
    assert result.details["samples"] == 32
    assert {"name", "bits", "sqnr_db"} <= set(result.details["layers"][0])


def test_the_same_seed_gives_the_same_scales(workload: Workload, run: Run) -> None:
    one, two = (PTQTechnique().run(workload, PTQConfig(), run).workload.model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def pictures(**options: Any) -> TensorSource:
    inputs = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return TensorSource(inputs, torch.arange(64) % 10, 16, shuffle=True, **options)


def louder(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs * 10 * torch.rand((), generator=generator)


def loader(**_: Any) -> DataLoader[Any]:
    source = pictures()
    generator = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(source.inputs, source.targets), 16, shuffle=True, generator=generator)


def unseeded(**_: Any) -> DataLoader[Any]:
    source = pictures()
    return DataLoader(TensorDataset(source.inputs, source.targets), 16, shuffle=True)


@pytest.mark.parametrize("make", [pictures, loader, unseeded])
def test_calibration_is_the_same_whatever_ran_before(
    net: nn.Module, x: Tensor, run: Run, make: Callable[..., Any]
) -> None:
    states = []
    for epochs in (0, 2):
        source = make()
        for epoch in range(epochs):  # as a fit goes through it
            begin_epoch(source, epoch, 7)
            for _ in source:
                torch.rand(())
        workload = Workload(net, (x[:1],), ClassificationTask(), train=source)
        result = PTQTechnique().run(workload, PTQConfig(samples=24, observer="min_max"), run)
        states.append(result.workload.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_calibration_sees_no_augmentation(net: nn.Module, x: Tensor, run: Run) -> None:
    scales = []
    for source in (pictures(), pictures(augment=louder)):
        workload = Workload(net, (x[:1],), ClassificationTask(), train=source)
        result = PTQTechnique().run(workload, PTQConfig(samples=64, observer="min_max"), run)
        scales.append(float(result.workload.model.get_buffer("activation_quant.x.scale")))
    values = pictures().inputs
    assert scales == [pytest.approx(float(values.max() - values.min()) / 255)] * 2


def test_generators_are_left_as_they_were(net: nn.Module, x: Tensor, run: Run) -> None:
    source = loader()
    before = [torch.get_rng_state(), source.generator.get_state(), torch.tensor(np.random.get_state()[1])]
    PTQTechnique().run(Workload(net, (x[:1],), ClassificationTask(), train=source), PTQConfig(samples=16), run)
    after = [torch.get_rng_state(), source.generator.get_state(), torch.tensor(np.random.get_state()[1])]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_fewer_samples_than_asked_for_are_all_used_and_noted(workload: Workload, run: Run) -> None:
    result = PTQTechnique().run(workload, PTQConfig(samples=100), run)
    assert result.details["samples"] == 64
    note = "calibrated on all 64 samples that the data has: 100 were asked for"
    assert note in result.notes
    assert note in result.details["notes"]
    enough = PTQTechnique().run(workload, PTQConfig(samples=64), run)
    assert not any("calibrated on all" in item for item in enough.notes)


def test_settings_reach_the_quantizer(workload: Workload, run: Run) -> None:
    config = PTQConfig(weight_bits=4, activation_bits=7, per_channel=False, skip=["head"], observer="min_max")
    result = PTQTechnique().run(workload, config, run)
    data = result.workload.transforms[0].data
    assert data["activation"]["bits"] == 7
    assert {item["bits"] for item in data["schemes"].values()} == {4}
    assert {item["granularity"] for item in data["schemes"].values()} == {"per_tensor"}
    assert "head.weight" not in data["schemes"]
    assert "head stays in float: it is skipped" in result.notes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"target": "nope"}, "unknown quantization target 'nope'"),
        ({"observer": "nope"}, "unknown observer 'nope'"),
        ({"observer": {"name": "percentile", "shares": 0.9}}, "has no option 'shares'"),
        ({"corrections": ["nope"]}, "unknown correction 'nope'"),
        ({"overrides": [{"weight": {"bits": 4}}]}, "needs a pattern"),
        ({"overrides": [{"op": "linear", "weight": {"granularity": "per_group"}}]}, "needs a group size"),
    ],
)
def test_names_and_options_are_looked_up_when_the_recipe_is_read(
    run: Run, setting: dict[str, Any], message: str
) -> None:
    config = PTQConfig(**setting)
    with pytest.raises(SlimError, match=message):
        PTQTechnique.check(config, run.registry)


def test_overrides_of_a_recipe_reach_the_quantizer(workload: Workload, run: Run) -> None:
    overrides = [
        {"op": "linear", "weight": {"bits": 4, "group_size": 8}},
        {"match": "point", "activation": {"bits": 6}, "observer": {"name": "percentile", "share": 0.99}},
        {"op": "add", "skip": True},
    ]
    config = PTQConfig(target="openvino", overrides=overrides)
    PTQTechnique.check(config, run.registry)
    data = PTQTechnique().run(workload, config, run).workload.transforms[0].data
    assert data["target"] == "openvino"
    assert data["schemes"]["head.weight"]["group_size"] == 8
    assert data["schemes"]["stem.weight"]["granularity"] == "per_channel"
    assert {scheme["bits"] for scheme in data["activations"].values()} == {6}


def test_a_pattern_that_matches_nothing_is_an_error(workload: Workload, run: Run) -> None:
    with pytest.raises(PatternError, match="'none' matches no layer"):
        PTQTechnique().run(workload, PTQConfig(skip=["none"]), run)


def test_without_training_data_the_error_says_what_to_give(net: nn.Module, x: Tensor, run: Run) -> None:
    with pytest.raises(DataError, match="has none") as caught:
        PTQTechnique().run(Workload(net, (x,)), PTQConfig(), run)
    assert "train" in str(caught.value.hint)


@pytest.mark.parametrize("setting", [{"weight_bits": 9}, {"samples": 0}, {"weight_observer": "nope"}, {"sampels": 3}])
def test_wrong_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PTQConfig(**setting)


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import sys, slim_quant, slim_quant.plugin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_rehearsal_looks_for_training_data_and_for_the_layers_to_skip(workload: Workload, run: Run) -> None:
    weights = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    assert PTQTechnique().rehearse(workload, PTQConfig(skip=["*"]), run) is None
    with pytest.raises(PatternError, match=r"'nothing\.\*' matches no layer"):
        PTQTechnique().rehearse(workload, PTQConfig(skip=["nothing.*"]), run)
    with pytest.raises(DataError, match="training data"):
        PTQTechnique().rehearse(Workload(workload.model, workload.example_inputs), PTQConfig(), run)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in workload.model.state_dict().items())
