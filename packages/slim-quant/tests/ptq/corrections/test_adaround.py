"""AdaRound: against an exhaustive search, hard at the end, never worse than nearest, the same for the same seed."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from correction_nets import FOUR, Separable, as_read, calibrated, correct, images, uneven

from slim_core.errors import SlimError
from slim_quant import Scheme, quantize
from slim_quant.ptq.corrections import make_correction
from slim_quant.ptq.corrections.rounding import LearningOptions, SoftRounding, annealed
from slim_quant.schemes import on_grid


def correlated(samples: int, inputs: int, seed: int) -> Tensor:
    """Inputs with a common part: then the errors of several weights can cancel."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(samples, inputs, generator=generator)
    return own + 2 * torch.randn(samples, 1, generator=generator) + 0.5


def best(weight: Tensor, bias: Tensor, scale: Tensor, x: Tensor, wanted: Tensor, act: nn.Module) -> Tensor:
    """Return the least squared error of each output over all roundings up or down."""
    floor = torch.floor(weight / scale[:, None])
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=weight.shape[1])))
    found = []
    for row in range(len(weight)):
        rows = torch.clamp(floor[row] + choices, -7, 7) * scale[row]
        outputs = act(x @ rows.T + bias[row])
        found.append((outputs - wanted[:, row, None]).square().sum(0).min())
    return torch.stack(found)


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(), nn.Hardswish()])
def test_it_finds_what_an_exhaustive_search_finds(act: nn.Module) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 6), act)
    x = correlated(256, 8, 2)
    found = calibrated(model, x)
    graph = found.prepared.graph
    exact, bias = model[0].weight.detach(), model[0].bias.detach()
    scale, zero = found.weights["0.weight"]
    correct("adaround", found, iterations=500)
    seen = as_read(found, x)
    wanted = act(x @ exact.T + bias)

    def error(weight: Tensor) -> Tensor:
        return (act(seen @ weight.T + bias) - wanted).square().sum(0)

    learned = error(graph.state_dict()["0.weight"])
    nearest = error(on_grid(exact, scale, zero, FOUR))
    optimum = best(exact, bias, scale, seen, wanted, act)
    assert float(learned.sum()) <= 1.1 * float(optimum.sum())
    assert float(nearest.sum()) > 1.5 * float(optimum.sum())


@pytest.mark.parametrize("scheme", [
    FOUR, Scheme(3, True, "per_tensor"), Scheme(4, False, "per_channel"), Scheme(4, True, "per_group", 4),
])  # fmt: skip
def test_weights_are_on_their_grid_and_one_step_from_the_float_ones(scheme: Scheme) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3)), correlated(64, 10, 1)
    found = calibrated(model, x, scheme)
    correct("adaround", found, iterations=60)
    for place in found.prepared.placement.weights:
        weight = found.prepared.graph.state_dict()[place.name]
        scale, zero = found.weights[place.name]
        axis = place.along(scheme)
        assert torch.equal(on_grid(weight, scale, zero, scheme, axis), weight)
        wide = scale.repeat_interleave(4, 1)[:, : weight.shape[1]] if scheme.group_size else scale.reshape(-1, 1)
        assert bool(((weight - model.state_dict()[place.name]).abs() <= wide * (1 + 1e-4)).all())


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4, 8]))
def test_a_layer_is_never_worse_than_with_nearest_rounding(seed: int, bits: int) -> None:
    torch.manual_seed(seed)
    model, x = nn.Linear(6, 4), correlated(32, 6, seed)
    correction = make_correction({"name": "adaround", "iterations": 20, "lr": 0.3})
    found = calibrated(model, x, Scheme(bits, True, "per_channel"))
    from slim_quant.ptq.corrections import CorrectionContext

    correction(found.prepared, found, found.data, CorrectionContext())
    (learned,) = correction.learned  # type: ignore[attr-defined]
    assert learned.error <= learned.nearest
    assert learned.total == 24


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    torch.manual_seed(0)
    model, x = uneven(Separable()), images()

    def weights(seed: int) -> dict[str, Tensor]:
        found = calibrated(model, x)
        correct("adaround", found, seed=seed, iterations=40, lr=0.05)
        return {name: tensor.clone() for name, tensor in found.prepared.graph.state_dict().items()}

    one, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_network_comes_closer_to_the_float_one() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images(128)
    options = {"example_inputs": (x,), "weight": Scheme(3, True, "per_channel"), "samples": 128, "target": "generic"}
    plain = quantize(model, [x], **options).report.sqnr_db
    learned = quantize(model, [x], corrections=[{"name": "adaround", "iterations": 300}], **options).report
    assert learned.sqnr_db > plain + 1
    assert any("adaround" in note and "not rounded to nearest" in note for note in learned.notes)


def test_inserting_the_quantizers_moves_nothing() -> None:
    torch.manual_seed(0)
    model, x = Separable().eval(), images()
    found = calibrated(model, x)
    correct("adaround", found, iterations=30)
    before = {name: tensor.clone() for name, tensor in found.prepared.graph.state_dict().items()}
    from slim_quant.preparation import finish

    after = finish(found).model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_weight_that_several_layers_share_is_rounded_to_nearest_with_a_note() -> None:
    torch.manual_seed(0)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.inner(torch.relu(self.inner(x)))))

    model, x = Shared(), correlated(32, 4, 0)
    found = calibrated(model, x)
    context = correct("adaround", found, iterations=10)
    expected = on_grid(model.inner.weight.detach(), *found.weights["inner.weight"], FOUR)
    assert torch.equal(found.prepared.graph.state_dict()["inner.weight"], expected)
    assert any("inner.weight is rounded to nearest" in note for note in context.notes)


