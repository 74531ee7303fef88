"""Targets: the contract for each, lookup by name, and plugins' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.errors import SlimError, UnknownNameError
from slim_core.graph.export import export_graph
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_quant import get_target
from slim_quant.placement import Placement, place
from slim_quant.targets import GENERIC, ONNXRUNTIME, OPENVINO, Target
from slim_quant.testing import TargetContract


class TestONNXRuntime(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return ONNXRUNTIME


class TestOpenVINO(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return OPENVINO


class TestGeneric(TargetContract):
    @pytest.fixture
    def target(self) -> Target:
        return GENERIC


def registry_with(value: object) -> Registry:
    registry = Registry()
    registry.add_kind("quant_targets", "quantization target")
    registry.register("quant_targets", "mine", value, plugin="me")
    return registry


def test_targets_are_registered() -> None:
    assert {"generic", "onnxruntime", "openvino"} <= set(load_plugins().registry.names("quant_targets"))


def test_a_plugins_target_is_found_and_a_target_is_taken_as_it_is() -> None:
    assert get_target("mine", registry_with(GENERIC)) is GENERIC
    assert get_target(OPENVINO) is OPENVINO


def test_an_unknown_name_and_what_is_no_target_are_errors() -> None:
    with pytest.raises(UnknownNameError, match="unknown quantization target 'others'"):
        get_target("others", registry_with(GENERIC))
    with pytest.raises(SlimError, match="'mine' is a int"):
        get_target("mine", registry_with(3))


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x) + x)
        return self.c(F.max_pool2d(x, 2))


def placed(model: nn.Module, target: Target) -> Placement:
    return place(export_graph(model.eval(), (torch.randn(2, 4, 8, 8),)), target)


def test_openvino_adds_to_the_float_result_of_a_convolution() -> None:
    """The sum's other side and its result are integers; between convolution and sum nothing is rounded."""
    nodes = [item.node for item in placed(Sums(), OPENVINO).activations]
    assert nodes == ["x", "relu", "relu_1", "max_pool2d"]


def test_of_two_convolutions_openvino_adds_the_earlier_to_the_later() -> None:
    class Two(Sums):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x)))

    assert [item.node for item in placed(Two(), OPENVINO).activations] == ["x", "conv2d", "relu"]


def test_parts_of_a_concatenation_share_a_scale_on_openvino() -> None:
    class Joined(Sums):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1)[:, :4])

    placement = placed(Joined(), OPENVINO)
    scales = {item.node: item.scale for item in placement.activations}
    assert scales["conv2d"] == scales["conv2d_1"] == scales["cat"]


def test_hard_swish_is_a_product_of_integers_on_onnxruntime() -> None:
    class Hard(Sums):
        def forward(self, x: Tensor) -> Tensor:
            y = F.hardswish(self.a(x))
            return self.c(y * F.hardsigmoid(self.b(F.adaptive_avg_pool2d(y, 1))))

    nodes = [item.node for item in placed(Hard(), ONNXRUNTIME).activations]
    assert "hardswish" in nodes
    assert "hardsigmoid" not in nodes  # it is on the grid of what it reads
    assert nodes[-2:] == ["mul", "conv2d_2"]
