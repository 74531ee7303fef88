"""Criteria against numpy references, and the checks on what a criterion returns."""

from __future__ import annotations

import numpy as np
import prune_hand as hand
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.errors import SlimError, UnknownNameError
from slim_core.graph.types import ChannelGroup, Member
from slim_core.registry import Registry
from slim_prune import importance
from slim_prune.errors import PlanError
from slim_prune.importance.aggregate import Tensors, over_members
from slim_prune.importance.magnitude import L1_NORMS, L2_NORMS, l1, l2
from slim_prune.importance.random import random

GROUP = hand.coupling().groups[0]


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def by_hand(model, order: int, normalize) -> np.ndarray:
    """Slice by slice with numpy: the two weights and the norm's scale count; bias and statistics do not."""
    a, scale, b = (model.state_dict()[name].numpy() for name in ("a.weight", "norm.weight", "b.weight"))
    norm = {1: lambda x: np.abs(x).sum(), 2: lambda x: np.sqrt((x**2).sum())}[order]
    members = [
        np.array([norm(a[i]) for i in range(6)]),
        np.array([norm(scale[i]) for i in range(6)]),
        np.array([norm(b[:, i]) for i in range(6)]),
    ]
    return np.mean([scores / normalize(scores) for scores in members], axis=0)


@pytest.mark.parametrize(("function", "order"), [(l1, 1), (l2, 2)])
@pytest.mark.parametrize(
    ("name", "normalize"), [("mean", np.mean), ("max", np.max), ("sum", np.sum), ("none", lambda scores: 1.0)]
)
def test_magnitude_over_all_members(net, function, order, name, normalize) -> None:
    scores = function(GROUP, tensors(net), normalize=name)
    assert scores.numpy() == pytest.approx(by_hand(net, order, normalize), rel=1e-5)


@settings(max_examples=40)
@given(units=st.integers(1, 6), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_several_indices_of_one_unit_are_added(units, width, seed) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(units * width, 3))
    index = generator.permutation(units * width).reshape(units, width)
    group = ChannelGroup("g", units, (Member("g.weight", 0, index, "out", "g"),))
    expected = np.abs(weight).sum(1)[index].sum(1)
    scores = l1(group, {"g.weight": torch.from_numpy(weight)}, normalize="none")
    assert scores.numpy() == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (3000, 100), (5, 100_000), (40, 60, 9, 11), (6, 50, 3, 3, 100)])
@pytest.mark.parametrize("order", [1, 2])
def test_norms_of_slices_along_every_dimension(shape, order) -> None:
    weight = torch.linspace(-1, 1, int(np.prod(shape))).sin().reshape(shape)
    measure = {1: L1_NORMS, 2: L2_NORMS}[order]
    for dim in range(len(shape)):
        slices = np.moveaxis(weight.numpy().astype(np.float64), dim, 0).reshape(shape[dim], -1)
        assert measure(weight, dim).numpy() == pytest.approx(np.linalg.norm(slices, ord=order, axis=1), rel=1e-5)
    if len(shape) > 1:
        both = measure.along(weight, (0, 1))
        assert all(torch.allclose(both[dim], measure(weight, dim), rtol=1e-5) for dim in (0, 1))
    last = weight.transpose(0, -1)
    assert torch.allclose(measure(last, 0), measure(weight, len(shape) - 1), rtol=1e-5)


def test_a_weight_that_many_groups_share_is_measured_once(net) -> None:
    calls = []

    def counting(tensor, dim):
        calls.append(dim)
        return L1_NORMS(tensor, dim)

    state = Tensors(tensors(net))
    first, second = (over_members(GROUP, state, counting) for _ in range(2))
    assert torch.equal(first, second)
    assert len(calls) == 3


def test_scaling_one_member_changes_nothing_when_normalized(net) -> None:
    state = tensors(net)
    scaled = {**state, "b.weight": state["b.weight"] * 1000}
    assert torch.allclose(l1(GROUP, state), l1(GROUP, scaled))


def test_all_zero_members_give_zero_not_nan(net) -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in tensors(net).items()}
    assert l1(GROUP, state).tolist() == [0.0] * 6


def test_half_precision_sums_do_not_overflow(net) -> None:
    state = {name: torch.full_like(tensor, 60000.0, dtype=torch.float16) for name, tensor in tensors(net).items()}
    assert torch.isfinite(l1(GROUP, state)).all()


def test_random_depends_on_seed_and_group_alone() -> None:
    again = random(GROUP, {}, seed=3)
    assert torch.equal(random(GROUP, {}, seed=3), again)
    assert not torch.equal(random(GROUP, {}, seed=4), again)
    assert not torch.equal(random(ChannelGroup("other", 6, ()), {}, seed=3), again)


def test_unknown_normalization_is_an_error(net) -> None:
    with pytest.raises(SlimError, match="unknown normalization 'men'"):
        l1(GROUP, tensors(net), normalize="men")


def test_resolving_names_options_and_functions() -> None:
    assert importance.resolve("l1") == ("l1", l1)
    label, function = importance.resolve({"name": "l2", "normalize": "max"})
    assert label == "l2(normalize='max')"
    assert function.keywords == {"normalize": "max"}

    def mine(group, tensors):
        return torch.zeros(group.units)

    assert importance.resolve(mine) == ("mine", mine)


def test_names_of_a_registry() -> None:
    registry = Registry()
    registry.add_kind("importances", "importance criterion", {})
    registry.register("importances", "mine", l2, plugin="p")
    assert importance.resolve("mine", registry) == ("mine", l2)
    with pytest.raises(UnknownNameError, match="unknown importance criterion 'mime'"):
        importance.resolve("mime", registry)


def test_an_unknown_name_is_looked_up_among_the_installed_plugins() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'l1'"):
        importance.resolve("l11")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(5), r"shape \(6,\).*returned shape \(5,\)"),
        (torch.zeros(6, 1), r"returned shape \(6, 1\)"),
        ([0.0] * 6, "returned list"),
        (torch.tensor([0.0, 1, 2, 3, 4, float("nan")]), "not finite"),
        (torch.zeros(6, device="meta"), "meta device"),
    ],
)
def test_what_a_criterion_returns_is_checked(scores, message) -> None:
    with pytest.raises(PlanError, match=message):
        importance.score("mine", lambda group, tensors: scores, GROUP, {})
