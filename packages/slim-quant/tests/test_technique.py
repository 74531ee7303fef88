"""``quant.ptq`` as a recipe runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from slim_core import Workload, load_plugins
from slim_core.errors import DataError, PatternError
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


def test_settings_reach_the_quantizer(workload: Workload, run: Run) -> None:
    config = PTQConfig(weight_bits=4, activation_bits=7, per_channel=False, skip=["head"], observer="min_max")
    result = PTQTechnique().run(workload, config, run)
    data = result.workload.transforms[0].data
    assert data["activation"]["bits"] == 7
    assert {item["bits"] for item in data["weights"].values()} == {4}
    assert {item["granularity"] for item in data["weights"].values()} == {"per_tensor"}
    assert "head.weight" not in data["weights"]
    assert "head stays in float: it is skipped" in result.notes


def test_a_pattern_that_matches_nothing_is_an_error(workload: Workload, run: Run) -> None:
    with pytest.raises(PatternError, match="'none' matches no layer"):
        PTQTechnique().run(workload, PTQConfig(skip=["none"]), run)


def test_without_training_data_the_error_says_what_to_give(net: nn.Module, x: Tensor, run: Run) -> None:
    with pytest.raises(DataError, match="has none") as caught:
        PTQTechnique().run(Workload(net, (x,)), PTQConfig(), run)
    assert "train" in str(caught.value.hint)


@pytest.mark.parametrize("setting", [{"weight_bits": 9}, {"samples": 0}, {"target": "nope"}, {"sampels": 3}])
def test_wrong_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PTQConfig(**setting)


def test_importing_the_plugin_imports_no_torch() -> None:
    code = "import sys, slim_quant, slim_quant.plugin; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
