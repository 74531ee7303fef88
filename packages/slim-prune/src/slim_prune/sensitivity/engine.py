"""Measuring points: one pass of the whole model per batch, and of each pruned model only what differs from it.

For every batch the whole model runs once, as far as values are needed; each point then runs its own program from
there. Only one batch's values are held at a time, so memory stays bounded whatever the size of the data. Groups whose
programs are short share a pass. What cannot be replayed is measured with a pruned copy, and a note says so.

Not here: which points (``analysis.py``), compiling programs (``program.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.data import map_tensors, to_device
from slim_core.errors import SlimError
from slim_core.graph import analyse
from slim_core.graph.attributes import attribute_edits
from slim_core.graph.dims import rules_of
from slim_core.graph.record import Attempt
from slim_core.graph.rules.base import Rule
from slim_core.graph.shrink import cuts_of
from slim_core.graph.types import Coupling
from slim_core.training.evaluate import device_of
from slim_core.workload import Inputs, call, tensors_of
from slim_prune.edits import Indices, edits_of, state_of
from slim_prune.masking import masked
from slim_prune.sensitivity.capture import Capture, undisturbed
from slim_prune.sensitivity.curves import Base, Point
from slim_prune.sensitivity.meter import Measure, Meter
from slim_prune.sensitivity.program import NotReplayableError, Program, compile_program
from slim_prune.sensitivity.samples import Samples
from slim_prune.sensitivity.stopping import Differences, EarlyStop
from slim_prune.surgery import copy_and_operate

Key = tuple[str, int]
#: units that stay, of a group that keeps so many
Best = Callable[[str, int], Indices]

#: groups that share one pass of the whole model: more would save little, and a kill would cost more
_PACK = 4
#: a replay may differ from the pruned copy by so much of the output's scale: other orders of adding up
_CLOSE = 1e-4
_REPLAY, _MASKED, _REBUILT = "replay", "masked", "rebuilt"


class RuleBook:
    """Operator rules of plugins as the analysis asks a registry for them; it can be sent to other processes."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(self._rules) if kind == "op_rules" else ()

    def get(self, kind: str, name: str) -> Rule:
        return self._rules[name]


@dataclass(slots=True)
class _Site:
    """What belongs to inputs of one signature: the analysis, the capture, the shape of the outputs, the programs."""

    coupling: Coupling
    capture: Capture
    inputs: Any
    template: Any = None
    programs: dict[Key, Program] = field(default_factory=dict)


@dataclass(slots=True)
class _Running:
    """A point that is being measured."""

    key: Key
    meter: Meter
    differences: Differences | None
    done: bool = False


