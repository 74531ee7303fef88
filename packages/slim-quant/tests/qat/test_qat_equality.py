"""The converted model is the trained simulation, to the bit, and the int8 file agrees with it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from qat_cases import mixed, train
from quant_nets import Residual, pictures, settle
from torch import nn

from slim_core import checkpoint
from slim_core.errors import DataError, ModelError
from slim_core.export import to_onnx
from slim_core.workload import Workload
from slim_quant import Override, Scheme, compare, convert, prepare_qat, quantize
from slim_quant.insert import is_quantized
from slim_quant.qat import convert_dynamic, initialize, phase_of, set_phase

X = pictures(8, 1)[0]


@pytest.mark.parametrize("batch_norm", ["live", "batch", "folded"])
@pytest.mark.parametrize("quantizer", ["moving_average", "lsq", "lsq+", "pact"])
def test_the_converted_model_is_the_simulation_to_the_bit(quantizer: str, batch_norm: str) -> None:
    model = prepare_qat(mixed(), (X,), quantizer=quantizer, batch_norm=batch_norm)
    train(model, 2, classes=4)
    simulated = model.eval()(X)
    result = convert(model, [X])
    assert is_quantized(result.model)
    assert torch.equal(result.model(X), simulated)
    assert result.report.sqnr_db is not None
    assert result.report.sqnr_db > 10


@pytest.mark.parametrize(("target", "weight"), [
    ("onnxruntime", Scheme(8, True, "per_tensor")), ("onnxruntime", Scheme(4, False, "per_channel")),
    ("openvino", Scheme(8, True, "per_channel")), ("generic", Scheme(3, True, "per_tensor")),
])  # fmt: skip
@pytest.mark.parametrize("quantizer", ["moving_average", "lsq"])
def test_so_it_is_with_other_schemes_and_targets(target: str, weight: Scheme, quantizer: str) -> None:
    model = prepare_qat(mixed(), (X,), quantizer=quantizer, target=target, weight=weight)
    train(model, 2, classes=4)
    simulated = model.eval()(X)
    assert torch.equal(convert(model).model(X), simulated)


def test_overrides_and_skips_reach_the_graph() -> None:
    group = Override(op="linear", weight=Scheme(4, True, "per_group", 4), activation=Scheme(6, False))
    model = prepare_qat(mixed(), (X,), overrides=[group], skip=["down"], quantizer="lsq")
    train(model, 1, classes=4)
    simulated = model.eval()(X)
    result = convert(model)
    assert torch.equal(result.model(X), simulated)
    schemes = result.transform.data["schemes"]
    assert "down.weight" not in schemes
    assert schemes["head.weight"]["group_size"] == 4
    assert {"bits": 6, "symmetric": False, "granularity": "per_tensor"} in result.transform.data["activations"].values()


def test_before_training_it_is_what_post_training_quantization_gives() -> None:
    net = mixed()
    trained = convert(prepare_qat(net, (X,), calibration=[X], observer="min_max")).model.state_dict()
    posterior = quantize(net, [X], example_inputs=(X,), observer="min_max", samples=8).model.state_dict()
    assert trained.keys() == posterior.keys()
    for name, value in posterior.items():
        if "activation_quant" in name and name.endswith("scale"):  # ranges are seen behind quantized weights here
            torch.testing.assert_close(trained[name], value, rtol=5e-3, atol=0)
        elif name.endswith(("weight", "weight_scale")):
            assert torch.equal(trained[name], value), name


def test_the_int8_file_agrees_with_the_simulation(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = prepare_qat(settle(Residual(), X), (X,), quantizer="lsq")
    train(model, 3)
    result = convert(model.eval(), [X])
    to_onnx(result.model, (X[:1],), tmp_path / "model.onnx")
    found = compare(model, tmp_path / "model.onnx", [pictures(32, 50 + index)[0] for index in range(8)])
    assert found.agreement >= 99.5
    assert found.sqnr_db > 30


def test_the_converted_model_is_stored_as_integers_and_loads_again(tmp_path: Path) -> None:
    model = prepare_qat(mixed(), (X,), quantizer="lsq+")
    train(model, 2, classes=4)
    result = convert(model)
    workload = Workload(mixed(), (X[:2],)).with_model(result.model, result.transform)
    header = checkpoint.save(workload, tmp_path / "model.safetensors")
    assert header.tensors["down.weight"].packing is not None
    loaded = checkpoint.load(tmp_path / "model.safetensors", factory=mixed)
    assert torch.equal(loaded.model(X), result.model(X))


def test_converting_changes_nothing_and_can_be_done_again() -> None:
    model = prepare_qat(mixed(), (X,), calibration=[X]).train()
    before = copy.deepcopy(model.state_dict())
    first, second = convert(model), convert(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(first.model(X), second.model(X))


def test_a_model_without_ranges_is_not_converted() -> None:
    model = prepare_qat(mixed(), (X,))
    with pytest.raises(ModelError, match="no ranges") as caught:
        convert(model)
    assert "initialize" in str(caught.value.hint)
    assert initialize(model, [X, X]) == 16
    assert phase_of(model).ready
    convert(model)


def test_what_was_never_trained_with_quantization_is_said() -> None:
    model = prepare_qat(mixed(), (X,), calibration=[X])
    set_phase(model, quantize=False)
    assert any("had not begun" in note for note in convert(model).report.notes)


def test_other_models_are_refused() -> None:
    with pytest.raises(ModelError, match="not prepared"):
        convert(nn.Linear(2, 2))
    prepared = prepare_qat(mixed(), (X,), calibration=[X])
    with pytest.raises(ModelError, match="already"):
        prepare_qat(prepared, (X,))
    with pytest.raises(ModelError, match="quantized already"):
        quantize(prepared, [X], example_inputs=(X,))


class TestDynamic:
    """Scales of the batch at hand."""

    @pytest.fixture
    def linear(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))

    def test_the_scale_is_that_of_the_batch(self, linear: nn.Module) -> None:
        model = prepare_qat(linear, (torch.randn(4, 12),), strategy="dynamic").eval()
        x = torch.randn(4, 12)
        assert torch.allclose(model(1000 * x), linear(1000 * x), rtol=0.02, atol=20)  # a fixed scale would saturate

    def test_trained_linear_layers_become_integer_products(self, linear: nn.Module) -> None:
        x = torch.randn(16, 12)
        model = prepare_qat(linear, (x,), strategy="dynamic")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()(x).square().mean().backward()
        optimizer.step()
        result = convert_dynamic(model, linear, (x,))
        torch.testing.assert_close(result.model(x), model.eval()(x), rtol=0, atol=1e-5)
        assert not torch.allclose(result.model(x), linear(x), atol=1e-4)

    def test_convolutions_get_fixed_scales_from_batches(self) -> None:
        model = prepare_qat(mixed(), (X,), strategy="dynamic", quantizer="lsq")
        train(model, 2, classes=4)
        with pytest.raises(DataError, match="needs batches"):
            convert(model)
        with pytest.raises(ModelError, match="no dynamic int8 form"):
            convert_dynamic(model, mixed(), (X,))
        result = convert(model, [X])
        assert any("scales of each batch" in note for note in result.report.notes)
        assert result.report.sqnr_db > 15
