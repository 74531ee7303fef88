"""The comparison layer by layer, against the same figures worked out the long way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from quant_nets import Residual, pictures, settle
from torch import Tensor, nn

import slim_quant
from slim_core.errors import DataError, ModelError, PatternError
from slim_core.graph.export import ExportedModel, export_graph
from slim_core.report.plots import Bars, Histogram, read_plots
from slim_quant import QuantResult, quantize
from slim_quant.diff.counts import coarse
from slim_quant.diff.found import Diff, read
from slim_quant.diff.show import drawing, lines
from slim_quant.diff.sums import Sums
from slim_quant.fold import fold_batch_norms
from slim_quant.graph import get_tensor, op_name, tap
from slim_quant.observers import Histogram as Streaming
from slim_quant.schemes import sqnr_db
from slim_quant.targets import CLIPPING

X = pictures(24, 3)[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return settle(Residual(), X)


@pytest.fixture(scope="module")
def result(model: nn.Module) -> QuantResult:
    return quantize(model, [X], example_inputs=(X[:1],), observer="percentile")


@pytest.fixture(scope="module")
def found(model: nn.Module, result: QuantResult) -> Diff:
    return slim_quant.diff(model, result, [X[:10], X[10:]])


@pytest.fixture(scope="module")
def plain(model: nn.Module) -> ExportedModel:
    graph = export_graph(model, (X[:1],))
    fold_batch_norms(graph)
    return graph


def value(graph: ExportedModel, name: str) -> Tensor:
    found: dict[str, Tensor] = {}
    tap(graph, X, {name: lambda tensor: found.__setitem__(name, tensor)})
    return found[name]


def test_errors_in_the_model_are_those_of_both_models_run_whole(
    found: Diff, result: QuantResult, plain: ExportedModel
) -> None:
    nodes = {node.name: node for node in result.model.graph.nodes}
    for layer in found.layers:
        users = list(nodes[layer.node].users)
        end = (
            users[0].name if len(users) == 1 and op_name(users[0]) in CLIPPING else layer.node
        )  # as one with the layer
        rounding = [user.name for user in nodes[end].users if "fake_quantize" in user.name]
        expected = sqnr_db(value(plain, end), value(result.model, rounding[0] if rounding else end))
        assert layer.sqnr_db == pytest.approx(expected, abs=0.006), layer.name


def test_a_layer_alone_reads_the_float_models_values(found: Diff, result: QuantResult, plain: ExportedModel) -> None:
    nodes = {node.name: node for node in result.model.graph.nodes}
    layer = next(layer for layer in found.layers if layer.name == "point")
    node = nodes[layer.node]

    def rounded(values: Tensor, fake: torch.fx.Node) -> Tensor:
        scale, zero_point = (get_tensor(result.model, str(item.target)) for item in fake.args[1:3])
        return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, *fake.args[3:5])

    read = rounded(value(plain, node.args[0].args[0].name), node.args[0])
    weight, bias = get_tensor(result.model, "point.weight"), get_tensor(result.model, "point.bias")
    own = rounded(nn.functional.conv2d(read, weight, bias), next(iter(node.users)))
    assert layer.alone_db == pytest.approx(sqnr_db(value(plain, layer.node), own), abs=0.006)


def test_errors_alone_of_the_first_layer_are_all_there_are(found: Diff) -> None:
    assert found.layers[0].alone_db == found.layers[0].sqnr_db
    assert sum(layer.alone_db > layer.sqnr_db for layer in found.layers) >= 6


def test_weights_and_their_channels(found: Diff, result: QuantResult, plain: ExportedModel) -> None:
    layer = next(layer for layer in found.layers if layer.name == "right")
    before, after = get_tensor(plain, "right.weight"), get_tensor(result.model, "right.weight")
    assert layer.weight_db == pytest.approx(sqnr_db(before, after), abs=0.006)
    assert (layer.weight_bits, layer.activation_bits) == (8, 8)
    rounding = next(iter({node.name: node for node in result.model.graph.nodes}[layer.node].users)).name
    one, other = value(plain, layer.node), value(result.model, rounding)
    figures = [sqnr_db(one[:, channel], other[:, channel]) for channel in range(one.shape[1])]
    assert layer.worst_channel == int(np.argmin(figures))
    assert layer.worst_channel_db == pytest.approx(min(figures), abs=0.006)


def test_where_values_lie_and_what_is_clipped(found: Diff, plain: ExportedModel) -> None:
    seen = 0
    for item in found.tensors:
        if item.kind != "activation":
            continue
        values = value(plain, item.name).double().numpy().reshape(-1)
        step = (item.threshold_high - item.threshold_low) / 255
        outside = (values < item.threshold_low - step / 2) | (values > item.threshold_high + step / 2)
        assert item.clipped == pytest.approx(outside.mean(), abs=2 / values.size)  # batches of another size round anew
        assert (item.low, item.high) == pytest.approx((values.min(), values.max()), rel=1e-5)
        assert sum(item.counts) == values.size
        expected, _ = np.histogram(values, np.array(item.edges))
        assert np.abs(expected - np.array(item.counts)).sum() <= 0.002 * values.size  # values on an edge
        seen += item.clipped > 0
    assert seen >= 3  # the percentile observer clips


def test_thresholds_of_weights_are_those_of_their_channels(found: Diff, result: QuantResult) -> None:
    item = next(item for item in found.tensors if item.name == "right.weight")
    scale = get_tensor(result.model, "right.weight_scale")
    assert item.threshold_high == pytest.approx(127 * float(scale.max()))
    assert item.clipped == 0
    assert item.readers == ("right",)


def test_batches_of_other_sizes_change_nothing(model: nn.Module, result: QuantResult, found: Diff) -> None:
    other = slim_quant.diff(model, result, list(X.split(5)))
    for one, two in zip(found.layers, other.layers, strict=True):
        assert one.sqnr_db == pytest.approx(two.sqnr_db, abs=0.02)
        assert one.alone_db == pytest.approx(two.alone_db, abs=0.02)
    assert [item.counts for item in found.tensors if item.name == "x"] == [
        item.counts for item in other.tensors if item.name == "x"
    ]


def test_only_the_values_of_one_batch_are_alive(model: nn.Module, result: QuantResult, plain: ExportedModel) -> None:
    from slim_quant.diff.lockstep import Lockstep

    lockstep = Lockstep(plain, result.model)
    freed = [key for keys in lockstep._last for key in keys]
    assert len(freed) == len(set(freed))
    made = {("float", node.name) for line, node in lockstep._steps if line == "float"}
    assert made <= set(freed)


def test_equalized_channels_are_recognized(model: nn.Module) -> None:
    result = quantize(model, [X], example_inputs=(X[:1],))
    factor = torch.full((16,), 4.0)
    sums, plain_sums = Sums(1), Sums(1)
    one = torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.01
    sums.update(one, (one + noise) * factor.view(-1, 1, 1))
    plain_sums.update(one, one + noise)
    assert sums.rescaled()
    assert not plain_sums.rescaled()
    assert sums.sqnr_of_shape() == pytest.approx(plain_sums.sqnr_db(), abs=0.1)
    assert not any(layer.rescaled for layer in slim_quant.diff(model, result, [X]).layers)


def test_it_is_json_and_comes_back(found: Diff) -> None:
    again = read(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found


def test_plots_show_the_figures(found: Diff) -> None:
    plots = read_plots(found.plots())
    bars = [plot for plot in plots if isinstance(plot, Bars)]
    assert [(row.name, row.value) for row in bars[0].rows] == [(layer.name, layer.alone_db) for layer in found.layers]
    histograms = [plot for plot in plots if isinstance(plot, Histogram)]
    assert len(histograms) == len(found.tensors)
    assert histograms[0].marks[1][1] == found.tensors[0].threshold_high
    document = drawing(found, histograms=2)
    assert document.count('role="img"') == 4
    assert any(line.startswith("worst alone") for line in lines(found))


def test_the_worst_layers_come_first(found: Diff) -> None:
    figures = [layer.alone_db for layer in found.worst(4)]
    assert figures == sorted(layer.alone_db for layer in found.layers)[:4]


def test_coarse_histograms_lose_no_count() -> None:
    histogram = Streaming()
    values = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    histogram.update(values)
    edges, counts = coarse(histogram, 64)
    assert sum(counts) == 5000
    assert len(counts) <= 64
    assert edges[0] <= float(values.min())
    assert float(values.max()) <= edges[-1] + histogram.width


def test_what_cannot_be_compared(model: nn.Module, result: QuantResult) -> None:
    with pytest.raises(ModelError, match="second model is not quantized"):
        slim_quant.diff(model, model, [X])
    with pytest.raises(ModelError, match="first model is quantized too"):
        slim_quant.diff(result.model, result, [X])
    with pytest.raises(DataError, match="nothing to compare on"):
        slim_quant.diff(model, result, [])


def test_another_model_is_told_from_the_one_that_was_quantized(result: QuantResult) -> None:
    wider, other = Residual(), nn.Conv2d(3, 4, 1)
    wider.head = nn.Linear(wider.head.in_features, 7)
    with pytest.raises(ModelError, match=r"not the same: 'head\.bias' is \(7,\) in the float model and \(10,\)"):
        slim_quant.diff(wider, result, [X])
    with pytest.raises(ModelError, match=r"not the same: the quantized one has no '(weight|bias)'"):
        slim_quant.diff(other, result, [X])


def test_a_glob_that_matches_nothing_says_how_many_layers_there_are() -> None:
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(24)))
    with pytest.raises(PatternError, match=r"skip pattern 'none\*' matches no layer") as caught:
        quantize(deep, [X], example_inputs=(X[:1],), skip=["none*"])
    assert str(caught.value.hint).endswith(", 19 and 4 more")


def test_the_models_stay_as_they_are(model: nn.Module, result: QuantResult) -> None:
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    mode = model.training
    slim_quant.diff(model, result, [X[:4]])
    assert all(torch.equal(before[name], tensor) for name, tensor in result.model.state_dict().items())
    assert model.training == mode
