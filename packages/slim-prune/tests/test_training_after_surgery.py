"""Training goes on after surgery: step by step it is the training of the masked original, for every optimizer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import twin_hand as hand
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from slim_core.graph import analyse
from slim_core.testing.families import FAMILIES, build
from slim_core.testing.networks import Network
from slim_core.testing.strategies import kept_plans, networks
from slim_core.testing.workloads import TinyNet
from slim_core.training import Ema
from slim_prune.edits import edits_of, state_of
from slim_prune.rollback import Rollback
from slim_prune.surgery import operate, sliced

TOLERANCE = 1e-10  # relative to the largest value of a tensor; float64

relaxed = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes; the networks are small as they are
)


def cut_state(model: nn.Module, edits) -> dict[str, torch.Tensor]:
    """The state of a full model, cut by hand."""
    found = {}
    cuts = edits.by_name()
    for name, tensor in state_of(model).items():
        value = tensor.detach()
        for cut in cuts.get(name, ()):
            value = value.index_select(cut.dim, torch.from_numpy(cut.kept))
        found[name] = value
    return found


def assert_same_training(model, inputs, coupling, kept, name: str, *, steps: int = 3, eps=None, ema="none"):
    """Train, cut in place, go on; beside it, train at full size with masks. Compare after every step."""
    optimizer = hand.made(name, model, eps)
    for number in range(2):
        hand.train_step(model, optimizer, inputs, number)
    full, full_optimizer = hand.twin_of(model, optimizer, name, eps)
    averages = {"slim": (Ema(model, 0.9), Ema(full, 0.9)), "swa": (_averaged(model), _averaged(full))}.get(ema)
    edits = edits_of(model, coupling, kept)
    masks = hand.HandMasks(full, coupling, kept)
    operate(model, edits, optimizer=optimizer, ema=averages[0] if averages else None)
    masks.weights()
    masks.gradients()
    masks.state(full_optimizer)
    if averages:
        masks.average(_by_name(averages[1]))
    _compare(model, full, edits, optimizer, full_optimizer, averages, "at once")
    for number in range(2, 2 + steps):
        loss = hand.train_step(model, optimizer, inputs, number)
        expected = hand.train_step(full, full_optimizer, inputs, number, masks=masks)
        assert abs(loss - expected) <= TOLERANCE * max(1, abs(expected)), f"loss of step {number}"
        if averages:
            _update(averages[0], model)
            _update(averages[1], full)
            masks.average(_by_name(averages[1]))
        _compare(model, full, edits, optimizer, full_optimizer, averages, f"after step {number}")


def _averaged(model):
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def _by_name(average):
    return (
        average.average
        if isinstance(average, Ema)
        else dict(average.module.named_parameters()) | dict(average.module.named_buffers())
    )


def _update(average, model) -> None:
    average.update(model) if isinstance(average, Ema) else average.update_parameters(model)


def _compare(model, full, edits, optimizer, full_optimizer, averages, when: str) -> None:
    expected = cut_state(full, edits)
    for name, tensor in state_of(model).items():
        if not name.endswith("running_var"):  # of channels that consume masked ones only; compared through the outputs
            assert hand.same(tensor.detach(), expected[name], TOLERANCE), f"{name} {when}"
    cuts = edits.by_name()
    theirs = dict(full.named_parameters())
    for name, parameter in model.named_parameters():
        mine, other = optimizer.state.get(parameter, {}), full_optimizer.state.get(theirs[name], {})
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            if isinstance(value, torch.Tensor):
                whole = other[key]
                cut = sliced(whole, cuts[name]) if name in cuts and whole.shape == theirs[name].shape else whole
                assert hand.same(value, cut, TOLERANCE), f"{key} of {name} {when}"
            else:
                assert value == other[key], f"{key} of {name} {when}"
    if averages:
        mine, other = _by_name(averages[0]), _by_name(averages[1])
        for name, tensor in mine.items():
            cut = sliced(other[name].detach(), cuts[name]) if name in cuts else other[name].detach()
            assert hand.same(tensor.detach(), cut, TOLERANCE), f"average of {name} {when}"


def exact(coupling, kept):
    """Keep everything of groups over which a layer or group norm takes statistics: there masks and cuts differ."""
    return {g.name: kept[g.name] if g.exact else np.arange(g.units) for g in coupling.groups if g.name in kept}


@settings(relaxed, max_examples=20)
@given(
    network=networks(max_blocks=3),
    data=st.data(),
    name=st.sampled_from([*hand.OPTIMIZERS]),
    ema=st.sampled_from(["none", "slim", "swa"]),
)
def test_random_networks_train_on_as_their_masked_originals(network: Network, data, name: str, ema: str) -> None:
    _check(network, data, name, ema)


@pytest.mark.long
@settings(relaxed, max_examples=400)
@given(
    network=networks(max_blocks=4),
    data=st.data(),
    name=st.sampled_from([*hand.OPTIMIZERS]),
    ema=st.sampled_from(["none", "slim", "swa"]),
)
def test_many_random_networks_train_on_as_their_masked_originals(network: Network, data, name: str, ema: str) -> None:
    _check(network, data, name, ema)


def _check(network: Network, data, name: str, ema: str) -> None:
    model = hand.without_chance(copy.deepcopy(network.module)).double()
    coupling = analyse(model, hand.as_double(network.example_inputs))
    kept = exact(coupling, data.draw(kept_plans(coupling)))
    assert_same_training(model, network.example_inputs, coupling, kept, name, eps=1e-3, ema=ema)


@pytest.mark.parametrize(("name", "ema"), zip(hand.OPTIMIZERS, ["slim", "swa"] * 6, strict=True))
def test_every_optimizer_on_a_residual_network_with_norms(name: str, ema: str) -> None:
    """Batch norm, a depthwise convolution, a residual add, weight decay, clipping, parameter groups, and an average."""
    torch.manual_seed(0)
    model = TinyNet(16).double()
    inputs = (torch.randn(8, 3, 8, 8, dtype=torch.float64),)
    coupling = analyse(model, inputs)
    rng = np.random.default_rng(0)
    kept = {g.name: np.sort(rng.permutation(g.units)[: g.units // 2]) for g in coupling.groups}
    assert_same_training(model, inputs, coupling, kept, name, steps=5, ema=ema)


QUICK = ("resnet", "densenet", "shufflenet_v2", "mobilenet_v3", "unet", "vit", "gpt")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_families_of_architectures(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.functional, "dropout", lambda x, *arguments, **options: x)
    model, inputs = build(family)
    model, inputs = hand.without_chance(model).double(), hand.as_double(inputs)
    coupling = analyse(model, inputs)
    rng = np.random.default_rng(0)
    halves = {g.name: np.sort(rng.permutation(g.units)[: max(1, g.units // 2)]) for g in coupling.groups}
    number = list(FAMILIES).index(family)
    name, ema = ("momentum", "adam", "rmsprop")[number % 3], ("slim", "swa", "none")[number % 3]
    assert_same_training(model, inputs, coupling, exact(coupling, halves), name, steps=2, eps=1e-3, ema=ema)


@settings(relaxed, max_examples=12)
@given(network=networks(max_blocks=3), data=st.data(), name=st.sampled_from([*hand.OPTIMIZERS]), slim=st.booleans())
def test_rollback_is_as_if_nothing_had_happened(network: Network, data, name: str, slim: bool) -> None:
    """Train, cut, train, undo: every bit is back, and the next step is the one of a twin that was never cut."""
    model = hand.without_chance(copy.deepcopy(network.module)).double()
    coupling = analyse(model, hand.as_double(network.example_inputs))
    kept = data.draw(kept_plans(coupling))
    optimizer = hand.made(name, model)
    average = Ema(model, 0.9) if slim else _averaged(model)
    for number in range(2):
        hand.train_step(model, optimizer, network.example_inputs, number)
        _update(average, model)
    twin, twin_optimizer = hand.twin_of(model, optimizer, name)
    twin_average = copy.deepcopy(average)
    undo = Rollback(model, edits_of(model, coupling, kept), optimizer=optimizer, ema=average)
    for number in range(2, 4):
        hand.train_step(model, optimizer, network.example_inputs, number)
        _update(average, model)
    undo.rollback()
    _assert_same_bits(model, twin, optimizer, twin_optimizer, average, twin_average)
    hand.train_step(model, optimizer, network.example_inputs, 4)
    hand.train_step(twin, twin_optimizer, network.example_inputs, 4)
    _update(average, model)
    _update(twin_average, twin)
    _assert_same_bits(model, twin, optimizer, twin_optimizer, average, twin_average)


def _assert_same_bits(model, twin, optimizer, twin_optimizer, average, twin_average) -> None:
    theirs = state_of(twin)
    for name, tensor in state_of(model).items():
        assert torch.equal(tensor, theirs[name]), name
        if tensor.grad is not None or theirs[name].grad is not None:
            assert torch.equal(tensor.grad, theirs[name].grad), f"gradient of {name}"
        mine, other = optimizer.state.get(tensor, {}), twin_optimizer.state.get(theirs[name], {})
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, f"{key} of {name}"
    expected = _by_name(twin_average)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in _by_name(average).items())
    if isinstance(average, Ema):
        assert average.updates == twin_average.updates
    else:
        assert torch.equal(average.n_averaged, twin_average.n_averaged)