class Engine:
    """Measures points of one model on one set of samples.

    Args:
        model: the model, without wrappers; it is left as it is.
        coupling: its analysis.
        example_inputs: the inputs that it was analysed with.
        measure: the metric.
        samples: the data.
        best: which units stay.
        stop: when a point has seen enough; ``None``: after all samples.
        memory: bytes of the whole model's values that are held for several groups at once.
        rules: further operator rules, by name.
        replay: compute only what depends on a group; otherwise every point runs a whole pruned copy.
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        example_inputs: Inputs,
        measure: Measure,
        samples: Samples,
        best: Best,
        *,
        stop: EarlyStop | None = None,
        memory: int = 1 << 29,
        rules: Mapping[str, Rule] | None = None,
        replay: bool = True,
    ) -> None:
        self._model, self._coupling, self._measure, self._samples = model, coupling, measure, samples
        self._best, self._memory, self._replay = best, memory, replay
        self._registry: Any = RuleBook(rules or {})
        self._rules = rules_of(self._registry)
        self._device = device_of(model)
        self._state = state_of(model)
        self._sites: dict[Any, _Site | str] = {}
        self._proved: set[str] = set()
        self._whole_rows: list[NDArray[np.float64]] = []
        self._base: Base | None = None
        self._spread: float | None = None
        self._known = (_signature(_as_inputs(example_inputs)), coupling)
        self.notes: list[str] = []
        self.stop = stop if stop is None or measure.by_sample else None
        if stop is not None and self.stop is None:
            self._note(f"'{measure.metric}' is no mean over samples: every point is measured on all of them")
        elif self.stop is not None and not samples.shuffled and len(samples) > 1:
            self.stop = None
            self._note("the batches cannot be put in random order: every point is measured on all samples")

    # --- the whole model ---

    def base(self, advance: Callable[[], None] = lambda: None) -> Base:
        """Measure the whole model."""
        if self._base is not None:
            return self._base
        meter = self._measure.meter()
        self._whole_rows.clear()
        with self._undisturbed():
            for batch, size in zip(self._samples, self._samples.sizes, strict=True):
                inputs = self._inputs(batch)
                outputs = call(self._model, inputs)
                site = self._site(inputs)
                if isinstance(site, _Site) and site.template is None:
                    site.template = outputs
                self._whole_rows.append(meter.update(outputs, to_device(batch, self._device), size))
                advance()
        value = meter.value()
        if not math.isfinite(value):
            raise SlimError(
                f"the whole model's '{self._measure.metric}' is {value}",
                hint="the model or the data holds NaN, or the metric is not defined on this data",
            )
        rows = np.concatenate(self._whole_rows) if self._whole_rows else np.zeros(0)
        if len(rows) and np.isin(rows, (0.0, 1.0)).all():
            self._spread = 1.0
        self._base = Base(value, meter.samples)
        return self._base

    def remember(self, base: Base) -> None:
        """Take the whole model's value from an earlier run, where samples of it are not needed."""
        if self.stop is None:
            self._base = base

    # --- points ---

    def measure(self, keys: Sequence[Key], advance: Callable[[float], None] = lambda _: None) -> Iterator[list[Point]]:
        """Measure points; yields them a few groups at a time.

        Args:
            keys: group names and numbers of kept units. Groups are best given in the order of the forward.
            advance: called with the share of a point that was just done.
        """
        self.base()
        groups: dict[str, list[Key]] = {}
        for key in keys:
            groups.setdefault(key[0], []).append(key)
        waiting = list(groups)
        while waiting:
            pack = waiting[:_PACK]
            with self._undisturbed():
                points = self._measure_pack([key for name in pack for key in groups[name]], advance)
            yield points
            waiting = waiting[len(pack) :]

    def _measure_pack(self, keys: Sequence[Key], advance: Callable[[float], None]) -> list[Point]:
        with ExitStack() as stack:
            ways = {key: self._way(key, stack) for key in keys}
            running = [_Running(key, self._measure.meter(), self._paired()) for key in keys]
            seen = 0
            for number, (batch, size) in enumerate(zip(self._samples, self._samples.sizes, strict=True)):
                active = [item for item in running if not item.done]
                if not active:
                    break
                inputs = self._inputs(batch)
                on_device = to_device(batch, self._device)
                outputs = self._outputs(inputs, [item.key for item in active], ways)
                seen += size
                for item in active:
                    rows = item.meter.update(outputs(item.key), on_device, size)
                    advance(size / self._samples.count)
                    if item.differences is not None and self._decided(item, rows, number, seen):
                        item.done = True
                        advance(1 - seen / self._samples.count)
                del outputs
            points = [self._point(item, ways[item.key].method) for item in running]
        for site in self._sites.values():
            if isinstance(site, _Site):
                site.programs.clear()
        return points

    def _paired(self) -> Differences | None:
        if self.stop is None:
            return None
        return Differences(self._samples.count, self.stop.confidence, self._spread)

    def _decided(self, item: _Running, rows: NDArray[np.float64], number: int, seen: int) -> bool:
        whole = self._whole_rows[number]
        assert self.stop is not None  # noqa: S101  the caller saw to it
        assert item.differences is not None  # noqa: S101
        if len(rows) != len(whole) or not len(rows):
            item.differences = None
            return False
        item.differences.add(rows - whole)
        drop = -item.differences.mean if self._measure.higher_is_better else item.differences.mean
        return seen < self._samples.count and self.stop.decided(drop, item.differences.margin, seen)

    def _point(self, item: _Running, method: str) -> Point:
        name, kept = item.key
        if item.done and item.differences is not None:  # paired: what the whole model has on the rest is known
            value = self.base().value + item.differences.mean
            return Point(name, kept, value, item.meter.samples, item.differences.margin, method)
        value = item.meter.value()
        if not math.isfinite(value):
            raise SlimError(
                f"'{self._measure.metric}' is {value} with {kept} units kept",
                where=f"channel group '{name}'",
                hint="exclude this group, or look for numbers that overflow in it",
            )
        return Point(name, kept, value, item.meter.samples, 0.0, method)

    # --- ways to compute a point ---

    def _way(self, key: Key, stack: ExitStack) -> _Way:
        name, count = key
        kept = {name: self._best(name, count)}
        return _Way(self, key, kept, stack)

    def _outputs(self, inputs: Inputs, keys: Sequence[Key], ways: Mapping[Key, _Way]) -> Callable[[Key], Any]:
        """Return what gives each point's outputs on a batch; the whole model has run by then, as far as needed."""
        site = self._site(inputs) if any(ways[key].method == _REPLAY for key in keys) else ""
        programs: dict[Key, Program] = {}
        for key in keys:
            way = ways[key]
            if way.method != _REPLAY:
                continue
            if isinstance(site, str):
                way.give_up(site)
                continue
            program = way.program(site)
            if program is not None:
                programs[key] = program
        whole: dict[int, Tensor] = {}
        if programs and isinstance(site, _Site):
            whole = self._whole_values(site, inputs, programs, ways)
            if site.template is None:
                site.template = call(self._model, inputs)
            self._prove(site, inputs, whole, programs, ways)

        def outputs(key: Key) -> Any:
            program = programs.get(key)
            if program is not None and ways[key].method == _REPLAY and isinstance(site, _Site):
                return _filled(site.template, program.run(whole))
            return ways[key].whole_outputs(inputs)

        return outputs

    def _whole_values(
        self, site: _Site, inputs: Inputs, programs: Mapping[Key, Program], ways: Mapping[Key, _Way]
    ) -> dict[int, Tensor]:
        wanted = {item.value for program in programs.values() for item in program.wanted}
        last = max(program.last for program in programs.values())
        try:
            return site.capture.run(inputs, wanted, last)
        except NotReplayableError as error:
            for key in programs:
                ways[key].give_up(str(error))
            return {}

    def _prove(
        self,
        site: _Site,
        inputs: Inputs,
        whole: Mapping[int, Tensor],
        programs: Mapping[Key, Program],
        ways: Mapping[Key, _Way],
    ) -> None:
        """Compare one replay of each group with the pruned copy itself, once."""
        for key, program in programs.items():
            name = key[0]
            if name in self._proved or ways[key].method != _REPLAY:
                continue
            self._proved.add(name)
            expected = tensors_of(ways[key].whole_outputs(inputs))
            try:
                found = program.run(whole)
                same = len(found) == len(expected) and all(map(_close, found, expected))
                reason = "" if same else "the replay computes something else than the pruned model"
            except Exception as error:  # noqa: BLE001  an operator that cannot run by itself
                reason = f"the replay fails: {type(error).__name__}: {error}"
            if reason:
                for other in programs:
                    if other[0] == name:
                        ways[other].give_up(reason)

    # --- inputs ---

    def _undisturbed(self) -> Any:
        return undisturbed(self._model)

    def _inputs(self, batch: Any) -> Inputs:
        return self._measure.task.inputs(to_device(batch, self._device))

    def _site(self, inputs: Inputs) -> _Site | str:
        """Return what belongs to inputs like these, or why they cannot be replayed."""
        if not self._replay:
            return "replaying is switched off"
        signature = _signature(_as_inputs(inputs))
        if signature not in self._sites:
            try:
                self._sites[signature] = self._new_site(inputs, signature)
            except NotReplayableError as error:
                self._sites[signature] = str(error)
        return self._sites[signature]

    def _new_site(self, inputs: Inputs, signature: Any) -> _Site:
        if len(self._sites) >= _MOST_SITES:
            raise NotReplayableError(f"the inputs have more than {_MOST_SITES} different shapes")
        if signature == self._known[0]:
            coupling = self._coupling
        else:
            try:
                coupling = analyse(self._model, inputs, registry=self._registry)
            except SlimError as error:
                raise NotReplayableError(f"the analysis fails on a batch: {error.what}") from None
            if not _same_groups(coupling, self._coupling):
                raise NotReplayableError("a batch's shapes give other channel groups than the example inputs")
        if coupling.graph.device_kind != "meta":
            raise NotReplayableError("the forward looks at values, so that it may run otherwise on other data")
        return _Site(coupling, Capture(self._model, coupling.graph, self._rules), inputs)

    def program(self, site: _Site, key: Key, kept: Mapping[str, Indices]) -> Program:
        """Return the program of a point for inputs of a site's signature."""
        if key not in site.programs:
            attempt = Attempt(
                self._model,
                site.inputs,
                "meta",
                self._rules,
                cuts=cuts_of(site.coupling, kept),
                edits=attribute_edits(self._model, site.coupling, kept),
                locate=False,
            )
            pruned = attempt.run()
            if pruned is None:
                raise NotReplayableError(f"the pruned forward cannot be recorded: {attempt.error}")
            site.programs[key] = compile_program(site.coupling, pruned, kept, self._state, self._device)
        return site.programs[key]

    def edits(self, kept: Mapping[str, Indices]) -> Any:
        return edits_of(self._model, self._coupling, kept)

    @property
    def model(self) -> nn.Module:
        return self._model

    def exact(self, name: str) -> bool:
        return self._coupling.group(name).exact

    def fits(self, bytes_: int) -> bool:
        return bytes_ <= self._memory

    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in {id(t): t for t in self._state.values()}.values())

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def gave_up(self, name: str, reason: str) -> None:
        self._note(f"{name}: measured with whole pruned copies, not in part: {reason}")


