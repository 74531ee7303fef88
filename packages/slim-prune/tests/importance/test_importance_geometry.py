"""FPGM against distances added up pair by pair."""

from __future__ import annotations

import importance_hand as hand
import numpy as np
import prune_hand
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.graph.types import ChannelGroup, Member
from slim_prune.importance.geometry import distance_sums, fpgm, slices

GROUP = prune_hand.coupling().groups[0]

DISTANCES = {
    "l2": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
    "l1": lambda a, b: np.abs(a - b).sum(),
    "cosine": lambda a, b: 1 - (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)),
}


def pairwise(rows: np.ndarray, distance: str) -> np.ndarray:
    return np.array([sum(DISTANCES[distance](a, b) for b in rows) for a in rows])


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_over_all_members_but_scales(net, distance) -> None:
    """The two convolutions count, the norm's scale does not."""
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    a = state["a.weight"].double().numpy().reshape(6, -1)
    b = state["b.weight"].double().numpy().transpose(1, 0, 2, 3).reshape(6, -1)
    members = [pairwise(rows, distance) for rows in (a, b)]
    expected = np.mean([scores / scores.mean() for scores in members], axis=0)
    assert fpgm(GROUP, state, distance=distance).numpy() == pytest.approx(expected, rel=1e-4)


def test_a_group_of_scales_alone_is_scored_by_them() -> None:
    values = torch.tensor([1.0, 4.0, 2.0])
    group = ChannelGroup("g", 3, (Member("norm.weight", 0, np.arange(3)[:, None], "per_channel", "norm"),))
    assert fpgm(group, {"norm.weight": values}, normalize="none").tolist() == [4.0, 5.0, 3.0]


@settings(max_examples=30)
@given(
    units=st.integers(1, 9),
    width=st.integers(1, 3),
    dim=st.integers(0, 2),
    seed=st.integers(0, 99),
    distance=st.sampled_from(["l2", "l1", "cosine"]),
)
def test_units_of_several_indices_along_any_dimension(units, width, dim, seed, distance) -> None:
    generator = np.random.default_rng(seed)
    shape = [3, 4, 2]
    shape[dim] = units * width
    weight = generator.normal(size=shape)
    index = generator.permutation(units * width).reshape(units, width)
    rows = np.stack([np.take(weight, index[unit], axis=dim).reshape(-1) for unit in range(units)])
    group = ChannelGroup("g", units, (Member("g.weight", dim, index, "out", "g"),))
    scores = fpgm(group, {"g.weight": torch.from_numpy(weight)}, distance=distance, normalize="none")
    assert scores.numpy() == pytest.approx(pairwise(rows, distance), rel=1e-6, abs=1e-6)


def test_rows_in_blocks_are_the_same(monkeypatch) -> None:
    rows = torch.randn(70, 12, generator=torch.Generator().manual_seed(0))
    whole = distance_sums(rows)
    monkeypatch.setattr("slim_prune.importance.geometry._BLOCK", 70 * 9)
    assert torch.allclose(distance_sums(rows), whole, rtol=1e-5)
    assert whole.numpy() == pytest.approx(pairwise(rows.double().numpy(), "l2"), rel=1e-5)


def test_an_offset_that_all_filters_share_costs_no_precision() -> None:
    rows = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    far = rows + 1000.0
    assert distance_sums(far).numpy() == pytest.approx(pairwise(far.double().numpy(), "l2"), rel=1e-4)


def test_equal_filters_are_at_no_distance() -> None:
    rows = torch.ones(30, 5) * torch.linspace(-1, 1, 5)
    assert distance_sums(rows).abs().max() < 1e-3
    assert distance_sums(rows, "cosine").abs().max() < 1e-4


def test_a_copy_of_others_goes_before_a_small_outlier() -> None:
    """What tells FPGM from norms: large filters that repeat each other are the ones that can go."""
    generator = torch.Generator().manual_seed(1)
    cluster = 3 + 0.01 * torch.randn(4, 10, generator=generator)
    outliers = torch.randn(3, 10, generator=generator) * 0.3
    weight = torch.cat([cluster, outliers])
    group = ChannelGroup("g", 7, (Member("g.weight", 0, np.arange(7)[:, None], "out", "g"),))
    scores = fpgm(group, {"g.weight": weight})
    assert set(scores.argsort()[:4].tolist()) == {0, 1, 2, 3}


def test_slices_hold_everything_that_a_unit_has() -> None:
    weight = torch.arange(24.0).reshape(2, 4, 3)
    member = Member("w", 1, np.array([[0, 2], [3, 1]]), "in", "m")
    assert slices(member, weight).tolist() == [
        [*weight[:, 0].reshape(-1).tolist(), *weight[:, 2].reshape(-1).tolist()],
        [*weight[:, 3].reshape(-1).tolist(), *weight[:, 1].reshape(-1).tolist()],
    ]


def test_attention_heads_and_grouped_convolutions() -> None:
    ctx = hand.context(hand.joined(), hand.data(batches=1))
    found = hand.scores({"name": "fpgm", "normalize": "none", "aggregate": "sum"}, ctx)
    for group in ctx.coupling.groups:
        wide = {name: t for name, t in ctx.tensors.items() if t.dim() > 1}
        expected = np.zeros(group.units)
        for member in group.members:
            if member.name in wide:
                parts = hand.unit_parts(ChannelGroup("", group.units, (member,)), wide)
                expected += pairwise(np.array([unit[0] for unit in parts]), "l2")
        assert found[group.name] == pytest.approx(expected, rel=1e-4)
