"""What every importance criterion promises: one finite score per unit, whatever the units are made of."""
# ruff: noqa: S101

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from slim_core.errors import SlimError
from slim_core.graph import analyse
from slim_core.graph.types import ChannelGroup, Coupling, Member
from slim_core.progress import Progress, SilentProgress
from slim_core.tasks import ClassificationTask
from slim_core.testing.workloads import differences, fingerprint
from slim_core.workload import DataSource, Inputs, Task

Importance = Callable[[ChannelGroup, Mapping[str, Tensor]], Tensor]
UNITS = 6
_CLASSES = 5


class GroupNet(nn.Module):
    """``conv -> batch norm -> relu -> pool -> flatten -> linear``: the network of the contract's channel group.

    Args:
        multiplicity: inputs of the linear layer per channel: 1 or 4.
        dtype: of everything.
    """

    def __init__(self, multiplicity: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.side = {1: 1, 4: 2}[multiplicity]
        self.conv = nn.Conv2d(3, UNITS, 3, dtype=dtype)
        self.bn = nn.BatchNorm2d(UNITS, dtype=dtype)
        self.linear = nn.Linear(UNITS * multiplicity, _CLASSES, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))  # (N, UNITS, 6, 6)
        return self.linear(F.avg_pool2d(x, 6 // self.side).flatten(1))  # type: ignore[no-any-return]


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
        "linear.weight": torch.randn(_CLASSES, UNITS * multiplicity, generator=generator),
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


@dataclass
class Surroundings:
    """What a criterion's ``prepare`` gets here: everything that slim-prune's ``Context`` has, for one tiny network."""

    model: GroupNet
    example_inputs: Inputs
    coupling: Coupling
    tensors: Mapping[str, Tensor]
    task: Task | None
    train: DataSource | None
    val: DataSource | None
    folder: Path | None = None
    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    registry: Any = None
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def score(self, group: ChannelGroup) -> NDArray[np.float64]:
        raise AssertionError("a criterion must not ask for its own scores while it is prepared")

    def best(self, group: ChannelGroup, count: int) -> NDArray[np.int64]:
        raise AssertionError("a criterion must not ask which units are best while it is prepared")

    def kept(self, counts: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
        raise AssertionError("a criterion must not ask which units are kept while it is prepared")

    def note(self, line: str) -> None:
        self.notes.append(line)

    def require(self, *names: str, by: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise SlimError(f"{by} needs {' and '.join(missing)}")


class _Watched:
    """A few batches, read again and again; counts how many are alive at a time."""

    def __init__(self, dtype: torch.dtype, batches: int = 3) -> None:
        self._dtype, self._batches = dtype, batches
        self._alive: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self._batches):
            inputs = torch.randn(4, 3, 8, 8, generator=generator).to(self._dtype)
            targets = torch.randint(0, _CLASSES, (4,), generator=generator)
            self._alive = [ref for ref in self._alive if ref() is not None]
            self._alive.append(weakref.ref(inputs))
            self.most = max(self.most, len(self._alive))
            yield inputs, targets
            del inputs


def surroundings(tensors: Mapping[str, Tensor], *, batches: int = 3) -> Surroundings:
    """Return the network of the contract's group with these weights, in evaluation mode, and data to run it on."""
    dtype = tensors["conv.weight"].dtype
    model = GroupNet(tensors["linear.weight"].shape[1] // UNITS, dtype)
    state = model.state_dict()
    model.load_state_dict({name: tensors.get(name, value) for name, value in state.items()})
    model.eval()
    inputs = (torch.zeros(2, 3, 8, 8, dtype=dtype),)
    own = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    train, val = _Watched(dtype, batches), _Watched(dtype, batches)
    return Surroundings(model, inputs, analyse(model, inputs), own, ClassificationTask(), train, val)


def _scores(importance: Any, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Any:
    """Score a group; a criterion that looks at data is prepared on the network with these weights first."""
    prepare = getattr(importance, "prepare", None)
    return (importance if prepare is None else prepare(surroundings(tensors)))(group, tensors)


class ImportanceContract:
    """Inherit this, and give the fixture ``importance``: a function, or an object with ``prepare``.

    A criterion with ``prepare`` is prepared on a tiny classifier, and promises besides that nothing is left behind in
    the model, that missing data is an error, and that batches are let go of.

    Set ``reads_weights = False`` for a criterion whose scores do not follow from weights and data (a random one, say),
    and ``estimates = True`` for one that estimates with random numbers, so that other weights draw other errors.
    """

    reads_weights: ClassVar[bool] = True
    estimates: ClassVar[bool] = False

    @pytest.fixture
    def importance(self) -> Any:
        raise NotImplementedError("give a fixture `importance` that returns the criterion, a function (group, tensors)")

    @pytest.fixture(params=[1, 4], ids=["one index per unit", "four indices per unit"])
    def group(self, request: pytest.FixtureRequest) -> tuple[ChannelGroup, dict[str, Tensor]]:
        return _group(request.param)

    def test_one_finite_score_per_unit(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        scores = _scores(importance, *group)
        assert isinstance(scores, Tensor)
        assert tuple(scores.shape) == (UNITS,)
        assert scores.dtype.is_floating_point
        assert bool(torch.isfinite(scores).all())
        assert not scores.requires_grad

    def test_it_changes_no_tensor(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        before = {name: tensor.clone() for name, tensor in group[1].items()}
        _scores(importance, *group)
        assert [name for name, tensor in group[1].items() if not torch.equal(tensor, before[name])] == []

    def test_it_says_the_same_twice(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        torch.testing.assert_close(_scores(importance, *group), _scores(importance, *group), rtol=0, atol=0)

    def test_scores_follow_the_units_when_the_weights_are_reordered(
        self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        if not self.reads_weights:
            pytest.skip("the criterion does not read the weights")
        if self.estimates:
            pytest.skip("the criterion estimates with random numbers")
        members, order = group[0].members, torch.tensor([3, 0, 5, 1, 4, 2])
        reordered = {}
        for member in members:
            index = torch.from_numpy(member.indices)[order].reshape(-1)
            reordered[member.name] = group[1][member.name].index_select(member.dim, index)
        scores, expected = _scores(importance, group[0], reordered), _scores(importance, *group)[order]
        rtol = 1e-3 if hasattr(importance, "prepare") else 1e-5  # a network adds up in another order
        torch.testing.assert_close(scores, expected, rtol=rtol, atol=1e-6)

    def test_scores_follow_the_units_when_the_group_is_reordered(
        self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        if not self.reads_weights:
            pytest.skip("the criterion does not read the weights")
        order = np.array([3, 0, 5, 1, 4, 2])
        members = tuple(replace(member, indices=member.indices[order]) for member in group[0].members)
        scores = _scores(importance, replace(group[0], members=members), group[1])
        torch.testing.assert_close(scores, _scores(importance, *group)[torch.from_numpy(order)], rtol=1e-5, atol=1e-6)

    def test_a_group_of_one_unit(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        members = tuple(replace(member, indices=member.indices[:1]) for member in group[0].members)
        scores = _scores(importance, ChannelGroup("conv", 1, members), group[1])
        assert tuple(scores.shape) == (1,)
        assert bool(torch.isfinite(scores).all())

    def test_half_precision_weights(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        scores = _scores(importance, group[0], {name: tensor.to(torch.bfloat16) for name, tensor in group[1].items()})
        assert tuple(scores.shape) == (UNITS,)
        assert bool(torch.isfinite(scores).all())

    def test_preparing_leaves_model_gradients_and_generators_as_they_are(
        self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        context = _context(importance, group[1])
        context.model.train()  # what a forward does to running statistics would show
        context.model.linear.weight.grad = torch.ones_like(context.model.linear.weight)
        before = fingerprint(context.model)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
        importance.prepare(context)
        assert differences(before, fingerprint(context.model)) == []
        gradients = {name: p.grad for name, p in context.model.named_parameters() if p.grad is not None}
        assert list(gradients) == ["linear.weight"]
        assert bool((gradients["linear.weight"] == 1).all())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        numpy_state, expected = np.random.get_state(legacy=False)["state"], states[2]["state"]
        assert numpy_state["pos"] == expected["pos"]
        assert np.array_equal(numpy_state["key"], expected["key"])

    def test_missing_data_is_an_error_and_said_in_advance(
        self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]
    ) -> None:
        context = replace(_context(importance, group[1]), task=None, train=None, val=None)
        needs = getattr(importance, "needs", ())
        assert set(needs) <= {"task", "train", "val"}
        try:
            importance.prepare(context)
        except SlimError:
            assert needs, "a criterion without `needs` is taken to need no data"
        else:
            assert not needs, f"it needs {', '.join(needs)}, and was prepared without"

    def test_batches_are_let_go_of(self, importance: Any, group: tuple[ChannelGroup, dict[str, Tensor]]) -> None:
        if not hasattr(importance, "prepare"):
            pytest.skip("the criterion looks at weights only")
        context = surroundings(group[1], batches=12)
        importance.prepare(context)
        for source in (context.train, context.val):
            assert isinstance(source, _Watched)
            assert source.most <= 3


def _context(importance: Any, tensors: Mapping[str, Tensor]) -> Surroundings:
    if not hasattr(importance, "prepare"):
        pytest.skip("the criterion looks at weights only")
    return surroundings(tensors)
