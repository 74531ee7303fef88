"""Post-training quantization: values on their grids, scales against hand computation, errors."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from slim_core.errors import DataError, ModelError, SlimError, UnknownNameError
from slim_quant import Scheme, quantize
from slim_quant.schemes import sqnr_db


def noise(count: int = 4, batch: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, 16, 16, generator=generator) for _ in range(count)]


def test_weights_are_on_the_grid_of_their_scales(net: nn.Module, x: Tensor) -> None:
    result = quantize(net, noise(), example_inputs=(x,))
    state = result.model.state_dict()
    names = [name for name in state if name.endswith("weight_scale")]
    assert len(names) == 7
    for name in names:
        weight, scale = state[name.removesuffix("_scale")], state[name]
        shape = [-1] + [1] * (weight.dim() - 1)
        integers = torch.round(weight / scale.view(shape))
        assert torch.equal(integers * scale.view(shape), weight)
        assert integers.abs().max() == 127


def test_weight_scales_are_the_largest_folded_weight_over_127(net: nn.Module, x: Tensor) -> None:
    result = quantize(net, noise(), example_inputs=(x,))
    norm = net.stem_norm
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded = net.stem.weight * factor.view(-1, 1, 1, 1)
    expected = folded.abs().amax((1, 2, 3)) / 127
    torch.testing.assert_close(result.model.stem.weight_scale, expected.detach())


def test_activation_scales_are_those_of_the_observed_range(net: nn.Module, x: Tensor) -> None:
    batches = noise()
    result = quantize(net, batches, example_inputs=(x,), observer="min_max")
    values = torch.cat(batches)
    scale = result.model.get_buffer("activation_quant.x.scale")
    zero = result.model.get_buffer("activation_quant.x.zero_point")
    expected = (float(values.max()) - float(values.min())) / 255
    assert float(scale) == pytest.approx(expected)
    assert int(zero) == round(-float(values.min()) / expected)


def test_the_model_given_is_left_alone(net: nn.Module, x: Tensor) -> None:
    before = copy.deepcopy(net.state_dict())
    net.train()
    quantize(net, noise(), example_inputs=(x,))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_eight_bits_are_close_and_fewer_are_farther(net: nn.Module, x: Tensor) -> None:
    batches = noise()

    def quality(bits: int) -> float:
        result = quantize(net, batches, example_inputs=(x,), weight=Scheme(bits, True, "per_channel"))
        with torch.no_grad():
            return sqnr_db(net(batches[0]), result.model(batches[0]))

    eight, four, two = quality(8), quality(4), quality(2)
    assert eight > 30
    assert eight > four + 5
    assert four > two + 5


def test_the_report_has_one_row_per_layer_and_the_sqnr_of_the_output(net: nn.Module, x: Tensor) -> None:
    batches = noise()
    report = quantize(net, batches, example_inputs=(x,)).report
    assert [row["name"] for row in report.layers] == ["stem", "depthwise", "point", "left", "right", "hidden", "head"]
    assert {row["bits"] for row in report.layers} == {8}
    assert all(20 < row["sqnr_db"] < 80 for row in report.layers)
    assert report.layers[-1]["sqnr_db"] == report.sqnr_db
    assert report.samples == 64


def test_calibration_stops_at_the_number_of_samples(net: nn.Module, x: Tensor) -> None:
    taken = []

    def endless() -> object:
        for batch in noise(1000):
            taken.append(batch)
            yield batch

    report = quantize(net, endless(), example_inputs=(x,), samples=40).report
    assert report.samples == 40
    assert len(taken) == 3


def test_only_the_asked_samples_count(net: nn.Module, x: Tensor) -> None:
    batch = noise(1)[0]
    spoiled = batch.clone()
    spoiled[4:] = 1000
    one = quantize(net, [batch[:4]], example_inputs=(x,), samples=4)
    other = quantize(net, [spoiled], example_inputs=(x,), samples=4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    )


def test_a_dead_channel_is_exact(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        net.point.weight[3] = 0
        net.point.bias[3] = 0.7
    result = quantize(net, noise(), example_inputs=(x,))
    assert torch.isfinite(result.model(x)).all()
    assert float(result.model.point.weight[3].detach().abs().sum()) == 0


def test_a_large_bias_fits_into_int32(net: nn.Module, x: Tensor) -> None:
    """Its step is input scale times weight scale: a channel of tiny weights gets a wider scale."""
    with torch.no_grad():
        net.point.weight[3] *= 1e-9
        net.point.bias[3] = 5.0
    model = quantize(net, noise(), example_inputs=(x,)).model
    inputs = model.get_buffer("activation_quant.hardtanh.scale")
    steps = model.point.bias.detach().abs() / (inputs * model.point.weight_scale)
    assert float(steps.max()) < 2**31


def test_gradients_flow_so_that_it_can_be_trained(net: nn.Module, x: Tensor) -> None:
    model = quantize(net, noise(), example_inputs=(x,)).model
    model.train()(x).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())


def test_inputs_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.layer(left) - right

    model = Two()
    batch = {"right": torch.randn(8, 3), "left": torch.randn(8, 6)}
    result = quantize(model, [batch], example_inputs=batch)
    with torch.no_grad():
        assert sqnr_db(model(**batch), result.model(**batch)) > 30


def test_shared_layers_and_tied_weights_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(torch.relu(self.first(x)))))

    model = Tied()
    x = torch.randn(8, 6)
    result = quantize(model, [x], example_inputs=(x,))
    assert result.model.first.weight is result.model.second.weight
    assert set(result.transform.data["schemes"]) == {"first.weight", "second.weight"}
    with torch.no_grad():
        assert sqnr_db(model(x), result.model(x)) > 25


def test_a_quantized_model_is_refused(net: nn.Module, x: Tensor) -> None:
    result = quantize(net, noise(1), example_inputs=(x,))
    with pytest.raises(ModelError, match="quantized already"):
        quantize(result.model, noise(1), example_inputs=(x,))


def test_no_calibration_data_is_an_error(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(DataError, match="gives no batch"):
        quantize(net, [], example_inputs=(x,))


@pytest.mark.parametrize("observer", ["mse", "min_max"])
def test_values_that_are_not_finite_are_an_error(net: nn.Module, x: Tensor, observer: str) -> None:
    bad = noise(1)[0]
    bad[0, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        quantize(net, [bad], example_inputs=(x,), observer=observer)


def test_an_unknown_observer_is_an_error(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(UnknownNameError, match="unknown observer"):
        quantize(net, noise(1), example_inputs=(x,), observer="nope")


def test_a_model_that_answers_with_classes_is_quantized_without_a_figure_for_its_output(x: Tensor) -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 16 * 16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1)).argmax(1)

    result = quantize(Classes(), [x], example_inputs=(x,))
    assert result.report.sqnr_db is None
    assert [row["name"] for row in result.report.layers] == ["head"]
    assert result.report.layers[0]["sqnr_db"] > 20
    assert result.model(x).dtype == torch.int64


def test_activations_per_channel_are_refused_before_anything_runs(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(SlimError, match="activations cannot be quantized per channel"):
        quantize(net, [x], example_inputs=(x,), activation=Scheme(8, False, "per_channel"))
