"""A prepared model is a module like any other: it trains, copies, averages, switches modes, saves and resumes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from qat_cases import mixed, train
from quant_nets import pictures, trained
from torch import Tensor, nn

from slim_core import checkpoint
from slim_core.tasks import ClassificationTask
from slim_core.training import FitConfig, FitState, fit
from slim_core.training.callbacks import Callback
from slim_core.training.ema import Ema
from slim_core.workload import Workload
from slim_quant import Scheme, convert, prepare_qat
from slim_quant.qat import (
    FloatTeacher,
    QATSchedule,
    clipping_penalty,
    freeze_batch_norms,
    freeze_observers,
    phase_of,
    set_phase,
    transform_of,
)
from slim_quant.qat.activations import ClippingQuantizer, MovingAverageQuantizer

X = pictures(8, 1)[0]
QUANTIZERS = ["moving_average", "lsq", "lsq+", "pact"]


def ranges(model: nn.Module) -> list[float]:
    return [float(module.high) for module in model.modules() if isinstance(module, MovingAverageQuantizer)]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_parameter_learns(quantizer: str) -> None:
    model = prepare_qat(mixed(), (X,), quantizer=quantizer, weight=Scheme(4, True, "per_channel"))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, 8, lr=0.05, classes=4)
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    still = [name for name in still if name != "up_norm.bias"]  # the next batch norm takes it out again
    clips = {name for name in still if quantizer == "pact" and name.endswith("ratio")}  # where nothing is clipped
    assert set(still) == clips


def test_the_range_is_a_moving_average_of_the_extremes_of_the_batches() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    model = prepare_qat(net, (X,), decay=0.8).train()
    batches = [pictures(16, seed)[0] for seed in range(4)]
    for batch in batches:
        model(batch)
    low, high = float(batches[0].min()), float(batches[0].max())  # the first one sets it, and is then averaged in too
    for batch in batches:
        low, high = 0.8 * low + 0.2 * float(batch.min()), 0.8 * high + 0.2 * float(batch.max())
    (found,) = [item for item in model.modules() if isinstance(item, MovingAverageQuantizer)]
    assert (float(found.low), float(found.high)) == pytest.approx((low, high), rel=1e-5)


def test_a_batch_that_is_not_finite_does_not_spoil_the_range() -> None:
    model = prepare_qat(mixed(), (X,), calibration=[X]).train()
    before = ranges(model)
    model(torch.full_like(X, float("nan")))
    assert ranges(model) == before


def test_live_batch_norm_keeps_its_running_statistics_as_float_training_does() -> None:
    """Bits so many that rounding does not show: running statistics equal those of the float model."""
    net = mixed()
    model = prepare_qat(net, (X,), calibration=[X])
    set_phase(model, quantize=False)
    model.train()
    net.train()
    torch.manual_seed(1)
    expected = net(X)
    torch.manual_seed(1)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
    for name, buffer in net.named_buffers():
        if "running" in name:
            torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_folding_with_the_batch_gives_what_live_batch_norm_gives(granularity: str) -> None:
    """In float both are batch normalization; quantized, they differ by a few steps at most."""
    outputs = []
    for batch_norm in ("live", "batch"):
        model = prepare_qat(
            mixed(), (X,), calibration=[X], batch_norm=batch_norm, weight=Scheme(8, True, granularity)
        ).train()
        set_phase(model, quantize=False)
        torch.manual_seed(1)
        outputs.append(model(X))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)


def test_frozen_batch_norm_trains_what_is_deployed() -> None:
    model = prepare_qat(mixed(), (X,), calibration=[X])
    model.get_submodule("activation_quantizer")
    freeze_batch_norms(model)
    freeze_observers(model)
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    simulated = model.eval()(X)
    for node in model.graph.nodes:  # without dropout, training computes what evaluation does
        if node.target == torch.ops.aten.dropout.default:
            node.args = (node.args[0], 0.0, node.args[2])
    model.get_submodule("alone")
    trains = model.train()(X)
    own = dict(model.named_buffers())
    folded = [name for name in statistics if not name.startswith("alone")]
    assert all(torch.equal(own[name], statistics[name]) for name in folded)
    assert trains.shape == simulated.shape
    before = ranges(model)
    model(10 * X)
    assert ranges(model) == before


def test_modes_lose_neither_eps_nor_momentum_nor_dropout() -> None:
    model = prepare_qat(mixed(), (X,), calibration=[X])
    for _ in range(3):
        model.train()
        model.eval()
    model.train()
    norm = model.get_submodule("first_norm.live_norm").norm
    assert (norm.eps, norm.momentum) == (1e-2, 0.3)
    drops = [node.args[1:] for node in model.graph.nodes if node.target == torch.ops.aten.dropout.default]
    assert drops == [(0.25, True)]
    plain = convert(model).model
    expected = prepare_qat(mixed(), (X,), calibration=[X]).eval()(X)
    assert torch.equal(plain(X), expected)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_copy_computes_the_same_and_lives_its_own_life(quantizer: str) -> None:
    model = prepare_qat(mixed(), (X,), quantizer=quantizer)
    train(model, 2, classes=4)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eval()(X), model.eval()(X))
    kept = model(X)
    train(twin, 2, classes=4)
    freeze_observers(twin)
    assert phase_of(model).observe
    assert torch.equal(model(X), kept)
    assert not torch.equal(twin.eval()(X), kept)


def test_a_state_dict_carries_ranges_and_switches() -> None:
    model = prepare_qat(mixed(), (X,), quantizer="lsq+")
    train(model, 2, classes=4)
    freeze_batch_norms(model)
    other = prepare_qat(mixed(), (X,), quantizer="lsq+")
    other.load_state_dict(model.state_dict())
    assert phase_of(other) == phase_of(model)
    assert torch.equal(other.eval()(X), model.eval()(X))


def test_averaged_weights_are_quantized_with_averaged_ranges() -> None:
    model = prepare_qat(mixed(), (X,), quantizer="moving_average")
    train(model, 1, classes=4)
    average = Ema(model, 0.5)
    for _ in range(2):
        train(model, 1, lr=0.05, classes=4)
        average.update(model)
    before = model.eval()(X)
    with average.applied(model):
        averaged = model(X)
        assert torch.equal(convert(model).model(X), averaged)
    assert not torch.equal(averaged, before)
    assert torch.equal(model(X), before)


def workload(net: nn.Module, quantizer: str = "moving_average", **options: object) -> Workload:
    batches = [pictures(32, 900 + index) for index in range(3)]
    model = prepare_qat(net, (X,), quantizer=quantizer, **options)
    whole = Workload(net, (X,), ClassificationTask(), train=batches, val=[pictures(128, 77)])
    return whole.with_model(model, transform_of(model))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_prepared_model_is_saved_and_goes_on_exactly(tmp_path: Path, quantizer: str) -> None:
    start = workload(mixed(), quantizer)
    train(start.model, 2, classes=4)
    freeze_observers(start.model)
    checkpoint.save(start, tmp_path / "half.safetensors")
    loaded = checkpoint.load(tmp_path / "half.safetensors", factory=mixed).model
    assert phase_of(loaded) == phase_of(start.model)
    results = []
    for model in (start.model, loaded):
        torch.manual_seed(5)
        train(model, 2, classes=4)
        results.append(convert(model).model(X))
    assert torch.equal(results[0], results[1])


class Interrupt(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_start(self, state: FitState) -> None:
        if state.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("quantizer", ["moving_average", "lsq"])
def test_fit_resumes_bit_for_bit(tmp_path: Path, quantizer: str) -> None:
    config = FitConfig(epochs=4, lr=0.005, ema=0.9)
    start = workload(trained(), quantizer)
    whole = fit(start, config, callbacks=[QATSchedule(), Interrupt(9)], folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(start, config, callbacks=[QATSchedule(), Interrupt(2)], folder=tmp_path / "parts")
    parts = fit(start, config, callbacks=[QATSchedule(), Interrupt(9)], folder=tmp_path / "parts")
    assert parts.resumed_at == 2
    one, other = whole.workload.model.state_dict(), parts.workload.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


class Record(Callback):
    def __init__(self) -> None:
        self.phases: list[tuple[bool, bool, bool]] = []

    def on_step_start(self, state: FitState) -> None:
        phase = phase_of(state.model)
        self.phases.append((phase.quantize, phase.observe, phase.live_batch_norm))


def test_the_schedule_switches_at_its_shares() -> None:
    record = Record()
    schedule = QATSchedule(start=0.25, freeze_batch_norm=0.5, freeze_observers=0.75)
    fit(workload(trained()), FitConfig(epochs=4, lr=0.001), callbacks=[schedule, record])
    shares = [step / 12 for step in range(12)]
    assert record.phases == [(share >= 0.25, share < 0.75, share < 0.5) for share in shares]


def test_distillation_adds_the_divergence_from_the_float_model() -> None:
    net = trained()
    teacher = FloatTeacher(net, weight=0.25, temperature=3.0)
    student, logits = torch.randn(6, 10), net(pictures(6, 3)[0]).detach()
    state = FitState(
        net, torch.optim.SGD(net.parameters()), ClassificationTask(), FitConfig(), torch.device("cpu"), 1, 1
    )
    teacher.on_fit_start(state)
    assert state.task_weight == 0.75
    found = teacher.loss(student, pictures(6, 3), state)
    p, q = (torch.softmax(item.double() / 3, 1) for item in (logits, student))
    assert float(found) == pytest.approx(float(0.25 * 9 * (p * (p / q).log()).sum(1).mean()), rel=1e-5)


def test_with_distillation_outputs_stay_closer_to_the_float_model() -> None:
    net = trained()
    x = pictures(256, 78)[0]
    distances = []
    for callbacks in ([], [FloatTeacher(net, weight=1.0)]):
        start = workload(net, "lsq", weight=Scheme(3, True, "per_channel"), activation=Scheme(4, False))
        result = fit(start, FitConfig(epochs=6, lr=0.01), callbacks=[QATSchedule(), *callbacks])
        difference = torch.log_softmax(result.workload.model.eval()(x), 1) - torch.log_softmax(net(x), 1)
        distances.append(float(difference.square().mean().detach()))
    assert distances[1] < distances[0]


def test_the_penalty_of_pact_is_half_lambda_times_the_squares_and_draws_them_down() -> None:
    model = prepare_qat(mixed(), (X,), quantizer="pact", calibration=[X])
    alphas = [module.alpha() for module in model.modules() if isinstance(module, ClippingQuantizer)]
    penalty = clipping_penalty(model, 0.01)
    assert float(penalty.detach()) == pytest.approx(
        0.005 * sum(float(alpha.detach()) ** 2 for alpha in alphas), rel=1e-5
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty.backward()
    optimizer.step()
    moved = [module.alpha() for module in model.modules() if isinstance(module, ClippingQuantizer)]
    for before, after in zip(alphas, moved, strict=True):
        assert float(after.detach()) == pytest.approx(float(before.detach()) * (1 - 0.1 * 0.01), rel=1e-5)


def test_an_adaptive_optimizer_moves_scales_by_shares_of_themselves() -> None:
    model = prepare_qat(mixed(), (X,), quantizer="lsq", calibration=[X]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    labels = pictures(8, 1)[1] % 4
    nn.functional.cross_entropy(model(X), labels).backward()
    optimizer.step()
    ratios = torch.cat([value.detach().flatten() for name, value in model.named_parameters() if name.endswith("ratio")])
    assert float((ratios - 1).abs().max()) <= 0.0101


def test_mixed_precision_training_runs() -> None:
    result = fit(workload(trained(), "lsq"), FitConfig(epochs=1, lr=0.001, amp=True), callbacks=[QATSchedule()])
    x = pictures(64, 9)[0]
    model = result.workload.model.eval()
    assert torch.equal(convert(model).model(x), model(x))


def test_training_recovers_what_few_bits_lose() -> None:
    net = trained()
    x, labels = pictures(1024, 79)
    options = {"weight": Scheme(2, True, "per_channel"), "activation": Scheme(3, False)}
    start = workload(net, "lsq", calibration=[pictures(64, 5)[0]], **options)

    def right(model: nn.Module) -> float:
        return float((model.eval()(x).argmax(1) == labels).float().mean())

    before = right(start.model)
    after = right(fit(start, FitConfig(epochs=12, lr=0.01), callbacks=[QATSchedule()]).workload.model)
    assert after > before + 0.02


def test_inputs_by_name_are_understood() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.one(a) + self.two(b)

    inputs = {"a": torch.randn(5, 4), "b": torch.randn(5, 4)}
    model = prepare_qat(Named(), inputs).train()
    model(**inputs).sum().backward()
    assert torch.equal(convert(model).model(**inputs), model.eval()(**inputs))
