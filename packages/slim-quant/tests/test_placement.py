"""Where quantizers go, on networks whose right placement is written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim_core.errors import PatternError, UnknownNameError
from slim_core.graph.export import export_graph
from slim_quant.graph import op_name
from slim_quant.placement import Placement, place
from slim_quant.reading import read_placement
from slim_quant.targets import get_target


class Model(nn.Module):
    """Two convolutions, a linear layer, and a forward given as a function."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(4, 4, 1)
        self.t = nn.ConvTranspose2d(4, 4, 1)
        self.head = nn.Linear(4, 2)
        self.register_buffer("constant", torch.ones(4, 1, 1))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def placed(forward: object, *, target: str = "onnxruntime", skip: tuple[str, ...] = ()) -> tuple[list[str], Placement]:
    """Return the operators whose results are quantized, in order, and the placement."""
    graph = export_graph(Model(forward), (torch.randn(2, 3, 4, 4),))
    placement = place(graph, get_target(target), skip=skip)
    nodes = {node.name: node for node in graph.graph.nodes}
    short = [op_name(nodes[item.node]).removeprefix("aten.").split(".")[0] for item in placement.activations]
    return short, placement


def groups(placement: Placement) -> list[str]:
    return [item.scale for item in placement.activations]


def test_input_and_output_of_a_convolution_are_quantized() -> None:
    assert placed(lambda m, x: m.c(m.a(x)))[0] == ["placeholder", "conv2d", "conv2d"]


@pytest.mark.parametrize("act", [F.relu, F.relu6, lambda x: x.clamp(0, 1), nn.Hardtanh()])
def test_a_saturating_activation_belongs_to_the_operator_before(act: object) -> None:
    ops, _ = placed(lambda m, x: m.c(act(m.a(x))))
    assert len(ops) == 3
    assert ops[1] in ("relu", "relu6", "clamp", "hardtanh")


def test_an_activation_whose_input_is_read_elsewhere_is_not_fused() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.c(torch.relu(y)) + y

    assert placed(forward)[0] == ["placeholder", "conv2d", "relu", "conv2d", "add"]


def test_a_float_activation_is_quantized_on_both_sides() -> None:
    assert placed(lambda m, x: m.c(F.hardswish(m.a(x))))[0] == ["placeholder", "conv2d", "hardswish", "conv2d"]


def test_both_inputs_of_an_add_and_its_result_are_quantized_once() -> None:
    ops, placement = placed(lambda m, x: torch.relu(m.a(x) + m.b(x)))
    assert ops == ["placeholder", "conv2d", "conv2d", "relu"]
    assert len(set(groups(placement))) == 4


def test_parts_of_a_concatenation_share_one_scale() -> None:
    ops, placement = placed(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)[:, :4]))
    assert ops == ["placeholder", "conv2d", "conv2d", "cat", "slice", "slice", "conv2d"]
    scales = groups(placement)
    assert len(set(scales[1:6])) == 1
    assert len(set(scales)) == 3


def test_a_relu_beside_signed_parts_keeps_a_scale_of_its_own() -> None:
    """Its zero point must be 0 for the runtime to do it by saturation."""
    _, placement = placed(lambda m, x: m.c(torch.cat([F.max_pool2d(torch.relu(m.a(x)), 1), m.b(x)], 1)[:, :4]))
    scales = dict(zip(["x", "relu", "pool", "b", "cat"], groups(placement), strict=False))
    assert scales["relu"] == scales["pool"]
    assert scales["b"] == scales["cat"] != scales["relu"]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.max_pool2d(x, 2),
        lambda x: x.flatten(2).view(x.shape),
        lambda x: x.transpose(2, 3),
        lambda x: F.dropout(x, training=False),
    ],
)
def test_what_only_moves_values_keeps_the_scale(move: object) -> None:
    _, placement = placed(lambda m, x: m.c(move(m.a(x))))
    scales = groups(placement)
    assert len(set(scales)) == 3
    assert scales[1] == scales[-2]


def test_a_split_keeps_the_scale_in_both_parts() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        left, right = m.a(x).chunk(2, 1)
        return left + right

    ops, placement = placed(forward)
    assert ops == ["placeholder", "conv2d", "getitem", "getitem", "add"]
    assert len(set(groups(placement)[1:4])) == 1


def test_pools_over_space_have_a_scale_of_their_own() -> None:
    _, placement = placed(lambda m, x: m.head(m.a(x).mean((2, 3))))
    assert len(set(groups(placement))) == 3
    _, placement = placed(lambda m, x: m.head(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)))
    assert groups(placement)[2] == groups(placement)[3]  # the flattened one
    assert len(set(groups(placement))) == 3


def test_the_last_linear_layers_result_stays_float_but_the_last_convolutions_does_not() -> None:
    assert placed(lambda m, x: m.head(m.a(x).mean((2, 3))))[0] == ["placeholder", "conv2d", "mean"]
    assert placed(lambda m, x: m.a(x))[0] == ["placeholder", "conv2d"]


def test_sums_with_constants_and_scalars_stay_float() -> None:
    assert placed(lambda m, x: m.a(x) * m.constant + 1.0)[0] == ["placeholder", "conv2d"]


def test_sums_of_float_results_stay_float() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        y = m.a(x)
        return F.gelu(y) + torch.tanh(y)

    assert placed(forward)[0] == ["placeholder", "conv2d"]


def test_a_gate_is_multiplied_in_integers() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.c(y * torch.sigmoid(y.mean((2, 3), keepdim=True)))

    assert placed(forward)[0] == ["placeholder", "conv2d", "mean", "sigmoid", "mul", "conv2d"]


def test_transposed_convolutions_stay_float_on_onnxruntime_with_a_note() -> None:
    _, placement = placed(lambda m, x: m.t(m.a(x)))
    assert [item.name for item in placement.weights] == ["a.weight"]
    assert any("t stays in float: onnxruntime has no integer" in note for note in placement.notes)


def test_the_generic_target_quantizes_inputs_and_weights_only() -> None:
    ops, placement = placed(lambda m, x: m.t(torch.relu(m.a(x))), target="generic")
    assert ops == ["placeholder", "relu"]
    assert [(item.name, item.axis) for item in placement.weights] == [("a.weight", 0), ("t.weight", 1)]


def test_skipped_layers_stay_float_and_are_named() -> None:
    ops, placement = placed(lambda m, x: m.c(m.a(x)), skip=("c",))
    assert ops == ["placeholder", "conv2d"]
    assert [item.name for item in placement.weights] == ["a.weight"]
    assert "c stays in float: it is skipped" in placement.notes


def test_a_pattern_that_matches_nothing_lists_the_layers() -> None:
    with pytest.raises(PatternError, match="'heads' matches no layer") as caught:
        placed(lambda m, x: m.head(m.a(x).mean((2, 3))), skip=("heads",))
    assert "'head'" in str(caught.value.hint)


def test_an_unknown_target_has_a_close_match() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_target("onnx-runtime")
    assert "'onnxruntime'" in str(caught.value.hint)


def test_a_weight_used_twice_is_one_place() -> None:
    _, placement = placed(lambda m, x: m.c(m.c(m.a(x))))
    assert [(item.name, len(item.layers)) for item in placement.weights] == [("a.weight", 1), ("c.weight", 2)]


def test_a_placement_is_json_and_back() -> None:
    _, placement = placed(lambda m, x: m.c(m.a(x)))
    again = read_placement(placement.to_json())
    assert (again.activations, again.weights) == (placement.activations, placement.weights)
