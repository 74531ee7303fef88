"""Normalization and aggregation over members, against numpy."""

from __future__ import annotations

import numpy as np
import prune_hand as hand
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.errors import SlimError
from slim_core.graph.types import ChannelGroup, Member
from slim_prune.importance.aggregate import combined, normalized, over_members
from slim_prune.importance.magnitude import L1_NORMS, Lp, l1, l2, lamp

GROUP = hand.coupling().groups[0]
NORMALIZE = {
    "mean": lambda x: x / x.mean(),
    "max": lambda x: x / x.max(),
    "sum": lambda x: x / x.sum(),
    "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
    "gaussian": lambda x: (x - x.mean()) / x.std(),
    "lamp": lambda x: np.array([a / x[x >= a].sum() for a in x]),
    "none": lambda x: x,
}
AGGREGATE = {
    "mean": lambda rows: np.mean(rows, axis=0),
    "sum": lambda rows: np.sum(rows, axis=0),
    "max": lambda rows: np.max(rows, axis=0),
    "prod": lambda rows: np.prod(rows, axis=0),
    "first": lambda rows: rows[0],
}


def norms(net, order: float) -> list[np.ndarray]:
    a, scale, b = (net.state_dict()[name].double().numpy() for name in ("a.weight", "norm.weight", "b.weight"))
    return [
        np.array([(np.abs(x) ** order).sum() ** (1 / order) for x in rows])
        for rows in (a, scale[:, None], b.transpose(1, 0, 2, 3))
    ]


@pytest.mark.parametrize("normalize", list(NORMALIZE))
@pytest.mark.parametrize("aggregate", list(AGGREGATE))
@pytest.mark.parametrize(("criterion", "order"), [(l1, 1), (l2, 2)])
def test_every_pair(net, normalize, aggregate, criterion, order) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    expected = AGGREGATE[aggregate]([NORMALIZE[normalize](scores) for scores in norms(net, order)])
    found = criterion(GROUP, state, normalize=normalize, aggregate=aggregate)
    assert found.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_the_first_member_is_the_first_that_makes_the_channels(net) -> None:
    members = tuple(reversed(GROUP.members))  # the consumer comes first now
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    found = l1(ChannelGroup("a", 6, members), state, normalize="none", aggregate="first")
    assert found.numpy() == pytest.approx(norms(net, 1)[0], rel=1e-5)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_lp(net, p) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    expected = np.mean([scores / scores.mean() for scores in norms(net, p)], axis=0)
    assert Lp(p=p)(GROUP, state).numpy() == pytest.approx(expected, rel=1e-4)


def test_lamp_by_hand(net) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    expected = np.mean([NORMALIZE["lamp"](scores**2) for scores in norms(net, 2)], axis=0)
    assert lamp(GROUP, state).numpy() == pytest.approx(expected, rel=1e-5)


def test_lamp_of_four_by_hand() -> None:
    scores = np.array([4.0, 1.0, 3.0, 2.0])
    assert normalized(scores, "lamp").tolist() == [1.0, 1 / 10, 3 / 7, 2 / 9]


@settings(max_examples=60)
@given(
    scores=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=8),
    how=st.sampled_from(list(NORMALIZE)),
)
def test_normalizing_keeps_the_order_and_is_finite(scores, how) -> None:
    values = np.array(scores)
    result = normalized(values, how)
    assert np.isfinite(result).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(result[order]) >= -1e-12).all()


@pytest.mark.parametrize("how", list(NORMALIZE))
def test_scores_that_are_all_alike(how) -> None:
    assert np.isfinite(normalized(np.zeros(4), how)).all()
    assert np.isfinite(normalized(np.full(4, 3.0), how)).all()


def test_negative_scores_are_scaled_by_their_size() -> None:
    member = Member("w", 0, np.arange(2)[:, None], "out", "m")
    group = ChannelGroup("g", 2, (member,))
    found = combined(group, [(member, np.array([-3.0, 1.0]))], normalize="mean", signed=True)
    assert found.tolist() == [-1.5, 0.5]


def test_unknown_names_are_errors(net) -> None:
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    with pytest.raises(SlimError, match="unknown aggregation over members 'median'"):
        l1(GROUP, state, aggregate="median")
    with pytest.raises(SlimError, match="unknown normalization 'median'"):
        over_members(GROUP, state, L1_NORMS, normalize="median")


def test_a_group_without_weights_is_an_error() -> None:
    group = ChannelGroup("g", 2, (Member("steps", 0, np.arange(2)[:, None], "per_channel", ""),))
    with pytest.raises(SlimError, match="nothing to score"):
        l1(group, {"steps": torch.zeros(2, dtype=torch.int64)})
