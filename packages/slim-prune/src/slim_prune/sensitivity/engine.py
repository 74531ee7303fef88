"""Measuring points: one pass of the whole model per batch, and of each pruned model only what differs from it.

For every batch the whole model runs once, as far as values are needed; each point then runs its own program from
there. Only one batch's values are held at a time, so memory stays bounded whatever the size of the data. A few groups
share a pass. What cannot be replayed is measured with the whole pruned forward, and a note says so.

Not here: which points (``analysis.py``), compiling programs (``program.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.data import batch_size, map_tensors, slice_batch, to_device
from slim_core.errors import SlimError
from slim_core.graph import analyse
from slim_core.graph.attributes import attribute_edits
from slim_core.graph.dims import rules_of
from slim_core.graph.isolate import edited, isolated
from slim_core.graph.record import Attempt
from slim_core.graph.rules.base import Rule
from slim_core.graph.shrink import cuts_of
from slim_core.graph.types import Coupling, Graph
from slim_core.training.evaluate import device_of
from slim_core.workload import Inputs, call, tensors_of
from slim_prune.edits import Indices, state_of
from slim_prune.sensitivity.capture import Capture, undisturbed
from slim_prune.sensitivity.curves import Base, Point
from slim_prune.sensitivity.facts import Facts, NotReplayableError, facts_of
from slim_prune.sensitivity.meter import Measure, Meter
from slim_prune.sensitivity.program import Program, compile_program, follows_from_shapes, taken
from slim_prune.sensitivity.quicker import make_quicker
from slim_prune.sensitivity.samples import Samples
from slim_prune.sensitivity.stopping import Differences, EarlyStop, SurestLast, surest_last

Key = tuple[str, int]
#: units that stay, of a group that keeps so many
Best = Callable[[str, int], Indices]

#: groups that share one pass of the whole model: more would save little, and a kill would cost more
_PACK = 8
#: a replay may differ from the pruned forward by so much of the output's scale: other orders of adding up
_CLOSE = 1e-4
#: samples that a replay is proved on
_PROOF = 2
_MOST_SITES = 16
_REPLAY, _WHOLE = "replay", "whole"


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
    """What belongs to inputs of one signature: the recording, the capture, the shape of outputs, the programs."""

    facts: Facts
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
        replay: compute only what depends on a group; otherwise every point runs the whole pruned forward.
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
        self._known = _signature(example_inputs)
        self._few = batch_size(example_inputs) if tensors_of(example_inputs) else 0
        self._sites: dict[Any, _Site | str] = {}
        self._whole: dict[str, None] = {}  # groups that are not replayed
        self._proved: set[str] = set()
        self._follows: dict[str, bool] = {}  # whether all arguments of a group's pruned forwards follow from shapes
        self._layout: dict[int, Tensor] | None = None
        self._whole_rows: list[NDArray[np.float64]] = []
        self._base: Base | None = None
        self._spread: float | None = None
        self._margins: NDArray[np.float64] | None = None  # of the whole model, where the samples come by them
        self._pilot = 0
        self.notes: list[str] = []
        self.stop = stop if stop is None or measure.by_sample else None
        if stop is not None and self.stop is None:
            self._note(f"'{measure.metric}' is no mean over samples: every point is measured on all of them")
        elif self.stop is not None and not samples.shuffled and len(samples) > 1:
            self.stop = None
            self._note("the samples cannot be put in random order: every point is measured on all of them")

    # --- the whole model ---

    def base(self) -> Base:
        """Measure the whole model."""
        if self._base is not None:
            return self._base
        meter = self._measure.meter()
        self._whole_rows.clear()
        margins: list[NDArray[np.float64] | None] = []
        with undisturbed(self._model):
            for batch, size in zip(self._samples, self._samples.sizes, strict=True):
                inputs = self._inputs(batch)
                with self._whole_forward(inputs):
                    outputs = call(self._model, inputs)
                on_device = to_device(batch, self._device)
                self._whole_rows.append(meter.update(outputs, on_device, size))
                margins.append(self._measure.margins(outputs, on_device) if self.stop is not None else None)
        value = meter.value()
        if not math.isfinite(value):
            raise SlimError(
                f"the whole model's '{self._measure.metric}' is {value}",
                hint="the model or the data holds NaN, or the metric is not defined on this data",
            )
        rows = np.concatenate(self._whole_rows) if self._whole_rows else np.zeros(0)
        if len(rows) and np.isin(rows, (0.0, 1.0)).all():
            self._spread = 1.0
        self._arrange(rows, margins)
        self._base = Base(value, meter.samples)
        return self._base

    def _arrange(self, rows: NDArray[np.float64], margins: Sequence[NDArray[np.float64] | None]) -> None:
        """Let the samples come in an order that decides sooner, where it is known how sure the whole model is."""
        known = [item for item in margins if item is not None]
        if self.stop is None or not self._samples.shuffled or len(known) < len(margins):
            return
        found = np.concatenate(known)
        if len(found) != len(rows) or not np.array_equal(found > 0, rows == 1.0) or not np.isfinite(found).all():
            return
        order, pilot = surest_last(found, self._samples.sizes)
        samples = self._samples.arranged(order)
        if samples is not None:
            self._samples = samples
            self._whole_rows = np.split(rows[order], np.cumsum(self._samples.sizes)[:-1])
            self._margins, self._pilot = found[order], pilot

    def remember(self, base: Base) -> None:
        """Take the whole model's value from an earlier run, where its value for each sample is not needed."""
        if self.stop is None:
            self._base = base

    @contextmanager
    def _whole_forward(self, inputs: Inputs) -> Iterator[None]:
        """Run the whole model inside with its kernels in the layout that is quickest."""
        if self._layout is None:
            self._layout = self._quick_layout(inputs)
        if not self._layout:
            yield
            return
        layout = self._layout
        with isolated(self._model, lambda _, tensor: layout.get(id(tensor), tensor)):
            yield

    def _quick_layout(self, inputs: Inputs) -> dict[int, Tensor]:
        """Return kernels with their channels last, by the id of the original, where the model runs the same so."""
        if not self._replay or self._device.type != "cpu":
            return {}
        layout = {
            id(tensor): _as_parameter(tensor.detach().contiguous(memory_format=torch.channels_last), tensor)
            for tensor in self._state.values()
            if tensor.dim() == 4 and tensor.is_floating_point() and tensor.is_contiguous()
        }
        if not layout:
            return {}
        few = slice_batch(inputs, 0, _PROOF)
        try:
            expected = tensors_of(call(self._model, few))
            with isolated(self._model, lambda _, tensor: layout.get(id(tensor), tensor)):
                found = tensors_of(call(self._model, few))
        except Exception:  # noqa: BLE001  a forward that insists on a layout
            return {}
        return layout if len(found) == len(expected) and all(map(_close, found, expected)) else {}

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
            with undisturbed(self._model):
                pack = self._pack(waiting, groups)
                points = self._measure_pack([key for name in pack for key in groups[name]], advance)
            yield points
            waiting = waiting[len(pack) :]

    def _pack(self, waiting: Sequence[str], groups: Mapping[str, Sequence[Key]]) -> list[str]:
        """Return the next groups that are measured in one pass: so many that their values fit into memory together."""
        batch = next(iter(self._samples))
        site = self._site(self._inputs(batch))
        waiting = waiting[:_PACK]
        self._prove(self._inputs(batch), [key for name in waiting for key in groups[name]])
        pack: list[str] = []
        held: dict[int, int] = {}
        for name in waiting:
            key = groups[name][0]
            program = self._program(site, key) if isinstance(site, _Site) else None
            if program is not None and isinstance(site, _Site):
                values = site.facts.graph.values
                held |= {item.value: _bytes(values[item.value]) for item in program.wanted}
                if pack and sum(held.values()) > self._memory:
                    break
            pack.append(name)
        return pack

    def _measure_pack(self, keys: Sequence[Key], advance: Callable[[float], None]) -> list[Point]:
        running = [_Running(key, self._measure.meter(), self._paired()) for key in keys]
        seen = 0
        for number, (batch, size) in enumerate(zip(self._samples, self._samples.sizes, strict=True)):
            active = [item for item in running if not item.done]
            if not active:
                break
            inputs, on_device = self._inputs(batch), to_device(batch, self._device)
            outputs = self._outputs(inputs, [item.key for item in active])
            seen += size
            for item in active:
                found = outputs(item.key)
                rows = item.meter.update(found, on_device, size)
                advance(size / self._samples.count)
                margins = self._measure.margins(found, on_device) if self._margins is not None else None
                if item.differences is not None and self._decided(item, rows, margins, number, seen):
                    item.done = True
                    advance(1 - seen / self._samples.count)
            del outputs, found
        points = [self._point(item) for item in running]
        for site in self._sites.values():
            if isinstance(site, _Site):
                site.programs.clear()
        return points

    def _paired(self) -> Differences | None:
        if self.stop is None:
            return None
        if self._margins is not None:
            return SurestLast(self._margins, self._pilot, self.stop.confidence)
        return Differences(self._samples.count, self.stop.confidence, self._spread)

    def _decided(
        self, item: _Running, rows: NDArray[np.float64], margins: NDArray[np.float64] | None, number: int, seen: int
    ) -> bool:
        whole = self._whole_rows[number]
        assert self.stop is not None  # noqa: S101  the caller saw to it
        assert item.differences is not None  # noqa: S101
        if len(rows) != len(whole) or not len(rows):
            item.differences = None
            return False
        if isinstance(item.differences, SurestLast):
            item.differences.add(rows - whole, margins)
        else:
            item.differences.add(rows - whole)
        drop = -item.differences.mean if self._measure.higher_is_better else item.differences.mean
        return seen < self._samples.count and self.stop.decided(drop, item.differences.margin, seen)

    def _point(self, item: _Running) -> Point:
        name, kept = item.key
        method = _WHOLE if name in self._whole else _REPLAY
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

    # --- outputs of pruned models ---

    def _outputs(self, inputs: Inputs, keys: Sequence[Key]) -> Callable[[Key], Any]:
        """Return what gives each point's outputs on a batch; the whole model has run by then, as far as needed."""
        self._prove(inputs, keys)
        site = self._site(inputs)
        programs: dict[Key, Program] = {}
        for key in keys:
            program = self._program(site, key)
            if program is not None:
                programs[key] = program
        whole: dict[int, Tensor] = {}
        if programs and isinstance(site, _Site):
            try:
                whole = self._captured(site, inputs, list(programs.values()))
            except NotReplayableError as error:
                for name, _ in programs:
                    self._give_up(name, str(error))

        def outputs(key: Key) -> Any:
            if key in programs and key[0] not in self._whole and isinstance(site, _Site):
                return _filled(site.template, programs[key].run(whole))
            return self._pruned_forward(key, inputs)

        return outputs

    def _captured(self, site: _Site, inputs: Inputs, programs: Sequence[Program]) -> dict[int, Tensor]:
        wanted = {item.value for program in programs for item in program.wanted}
        last = max(program.last for program in programs)
        with self._whole_forward(inputs):
            if site.template is None:
                site.template = call(self._model, inputs)
            return site.capture.run(inputs, wanted, last)

    def _pruned_forward(self, key: Key, inputs: Inputs) -> Any:
        """Run the whole pruned forward: the user's own, on smaller tensors, without a copy of the model."""
        kept = {key[0]: self._best(*key)}
        cuts = cuts_of(self._coupling, kept)

        def smaller(name: str, tensor: Tensor) -> Tensor:
            return _as_parameter(taken(tensor.detach(), cuts[name]), tensor) if name in cuts else tensor

        with isolated(self._model, smaller), edited(attribute_edits(self._model, self._coupling, kept)):
            return call(self._model, inputs)

    def _program(self, site: _Site | str, key: Key) -> Program | None:
        """Return the program of a point for inputs of a site's signature; ``None`` where there is none."""
        name = key[0]
        if name in self._whole:
            return None
        if isinstance(site, str):
            self._give_up(name, site)
            return None
        if key not in site.programs:
            try:
                site.programs[key] = self._compiled(site, key)
            except NotReplayableError as error:
                self._give_up(name, str(error))
                return None
        return site.programs[key]

    def _learn(self, site: _Site | str, key: Key) -> None:
        """Record one pruned forward of a group, to know whether others follow from it."""
        if isinstance(site, str):
            return
        kept = {key[0]: self._best(*key)}
        try:
            self._follows[key[0]] = follows_from_shapes(site.facts, self._recorded(site, kept), kept)
        except NotReplayableError as error:
            self._give_up(key[0], str(error))

    def _compiled(self, site: _Site, key: Key) -> Program:
        kept = {key[0]: self._best(*key)}
        pruned: Graph | None = None
        if not self._follows.get(key[0], False):
            pruned = self._recorded(site, kept)
            follows_from_shapes(site.facts, pruned, kept)
        program, shapes = compile_program(site.facts, pruned, kept, self._state, self._device)
        return make_quicker(program, shapes, self._device)

    def _recorded(self, site: _Site, kept: Mapping[str, Indices]) -> Graph:
        """Return the recording of a pruned forward, made without data."""
        attempt = Attempt(
            self._model,
            site.inputs,
            "meta",
            self._rules,
            cuts=cuts_of(site.facts.coupling, kept),
            edits=attribute_edits(self._model, site.facts.coupling, kept),
            locate=False,
        )
        pruned = attempt.run()
        if pruned is None:
            raise NotReplayableError(f"the pruned forward cannot be recorded: {attempt.error}")
        return pruned

    def _prove(self, inputs: Inputs, keys: Sequence[Key]) -> None:
        """Compare replays of each group with the pruned forward itself, once, on few samples."""
        groups: dict[str, list[Key]] = {}
        for key in keys:
            if key[0] not in self._proved:
                groups.setdefault(key[0], []).append(key)
        if not groups:
            return
        self._proved.update(groups)
        few = slice_batch(inputs, 0, min(self._few or _PROOF, _PROOF))
        site = self._site(few)
        for own in groups.values():
            self._learn(site, own[0])
        ends = [own[-1] for own in groups.values()]
        programs = {key: program for key in ends if (program := self._program(site, key)) is not None}
        if not programs or not isinstance(site, _Site):
            return
        try:
            whole = self._captured(site, few, list(programs.values()))
        except NotReplayableError as error:
            for name in groups:
                self._give_up(name, str(error))
            return
        for key, program in programs.items():
            if key[0] in self._whole:
                continue
            expected = tensors_of(self._pruned_forward(key, few))
            try:
                found = program.run(whole)
            except Exception as error:  # noqa: BLE001  an operator that cannot run by itself
                self._give_up(key[0], f"{type(error).__name__}: {error}")
                continue
            if len(found) != len(expected) or not all(map(_close, found, expected)):
                self._give_up(key[0], "the replay computes something else than the pruned model")

    def _give_up(self, name: str, reason: str) -> None:
        if name not in self._whole:
            self._whole[name] = None
            if self._replay:
                self._note(f"{name}: every point ran the whole pruned forward, not a part of it: {reason}")

    # --- inputs ---

    def _inputs(self, batch: Any) -> Inputs:
        return self._measure.task.inputs(to_device(batch, self._device))

    def _site(self, inputs: Inputs) -> _Site | str:
        """Return what belongs to inputs like these, or why they cannot be replayed."""
        if not self._replay:
            return "replaying is switched off"
        signature = _signature(inputs)
        if signature not in self._sites:
            try:
                self._sites[signature] = self._new_site(inputs, signature)
            except NotReplayableError as error:
                self._sites[signature] = str(error)
        return self._sites[signature]

    def _new_site(self, inputs: Inputs, signature: Any) -> _Site:
        if len(self._sites) >= _MOST_SITES:
            raise NotReplayableError(f"the batches have more than {_MOST_SITES} different shapes")
        if signature == self._known:
            coupling = self._coupling
        else:
            try:
                coupling = analyse(self._model, inputs, prefer=self._coupling.prefer, registry=self._registry)
            except SlimError as error:
                raise NotReplayableError(f"the analysis fails on a batch: {error.what}") from None
            if not _same_groups(coupling, self._coupling):
                raise NotReplayableError("a batch's shapes give other channel groups than the example inputs")
        if coupling.graph.device_kind != "meta":
            raise NotReplayableError("the forward looks at values, so that it may run otherwise on other data")
        facts = facts_of(coupling)
        return _Site(facts, Capture(self._model, facts, self._rules), inputs)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _as_parameter(data: Tensor, like: Tensor) -> Tensor:
    return nn.Parameter(data, requires_grad=False) if isinstance(like, nn.Parameter) else data


def _bytes(value: Any) -> int:
    size: int = getattr(torch, value.dtype).itemsize
    return int(math.prod(value.shape)) * size


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
