"""Learned rounding (Nagel et al., 2020, "Up or Down?", arXiv 2004.10568), for layers and for blocks.

Each weight may go to the integer below or above. A variable per weight says how far up it goes, through a rectified
sigmoid, and learns to reproduce the float network's output; a penalty whose exponent is annealed pushes it to 0 or 1.
At the end every weight is on its grid. What is reproduced, and how its error is measured, is in ``reconstruction``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_core.errors import SlimError
from slim_core.progress import Track
from slim_quant.graph import get_tensor
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext
from slim_quant.ptq.corrections.reconstruction import Reconstruction, Weights
from slim_quant.ptq.corrections.units import Unit, left_out
from slim_quant.ptq.corrections.walk import BATCH, MEMORY_MIB, SAMPLES, Chunk, Walk, put
from slim_quant.schemes import Scheme, spread

#: the stretch of the rectified sigmoid (Louizos et al., 2017): it reaches 0 and 1 at finite arguments
LOW, HIGH = -0.1, 1.1
#: Adam's (Kingma & Ba, 2014)
_DECAYS, _EPS = (0.9, 0.999), 1e-8
#: steps between two reports of progress
_REPORTED = 50


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
        batch: samples that are run at once.
        memory_mib: memory for the kept values, in MiB; where it is too little, fewer samples are used.

    Raises:
        SlimError: a value is out of its range.
    """

    iterations: int = 1000
    lr: float = 0.01
    penalty: float = 3.0
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
        if self.lr <= 0 or self.penalty < 0 or min(self.beta) < 1:
            raise SlimError("lr must be above 0, penalty not below 0, and beta at least 1")


class SoftRounding:
    """A weight between two integers, entry by entry, and what Adam keeps of its gradients.

    Args:
        weight: the float weight.
        scale: its scale, as calibrated.
        zero_point: its zero point.
        scheme: its scheme.
        axis: of the channels, or along which groups lie.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int) -> None:
        self.scale = spread(scale, weight, axis, scheme.group_size)
        zero = spread(zero_point, weight, axis, scheme.group_size).to(weight.dtype)
        steps = weight / self.scale
        self.floor = torch.floor(steps)
        self.lowest, self.highest = scheme.qmin - zero, scheme.qmax - zero
        self.nearest = torch.round(steps) - self.floor  # 0 or 1; half to even, as everywhere
        share = (steps - self.floor).clamp(1e-4, 1 - 1e-4)
        self.variable = torch.logit((share - LOW) / (HIGH - LOW))
        self._first, self._second = torch.zeros_like(weight), torch.zeros_like(weight)
        self._steps = 0

    def shares(self) -> Tensor:
        """Return how far up each entry goes, 0 to 1."""
        return torch.sigmoid(self.variable).mul_(HIGH - LOW).add_(LOW).clamp_(0, 1)

    def soft(self) -> Tensor:
        """Return the weight with the shares as they are."""
        return self.at(self.shares())

    def hard(self) -> Tensor:
        """Return the weight on its grid, each entry at the nearer integer by its share."""
        return self.at(self.choice())

    def choice(self) -> Tensor:
        """Return 1 for each entry that goes up, 0 for the others."""
        return (self.variable >= 0).to(self.floor.dtype)

    def choose(self, up: Tensor) -> None:
        """Set the entries that go up (1) and down (0)."""
        self.variable = torch.where(up > 0.5, 1.0, -1.0)

    def at(self, up: Tensor) -> Tensor:
        """Return the weight for shares ``up``."""
        return torch.clamp(self.floor + up, self.lowest, self.highest) * self.scale

    def gradient(self, weight: Tensor, beta: float | None, penalty: float) -> Tensor:
        """Return the gradient of the loss for the variables.

        Args:
            weight: gradient for the soft weight.
            beta: exponent of the penalty, or ``None`` for no penalty.
            penalty: weight of the penalty ``1 - |2 share - 1| ** beta`` of each entry.
        """
        curve = torch.sigmoid(self.variable)
        shares = curve * (HIGH - LOW) + LOW
        integers = self.floor + shares
        inside = (integers > self.lowest) & (integers < self.highest)
        total = weight * self.scale * inside
        if beta is not None and penalty:
            side = 2 * shares - 1
            total -= (2 * beta * penalty) * side.sign() * side.abs().clamp_(max=1).pow_(beta - 1)
        active = (shares > 0) & (shares < 1)
        return total * curve * (1 - curve) * ((HIGH - LOW) * active)

    def step(self, gradient: Tensor, lr: float) -> None:
        """Make one step of Adam."""
        self._steps += 1
        self._first.lerp_(gradient, 1 - _DECAYS[0])
        self._second.mul_(_DECAYS[1]).addcmul_(gradient, gradient, value=1 - _DECAYS[1])
        rate = lr / (1 - _DECAYS[0] ** self._steps)
        root = (self._second / (1 - _DECAYS[1] ** self._steps)).sqrt_().add_(_EPS)
        self.variable.addcdiv_(self._first, root, value=-rate)


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned at a unit.

    Args:
        unit: its name.
        nearest: squared error of its output with weights rounded to nearest, over the squares of the output.
        error: the same with the weights that were chosen.
        changed: weights that do not go to their nearest integer.
        total: all weights.
    """

    unit: str
    nearest: float
    error: float
    changed: int
    total: int


