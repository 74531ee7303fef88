"""Biases in steps of input scale times weight scale, as integer kernels add them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim_quant import quantize


def steps(model: Any, layer: str) -> tuple[Tensor, Tensor]:
    """Return the bias and its step: the scale of what the layer reads times that of its weight."""
    node = next(node for node in model.graph.nodes if node.op == "call_function" and layer_name_of(node) == layer)
    scale = model.get_buffer(str(node.args[0].args[1].target)).double()
    return model.get_parameter(f"{layer}.bias").detach().double(), scale * model.get_buffer(f"{layer}.weight_scale")


def layer_name_of(node: Any) -> str:
    """Return the module of a layer's weight, looking through its fake-quantizer."""
    weight = node.args[1].args[0] if len(node.args) > 2 and getattr(node.args[1], "args", ()) else None
    return str(getattr(weight, "target", "")).removesuffix(".weight")


LAYERS = ["stem", "depthwise", "left", "hidden", "head"]


@pytest.mark.parametrize("layer", LAYERS)
def test_biases_are_whole_steps_for_onnxruntime(net: nn.Module, x: Tensor, layer: str) -> None:
    bias, step = steps(quantize(net, [x], example_inputs=(x,)).model, layer)
    whole = bias / step
    torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=1e-6)


def test_no_bias_moves_by_more_than_half_a_step(net: nn.Module, x: Tensor) -> None:
    model = quantize(net, [x], example_inputs=(x,)).model
    bias, step = steps(model, "head")
    moved = (bias - net.head.bias.detach().double()).abs()
    assert bool((moved <= step / 2 * (1 + 1e-4)).all())
    assert float(moved.max()) > 0


@pytest.mark.parametrize("target", ["openvino", "generic"])
def test_where_biases_are_added_in_float_they_stay(net: nn.Module, x: Tensor, target: str) -> None:
    model = quantize(net, [x], example_inputs=(x,), target=target).model
    assert torch.equal(model.get_parameter("head.bias"), net.head.bias)


def test_a_bias_of_two_layers_stays_as_it_is() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model, x = Two(), torch.randn(8, 4)
    result = quantize(model, [x], example_inputs=(x,)).model
    assert torch.equal(result.get_parameter("first.bias"), model.first.bias)
