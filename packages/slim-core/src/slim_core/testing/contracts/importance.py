"""What every importance criterion promises: one finite score per unit, whatever the units are made of."""
# ruff: noqa: S101

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from slim_core.graph.types import ChannelGroup, Member

Importance = Callable[[ChannelGroup, Mapping[str, Tensor]], Tensor]
UNITS = 6


def _group(multiplicity: int) -> tuple[ChannelGroup, dict[str, Tensor]]:
    """A group as of ``conv -> batch norm -> linear`` after a flatten: each unit has ``multiplicity`` inputs there."""
    generator = torch.Generator().manual_seed(multiplicity)
    one = np.arange(UNITS)[:, None]  # (units, 1)
    several = np.arange(UNITS * multiplicity).reshape(UNITS, multiplicity)
    tensors = {
        "conv.weight": torch.randn(UNITS, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(UNITS, generator=generator),
        "bn.weight": torch.rand(UNITS, generator=generator) + 0.5,
        "bn.bias": torch.randn(UNITS, generator=generator),
        "bn.running_mean": torch.randn(UNITS, generator=generator),
        "bn.running_var": torch.rand(UNITS, generator=generator) + 0.5,
        "linear.weight": torch.randn(5, UNITS * multiplicity, generator=generator),
    }
    members = (
        Member("conv.weight", 0, one, "out", "conv"),
        Member("conv.bias", 0, one, "per_channel", "conv"),
        *(
            Member(f"bn.{name}", 0, one, "per_channel", "bn")
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
        Member("linear.weight", 1, several, "in", "linear"),
    )
    return ChannelGroup("conv", UNITS, members), tensors


class ImportanceContract:
    """Inherit this, and give the fixture ``importance``.

    Set ``reads_weights = False`` for a criterion whose scores do not follow from the tensors (a random one, say).
    """

    reads_weights: ClassVar[bool] = True

    @pytest.fixture
    def importance(self) -> Importance:
        raise NotImplementedError("give a fixture `importance` that returns the criterion, a function (group, tensors)")

    @pytest.fixture(params=[1, 4], ids=["one index per unit", "four indices per unit"])
    def group(self, request: pytest.FixtureRequest) -> tuple[ChannelGroup, dict[str, Tensor]]:
        return _group(request.param)

    def test_one_finite_score_per_unit(
        self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        scores = importance(*group)
        assert isinstance(scores, Tensor)
        assert tuple(scores.shape) == (UNITS,)
        assert scores.dtype.is_floating_point
        assert bool(torch.isfinite(scores).all())
        assert not scores.requires_grad

    def test_it_changes_no_tensor(self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        before = {name: tensor.clone() for name, tensor in group[1].items()}
        importance(*group)
        assert [name for name, tensor in group[1].items() if not torch.equal(tensor, before[name])] == []

    def test_it_says_the_same_twice(
        self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        torch.testing.assert_close(importance(*group), importance(*group), rtol=0, atol=0)

    def test_scores_follow_the_units_when_the_weights_are_reordered(
        self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        if not self.reads_weights:
            pytest.skip("the criterion does not read the weights")
        members, order = group[0].members, torch.tensor([3, 0, 5, 1, 4, 2])
        reordered = {}
        for member in members:
            index = torch.from_numpy(member.indices)[order].reshape(-1)
            reordered[member.name] = group[1][member.name].index_select(member.dim, index)
        torch.testing.assert_close(importance(group[0], reordered), importance(*group)[order], rtol=1e-5, atol=1e-6)

    def test_scores_follow_the_units_when_the_group_is_reordered(
        self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        if not self.reads_weights:
            pytest.skip("the criterion does not read the weights")
        order = np.array([3, 0, 5, 1, 4, 2])
        members = tuple(replace(member, indices=member.indices[order]) for member in group[0].members)
        scores = importance(replace(group[0], members=members), group[1])
        torch.testing.assert_close(scores, importance(*group)[torch.from_numpy(order)], rtol=1e-5, atol=1e-6)

    def test_a_group_of_one_unit(self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        members = tuple(replace(member, indices=member.indices[:1]) for member in group[0].members)
        scores = importance(ChannelGroup("conv", 1, members), group[1])
        assert tuple(scores.shape) == (1,)
        assert bool(torch.isfinite(scores).all())

    def test_half_precision_weights(
        self, importance: Importance, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        scores = importance(group[0], {name: tensor.to(torch.bfloat16) for name, tensor in group[1].items()})
        assert tuple(scores.shape) == (UNITS,)
        assert bool(torch.isfinite(scores).all())