def learn(
    name: str, reconstruction: Reconstruction, roundings: dict[str, SoftRounding], exact: Weights,
    options: LearningOptions, generator: torch.Generator, track: Track,
) -> Learned:  # fmt: skip
    """Learn the roundings of a unit; the variables hold the result, or nearest rounding where that is no worse.

    Args:
        name: of the unit.
        reconstruction: measures the errors of its outputs.
        roundings: by weight name.
        exact: the float weights by name.
        options: how to learn.
        generator: decides the order of the batches.
        track: gets one unit of progress for each step.
    """
    nearest = {weight: item.at(item.nearest) for weight, item in roundings.items()}
    before = reconstruction.total(nearest)
    unit = max(reconstruction.change(exact, nearest), 1e-30)
    entries = sum(item.floor.numel() for item in roundings.values())
    order: list[int] = []
    for step in range(options.iterations):
        if not order:
            order = torch.randperm(reconstruction.count, generator=generator).tolist()
        soft = {weight: item.soft() for weight, item in roundings.items()}
        loss, gradients = reconstruction.gradients(order.pop(), soft, 1 / unit)
        beta = annealed(step, options)
        for weight, item in roundings.items():
            item.step(item.gradient(gradients[weight], beta, options.penalty / entries), options.lr)
        if (step + 1) % _REPORTED == 0:
            track.advance(_REPORTED, loss=round(loss, 4))
    track.advance(options.iterations % _REPORTED)
    reconstruction.settle(True)
    after = reconstruction.total({weight: item.hard() for weight, item in roundings.items()})
    if not after < before:
        reconstruction.settle(False)
        for item in roundings.values():
            item.choose(item.nearest)
        after = before
    changed = sum(int((item.choice() != item.nearest).sum()) for item in roundings.values())
    return Learned(name, before, after, changed, entries)


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
    make: Callable[[Walk, Unit, list[Chunk], torch.Generator], Reconstruction],
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
        make: makes the reconstruction of a unit.
    """
    walk = Walk(prepared, calibrated, data, context, samples=options.samples, memory_mib=options.memory_mib,
                batch=options.batch)  # fmt: skip
    for place in left_out(prepared, units):
        put(prepared, place.name, walk.nearest(place))
        context.notes.append(f"{name}: {place.name} is rounded to nearest: it is used in several places or in place")
    found = []
    with context.progress.track(f"{name}: learning to round", options.iterations * len(units)) as track:
        for position, (unit, chunks) in enumerate(walk.run(units)):
            generator = torch.Generator().manual_seed(context.seed * 1_000_003 + position)
            exact = {place.name: get_tensor(prepared.graph, place.name).detach() for place in unit.weights}
            roundings = {}
            for place in unit.weights:
                scheme, values = prepared.weights[place.name], calibrated.weights[place.name]
                roundings[place.name] = SoftRounding(exact[place.name], *values, scheme, place.along(scheme))
            reconstruction = make(walk, unit, chunks, generator)
            with torch.no_grad():
                found.append(learn(unit.name, reconstruction, roundings, exact, options, generator, track))
            for place in unit.weights:
                put(prepared, place.name, roundings[place.name].hard())
    context.notes.append(_summary(name, found))
    return found


def _summary(name: str, found: Sequence[Learned]) -> str:
    changed, total = sum(item.changed for item in found), sum(item.total for item in found)
    gains = [10 * math.log10(item.nearest / item.error) for item in found if item.error > 0 and item.nearest > 0]
    gain = sum(gains) / len(gains) if gains else 0.0
    share = 100 * changed / total if total else 0.0
    return (
        f"{name}: {share:.1f} % of the weights of {len(found)} units are not rounded to nearest; "
        f"the error of the units' outputs falls by {gain:.1f} dB on average"
    )
