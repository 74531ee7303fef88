"""Learned rounding (Nagel et al., 2020, "Up or Down?", arXiv 2004.10568), for layers and for blocks.

Each weight may go to the integer below or above. A variable per weight says how far up it goes, through a rectified
sigmoid, and learns to reproduce the float network's output; a penalty whose exponent is annealed pushes it to 0 or 1.
At the end every weight is on its grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_core.progress import Track
from slim_quant.graph import get_tensor
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext
from slim_quant.ptq.corrections.units import Unit, left_out
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Change, Chunk, Values, Walk, put
from slim_quant.schemes import Scheme, spread

#: the stretch of the rectified sigmoid (Louizos et al., 2017): it reaches 0 and 1 at finite arguments
LOW, HIGH = -0.1, 1.1


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """How roundings are learned.

    Args:
        iterations: steps for each unit.
        lr: step size of Adam on the rounding variables.
        penalty: weight of the penalty. The reconstruction error counts in units of the error that rounding to nearest
            makes, so that the same value serves every layer.
        warmup: share of the iterations without penalty.
        beta: exponent of the penalty at the beginning and at the end; it falls linearly.
        samples: calibration samples that are kept at a unit, at most.
        batch: samples of a step.
        memory_mib: memory for the kept values, in MiB; where it is too little, fewer samples are used.

    Raises:
        SlimError: a value is out of its range.
    """

    iterations: int = 1000
    lr: float = 0.01
    penalty: float = 0.1
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    samples: int = SAMPLES
    batch: int = BATCH
    memory_mib: int = MEMORY_MIB

    def __post_init__(self) -> None:
        for name in ("iterations", "samples", "batch", "memory_mib"):
            if getattr(self, name) < 1:
                raise SlimError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise SlimError(f"warmup must be in [0, 1), not {self.warmup}")
        if self.lr <= 0 or self.penalty < 0 or min(self.beta) <= 0:
            raise SlimError("lr and beta must be above 0, penalty not below")


class SoftRounding:
    """A weight between two integers, entry by entry.

    Args:
        weight: the float weight.
        scale: its scale, as calibrated.
        zero_point: its zero point.
        scheme: its scheme.
        axis: of the channels, or along which groups lie.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int) -> None:
        self.scheme = scheme
        self.scale = spread(scale, weight, axis, scheme.group_size)
        self.zero_point = spread(zero_point, weight, axis, scheme.group_size).to(weight.dtype)
        steps = weight / self.scale
        self.floor = torch.floor(steps)
        self.nearest = torch.round(steps) - self.floor  # 0 or 1; half to even, as everywhere
        share = (steps - self.floor).clamp(1e-4, 1 - 1e-4)
        self.variable = torch.logit((share - LOW) / (HIGH - LOW)).requires_grad_()

    def shares(self) -> Tensor:
        """Return how far up each entry goes, 0 to 1."""
        return torch.clamp(torch.sigmoid(self.variable) * (HIGH - LOW) + LOW, 0, 1)

    def soft(self) -> Tensor:
        """Return the weight with the shares as they are."""
        return self.at(self.shares())

    def hard(self) -> Tensor:
        """Return the weight on its grid, each entry at the nearer integer by its share."""
        return self.at(self.choice())

    def choice(self) -> Tensor:
        """Return 1 for each entry that goes up, 0 for the others."""
        return (self.variable.detach() >= 0).to(self.floor.dtype)

    def at(self, up: Tensor) -> Tensor:
        """Return the weight for shares ``up``."""
        integers = torch.clamp(self.floor + up + self.zero_point, self.scheme.qmin, self.scheme.qmax)
        return (integers - self.zero_point) * self.scale

    def penalty(self, beta: float) -> Tensor:
        """Return the mean over all entries of ``1 - |2 share - 1| ** beta``."""
        return 1 - (2 * self.shares() - 1).abs().pow(beta).mean()


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned at a unit.

    Args:
        unit: its name.
        nearest: squared error of its output with weights rounded to nearest, over the mean square of the output.
        error: the same with the weights that were chosen.
        changed: weights that do not go to their nearest integer.
        total: all weights.
    """

    unit: str
    nearest: float
    error: float
    changed: int
    total: int


class Reconstruction:
    """One unit, its batches, and the error of its outputs.

    Args:
        walk: runs the nodes.
        unit: the unit.
        chunks: its batches.
        inner: what is done with the values of the unit's nodes, beside the unit's outputs.
        mix: makes the inputs of a step from a batch; without one they are the quantized network's.
        settle: is told whether what else was learned shall be kept.
    """

    def __init__(
        self, walk: Walk, unit: Unit, chunks: Sequence[Chunk], *, inner: Change | None = None,
        mix: Callable[[Chunk], Values] | None = None, settle: Callable[[bool], None] | None = None,
    ) -> None:  # fmt: skip
        self.walk = walk
        self.unit = unit
        self.chunks = chunks
        self.inner = inner
        self.settle = settle or (lambda keep: None)
        self.mix = mix or (lambda chunk: dict(chunk.quantized))
        squares = sum(float(target.double().square().sum()) for chunk in chunks for target in _floats(chunk.targets))
        self.power = max(squares, 1e-30)

    def outputs(self, inputs: Values, weights: Mapping[str, Tensor], change: Change | None) -> list[Tensor]:
        values = self.walk.advance(dict(inputs), self.unit.nodes, weights, change)
        return _floats({node: values[node] for node in self.unit.outputs})

    def loss(self, chunk: Chunk, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error of a step's outputs, differentiable."""
        found = self.outputs(self.mix(chunk), weights, self.inner)
        return _error(found, _floats(chunk.targets))

    @torch.no_grad()
    def total(self, weights: Mapping[str, Tensor]) -> float:
        """Return the squared error over all batches, nothing at random, over the squares of the outputs."""
        change = None if self.inner is None else self._inside(self.walk.fake)
        squares = 0.0
        for chunk in self.chunks:
            found = self.outputs(dict(chunk.quantized), weights, change)
            pairs = zip(found, _floats(chunk.targets), strict=True)
            squares += sum(float((one.double() - other.double()).square().sum()) for one, other in pairs)
        return squares / self.power

    @torch.no_grad()
    def rounding_error(self, exact: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> float:
        """Return the mean squared change of the outputs by rounding alone, on the first batches."""
        found = []
        for chunk in self.chunks[:4]:
            one, other = (self.outputs(dict(chunk.quantized), weights, None) for weights in (exact, rounded))
            found.append(float(_error(one, other)))
        return max(sum(found) / len(found), 1e-30)

    def _inside(self, change: Change) -> Change:
        return lambda node, value: value if node in self.unit.outputs else change(node, value)


def learn(
    reconstruction: Reconstruction, roundings: Mapping[str, SoftRounding], exact: Mapping[str, Tensor],
    options: LearningOptions, generator: torch.Generator, track: Track, extra: Sequence[dict[str, object]] = (),
) -> Learned:  # fmt: skip
    """Learn the roundings of a unit; the variables hold the result, or nearest rounding where that is no worse.

    Args:
        reconstruction: the unit.
        roundings: by weight name.
        exact: the float weights by name.
        options: how to learn.
        generator: decides the order of the batches.
        track: gets one unit of progress for each step.
        extra: further parameter groups for the optimizer.
    """
    nearest = {name: item.at(item.nearest) for name, item in roundings.items()}
    before = reconstruction.total(nearest)
    unit = reconstruction.rounding_error(exact, nearest)
    groups: list[dict[str, object]] = [{"params": [item.variable for item in roundings.values()], "lr": options.lr}]
    optimizer = torch.optim.Adam([*groups, *extra])
    entries = [item.floor.numel() for item in roundings.values()]
    order: list[int] = []
    shown = 0
    for step in range(options.iterations):
        if not order:
            order = torch.randperm(len(reconstruction.chunks), generator=generator).tolist()
        chunk = reconstruction.chunks[order.pop()]
        optimizer.zero_grad(set_to_none=True)
        loss = reconstruction.loss(chunk, {name: item.soft() for name, item in roundings.items()}) / unit
        beta = annealed(step, options)
        if beta is not None:
            terms = [item.penalty(beta) * count for item, count in zip(roundings.values(), entries, strict=True)]
            loss = loss + options.penalty * torch.stack(terms).sum() / sum(entries)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step + 1 - shown >= 50 or step + 1 == options.iterations:
            track.advance(step + 1 - shown, loss=float(loss.detach()))
            shown = step + 1
    return _choose(reconstruction, roundings, before)


def annealed(step: int, options: LearningOptions) -> float | None:
    """Return the exponent of the penalty at a step; ``None`` while there is no penalty yet."""
    start = options.warmup * options.iterations
    if step < start:
        return None
    first, last = options.beta
    return first + (last - first) * (step - start) / max(options.iterations - 1 - start, 1.0)


def learn_units(
    name: str, units: Sequence[Unit], prepared: Prepared, calibrated: Calibrated, data: CalibrationData,
    context: CorrectionContext, options: LearningOptions,
    make: Callable[[Walk, Unit, list[Chunk], torch.Generator], tuple[Reconstruction, list[dict[str, object]]]],
) -> list[Learned]:  # fmt: skip
    """Round all weights: those of ``units`` learned, unit after unit, and the others to nearest.

    Args:
        name: of the correction, for progress and notes.
        units: in execution order.
        prepared: the graph.
        calibrated: scales and zero points.
        data: the calibration samples.
        context: seed, progress, notes.
        options: how to learn.
        make: makes the reconstruction of a unit, and further parameter groups.
    """
    others = left_out(prepared, units)
    walk = Walk(prepared, calibrated, data, context, samples=options.samples, memory_mib=options.memory_mib,
                batch=options.batch)  # fmt: skip
    for place in others:
        put(prepared, place.name, walk.nearest(place))
        context.notes.append(f"{name}: {place.name} is rounded to nearest: it is used in several places or in place")
    found = []
    with context.progress.track(f"{name}: learning to round", options.iterations * len(units)) as track:
        for position, (unit, chunks) in enumerate(walk.run(units)):
            generator = torch.Generator().manual_seed(context.seed * 1_000_003 + position)
            exact = {place.name: get_tensor(prepared.graph, place.name).detach() for place in unit.weights}
            roundings = {
                place.name: SoftRounding(exact[place.name], *calibrated.weights[place.name],
                                         prepared.weights[place.name], place.along(prepared.weights[place.name]))
                for place in unit.weights
            }  # fmt: skip
            reconstruction, extra = make(walk, unit, chunks, generator)
            with torch.enable_grad():
                found.append(learn(reconstruction, roundings, exact, options, generator, track, extra))
            for place in unit.weights:
                put(prepared, place.name, roundings[place.name].hard())
    context.notes.append(_summary(name, found))
    return found


def _choose(reconstruction: Reconstruction, roundings: Mapping[str, SoftRounding], before: float) -> Learned:
    """Take what was learned if its error is below that of nearest rounding, ``before``."""
    reconstruction.settle(True)
    after = reconstruction.total({name: item.hard() for name, item in roundings.items()})
    if not after < before:
        reconstruction.settle(False)
        for item in roundings.values():
            item.variable = torch.where(item.nearest > 0, 1.0, -1.0)
        after = before
    changed = sum(int((item.choice() != item.nearest).sum()) for item in roundings.values())
    total = sum(item.floor.numel() for item in roundings.values())
    return Learned(reconstruction.unit.name, before, after, changed, total)


def _summary(name: str, found: Sequence[Learned]) -> str:
    changed, total = sum(item.changed for item in found), sum(item.total for item in found)
    gains = [10 * math.log10(item.nearest / item.error) for item in found if item.error > 0 and item.nearest > 0]
    gain = sum(gains) / len(gains) if gains else 0.0
    share = 100 * changed / total if total else 0.0
    return (
        f"{name}: {share:.1f} % of the weights of {len(found)} units are not rounded to nearest; "
        f"the error of the units' outputs falls by {gain:.1f} dB on average"
    )


def _floats(values: Mapping[fx.Node, object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values.values():
        tensors = value if isinstance(value, list | tuple) else (value,)
        found.extend(tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point())
    return found


def _error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error over all entries of all tensors."""
    squares = [(one - other).square().sum() for one, other in zip(found, wanted, strict=True)]
    return torch.stack(squares).sum() / max(1, sum(tensor.numel() for tensor in wanted))