def test_progress_counts_every_step() -> None:
    from contextlib import contextmanager

    from slim_quant.ptq.corrections import CorrectionContext

    counted = {"total": 0.0, "done": 0.0}

    class Counting:
        @contextmanager
        def track(self, description: str, total: float | None = None):
            counted["total"] += total or 0
            yield self

        def advance(self, amount: float = 1.0, **fields: float | str) -> None:
            counted["done"] += amount

        def note(self, line: str) -> None: ...

    torch.manual_seed(0)
    found = calibrated(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), correlated(32, 4, 0))
    make_correction({"name": "adaround", "iterations": 120})(
        found.prepared, found, found.data, CorrectionContext(progress=Counting())
    )
    assert counted == {"total": 240, "done": 240}


def test_the_gradient_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    scale = weight.abs().amax(1) / 6  # some entries are clipped
    item = SoftRounding(weight, scale, torch.zeros(5, dtype=torch.int32), FOUR, 0)
    item.variable = torch.randn(5, 7, dtype=torch.float64) * 3
    given_ = torch.randn(5, 7, dtype=torch.float64)
    leaf = item.variable.clone().requires_grad_()
    shares = torch.clamp(torch.sigmoid(leaf) * 1.2 - 0.1, 0, 1)
    soft = torch.clamp(item.floor + shares, -7, 7) * scale[:, None]
    penalty = (1 - (2 * shares - 1).abs() ** 3.5).sum()
    ((soft * given_).sum() + 0.2 * penalty).backward()
    torch.testing.assert_close(item.gradient(given_, 3.5, 0.2), leaf.grad)
    torch.testing.assert_close(item.soft(), soft.detach())


def test_steps_are_those_of_torchs_adam() -> None:
    torch.manual_seed(0)
    item = SoftRounding(torch.randn(3, 4), torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int32), FOUR, 0)
    other = item.variable.clone().requires_grad_()
    adam = torch.optim.Adam([other], lr=0.05)
    for _ in range(5):
        gradient = torch.randn(3, 4)
        item.step(gradient, 0.05)
        other.grad = gradient
        adam.step()
    torch.testing.assert_close(item.variable, other.detach())


def test_the_soft_weight_starts_as_the_float_one() -> None:
    weight = torch.linspace(-0.69, 0.69, 24).view(3, 8)
    item = SoftRounding(weight, torch.full((3,), 0.1), torch.zeros(3, dtype=torch.int32), FOUR, 0)
    torch.testing.assert_close(item.soft(), weight, rtol=0, atol=2e-5)
    assert torch.equal(item.at(item.nearest), on_grid(weight, torch.full((3,), 0.1), torch.zeros(3), FOUR))


def test_the_exponent_falls_linearly_after_the_warmup() -> None:
    options = LearningOptions(iterations=101, warmup=0.0, beta=(20.0, 2.0))
    assert [annealed(step, options) for step in (0, 50, 100)] == [20.0, 11.0, 2.0]
    assert annealed(9, LearningOptions(iterations=100, warmup=0.1)) is None


@pytest.mark.parametrize("options", [{"iterations": 0}, {"lr": 0.0}, {"warmup": 1.0}, {"penalty": -1.0}, {"batch": 0}])
def test_options_out_of_range_are_errors(options: dict[str, float]) -> None:
    with pytest.raises(SlimError):
        make_correction({"name": "adaround", **options})


def test_fewer_samples_are_kept_where_memory_is_short() -> None:
    torch.manual_seed(0)
    model, x = Separable(channels=16).eval(), images(256, size=32)
    found = calibrated(model, x)
    context = correct("adaround", found, iterations=2, memory_mib=8, batch=16)
    (note,) = [line for line in context.notes if "8 MiB" in line]
    kept = int(note.split("corrected on ")[1].split()[0])
    # two networks, at least a 16-channel map of 32x32 in float32 each, beside the pictures
    assert 16 <= kept <= 8 * 2**20 / (2 * 16 * 32 * 32 * 4)


def test_columns_times_weight_are_the_layers_output() -> None:
    from slim_quant.preparation import prepare
    from slim_quant.ptq.corrections.columns import input_columns, is_product, output_columns

    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 4, 3, padding="same", groups=4), (2, 4, 5, 6)),
        (nn.Conv2d(4, 4, (1, 4), padding="same"), (2, 4, 5, 6)),
        (nn.Conv2d(4, 8, 1), (2, 4, 5, 6)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
        (nn.Linear(4, 5), (2, 3, 4)),
    ]
    for layer, shape in layers:
        x = torch.randn(shape)
        prepared = prepare(layer, (x,), target="generic")
        node = next(item for item in prepared.nodes.values() if item.op == "call_function" and is_product(item))
        weight = layer.weight.detach()
        columns = input_columns(node, {node.args[0]: x}, weight)
        rows = weight.reshape(len(columns), -1, columns.shape[1])
        with torch.no_grad():
            expected = output_columns(node, layer(x)) - layer.bias.view(len(columns), -1, 1)
        np.testing.assert_allclose((rows @ columns).numpy(), expected.numpy(), atol=1e-5)