_MOST_SITES = 8


class _Way:
    """How one point is computed: a replay, or a whole model when that is not possible."""

    def __init__(self, engine: Engine, key: Key, kept: Mapping[str, Indices], stack: ExitStack) -> None:
        self._engine, self._key, self._kept, self._stack = engine, key, kept, stack
        self._copy: nn.Module | None = None
        self.method = _REPLAY

    def program(self, site: _Site) -> Program | None:
        try:
            return self._engine.program(site, self._key, self._kept)
        except NotReplayableError as error:
            self.give_up(str(error))
            return None

    def give_up(self, reason: str) -> None:
        if self.method == _REPLAY:
            self._engine.gave_up(self._key[0], reason)
            small = self._engine.fits(self._engine.state_bytes() * _COPIES)
            self.method = _REBUILT if small or not self._engine.exact(self._key[0]) else _MASKED

    def whole_outputs(self, inputs: Inputs) -> Any:
        """Run the whole pruned copy, or the whole model under a mask."""
        edits = self._engine.edits(self._kept)
        if self.method == _MASKED:
            with masked(self._engine.model, edits) as model:
                return call(model, inputs)
        copied = self._copy
        if copied is None:
            copied = copy_and_operate(self._engine.model, edits)
            if self.method == _REBUILT:
                self._copy = copied
        return call(copied, inputs)


_COPIES = 16


def _filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    parts = iter(tensors)
    return map_tensors(template, lambda _: next(parts))


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(found, expected))
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(torch.allclose(found, expected, rtol=0.0, atol=_CLOSE * max(scale, 1e-6), equal_nan=True))


def _as_inputs(inputs: Any) -> Any:
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def _signature(value: Any) -> Any:
    """Return what two inputs of the same shapes have in common."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, Mapping):
        return tuple((str(name), _signature(item)) for name, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(_signature(item) for item in value)
    return repr(value)


def _same_groups(one: Coupling, other: Coupling) -> bool:
    if [(group.name, group.units) for group in one.groups] != [(group.name, group.units) for group in other.groups]:
        return False
    for first, second in zip(one.groups, other.groups, strict=True):
        if [(m.name, m.dim) for m in first.members] != [(m.name, m.dim) for m in second.members]:
            return False
        if not all(np.array_equal(m.indices, n.indices) for m, n in zip(first.members, second.members, strict=True)):
            return False
    return True
