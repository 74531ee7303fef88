"""``sensitivity()``: which points to measure, who measures them, and where they are kept meanwhile.

Not here: measuring (``engine.py``), the store (``store.py``), worker processes (``workers.py``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from slim_core.errors import SlimError
from slim_core.graph import analyse
from slim_core.graph.isolate import unwrap
from slim_core.graph.rules.base import Preference, Rule, refs_of
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.progress import Progress, SilentProgress
from slim_core.training.state import digest
from slim_core.workload import DataSource, Inputs, Task
from slim_prune import importance as importances
from slim_prune.allocation.grid import Grid, channels_per_unit
from slim_prune.context import Context
from slim_prune.edits import Indices, state_of
from slim_prune.errors import PlanError
from slim_prune.options import as_patterns, check_numbers, choices_of
from slim_prune.scorer import Scorer, context_of
from slim_prune.selection import by_pattern
from slim_prune.sensitivity.curves import Base, Curve, Curves, Point
from slim_prune.sensitivity.engine import Engine, Key
from slim_prune.sensitivity.meter import Measure
from slim_prune.sensitivity.samples import Samples
from slim_prune.sensitivity.shards import Shard, parse_shard, share_of
from slim_prune.sensitivity.stopping import RULE, EarlyStop
from slim_prune.sensitivity.store import Store

if TYPE_CHECKING:
    from slim_core.registry import Registry

MEMORY = 1 << 29
#: seconds that a worker may be silent: a batch of one point takes far less
SILENCE = 3600.0


@dataclass(frozen=True)
class Job:
    """Everything that it takes to measure: what :func:`run` and worker processes are given.

    Args:
        model: the model.
        example_inputs: inputs that ``coupling`` was made with.
        coupling: the analysis.
        task: what is measured.
        val: the batches that it is measured on.
        metric: name of the metric; ``None``: the task's primary one.
        orders: units of each group, the most important first.
        keys: the points, in the order of the forward.
        identity: what tells these points from others.
        samples: use the first so many only.
        stop: early stopping.
        seed: of the order of samples.
        memory: see :class:`slim_prune.sensitivity.engine.Engine`.
        replay: see there.
        rules: operator rules of plugins.
    """

    model: nn.Module
    example_inputs: Inputs
    coupling: Coupling
    task: Task
    val: DataSource
    metric: str | None
    orders: Mapping[str, Indices]
    keys: tuple[Key, ...]
    samples: int | None = None
    stop: EarlyStop | None = None
    seed: int = 0
    memory: int = MEMORY
    replay: bool = True
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def best(self, name: str, count: int) -> Indices:
        return np.sort(self.orders[name][:count])

    def read(self) -> Samples:
        """Read the data."""
        return Samples(
            self.val,
            limit=self.samples,
            seed=self.seed if self.stop is not None else None,
            even=Measure.of(self.task, self.metric).by_sample,
            memory=self.memory,
        )

    def identity(self, samples: Samples) -> dict[str, Any]:
        """Return what tells these points from others."""
        measure = Measure.of(self.task, self.metric)
        stop = {**self.stop.to_json(), "rule": RULE} if self.stop is not None else None
        return {
            "model": model_identity(self.model),
            "data": samples.identity,
            "samples": samples.count,
            "task": self.task.name,
            "metric": measure.metric,
            "ranking": _digest(*(f"{name}:{order.tolist()}".encode() for name, order in self.orders.items())),
            "stop": stop,
            "seed": self.seed if stop is not None else None,
        }

    def engine(self, samples: Samples) -> Engine:
        return Engine(
            self.model,
            self.coupling,
            self.example_inputs,
            Measure.of(self.task, self.metric),
            samples,
            self.best,
            stop=self.stop,
            memory=self.memory,
            rules=self.rules,
            replay=self.replay,
        )


def sensitivity(
    model: nn.Module,
    example_inputs: Inputs,
    task: Task,
    val: DataSource,
    *,
    metric: str | None = None,
    importance: Any = "l1",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    points: int = 8,
    counts: Mapping[str, Sequence[int]] | None = None,
    round_to: int = 8,
    min_channels: int | Mapping[str, int] = 1,
    prefer: Preference = "heads",
    samples: int | None = None,
    early_stop: EarlyStop | float | None = None,
    folder: str | os.PathLike[str] | None = None,
    shard: str | tuple[int, int] | None = None,
    workers: int = 0,
    timeout: float = SILENCE,
    train: DataSource | None = None,
    seed: int = 0,
    memory: int = MEMORY,
    replay: bool = True,
    progress: Progress | None = None,
    coupling: Coupling | None = None,
    registry: Registry | None = None,
) -> Curves:
    """Measure what a metric becomes when one channel group at a time keeps fewer of its channels.

    The model is not changed. Of each group the most important units are kept. Only what depends on the group is
    computed, from the values that the whole model has before it; the results are those of pruned models.

    Args:
        model: any model whose forward runs on ``example_inputs``.
        example_inputs: positional inputs (tuple, batch first), keyword inputs (mapping) or one tensor.
        task: how batches split and what is measured.
        val: batches to measure on.
        metric: name of the task's metric, or ``"loss"``; ``None``: the task's primary metric.
        importance: which units go first: a criterion's name, a mapping with its options, or a function.
        include: globs over module paths; a group is included when a module that makes its channels matches.
        exclude: globs; a group is excluded when any module that it touches matches.
        points: how many counts are measured for each group, evenly spread over those that ``round_to`` and
            ``min_channels`` permit, the smallest among them.
        counts: kept channels to measure instead, by glob.
        round_to: kept channels are a multiple of this.
        min_channels: the least that any layer keeps, for all or by glob.
        prefer: what attention loses first, see :func:`slim_prune.plan`.
        samples: use the first so many samples only; ``None``: all.
        early_stop: stop a point when its confidence interval decides: the tolerance in the metric's unit, or all
            settings as :class:`EarlyStop`; ``None``: every point is measured on all samples.
        folder: where measured points are kept, one by one: a run that was killed goes on there. ``None``: nowhere.
        shard: measure one part of the points: ``"1/4"``. Merge the parts, or let them share ``folder``.
        workers: processes that share the work on this machine; 0: this one measures.
        timeout: seconds without any sign of a worker after which it is given up on, and started anew.
        train: training batches, for criteria that look at data.
        seed: of criteria that draw, and of the order of samples with ``early_stop``.
        memory: bytes up to which data, and values between layers, are kept.
        replay: compute only what depends on a group; off, every point runs a whole pruned copy.
        progress: where to report.
        coupling: the analysis of this very model, when it has been made already.
        registry: where plugins' criteria are looked up.

    Raises:
        PatternError: a pattern matches nothing; lists close names.
        PlanError: ``folder`` holds points of another model, other data or settings; or points that contradict.
        DataError: there are no samples, or they can be read only once.
        SlimError: the task has no such metric, or an argument means nothing.
    """
    check_numbers({}, round_to, min_channels)
    if points < 1:
        raise SlimError(f"points must be at least 1, not {points}", where="points")
    Measure.of(task, metric)
    label, criterion = importances.resolve(importance, registry)
    importances.check_data(label, criterion, task=task, train=train, val=val)
    model = unwrap(model)
    coupling = coupling if coupling is not None else analyse(model, example_inputs, prefer=prefer, registry=registry)
    choices = choices_of(
        model,
        coupling,
        include=as_patterns(include),
        exclude=as_patterns(exclude),
        round_to=round_to,
        min_channels=min_channels,
        patterns=tuple(counts or ()),
    )
    context = context_of(
        model,
        example_inputs,
        coupling,
        Scorer(label, criterion),
        task=task,
        train=train,
        val=val,
        seed=seed,
        progress=progress or SilentProgress(),
        registry=registry,
    )
    return curves_of(
        context,
        {choice.name: choice.grid for choice in choices},
        metric=metric,
        points=points,
        counts=counts,
        samples=samples,
        stop=EarlyStop(early_stop) if isinstance(early_stop, float | int) else early_stop,
        folder=Path(folder) if folder is not None else None,
        shard=shard,
        workers=workers,
        timeout=timeout,
        memory=memory,
        replay=replay,
    )


def curves_of(
    context: Context,
    grids: Mapping[str, Grid],
    *,
    metric: str | None = None,
    points: int = 8,
    counts: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    stop: EarlyStop | None = None,
    folder: Path | None = None,
    shard: str | tuple[int, int] | None = None,
    workers: int = 0,
    timeout: float = SILENCE,
    memory: int = MEMORY,
    replay: bool = True,
    by_identity: bool = False,
) -> Curves:
    """Measure the curves of the groups in ``grids`` in the surroundings of a plan; see :func:`sensitivity`.

    With ``by_identity`` the points are kept in a subfolder named by what is measured: a folder serves several models.
    """
    context.require("task", "val", by="sensitivity")
    assert context.task is not None  # noqa: S101  for the type checker
    assert context.val is not None  # noqa: S101
    groups = in_order([context.coupling.group(name) for name in grids], context.coupling)
    keys = tuple(
        (group.name, count) for group in groups for count in measured_counts(group, grids[group.name], points, counts)
    )
    job = Job(
        context.model,
        context.example_inputs,
        context.coupling,
        context.task,
        context.val,
        metric,
        {group.name: np.argsort(-context.score(group), kind="stable").astype(np.int64) for group in groups},
        keys,
        samples,
        stop,
        context.seed,
        memory,
        replay,
        plugin_rules(context.registry),
    )
    part = parse_shard(shard)
    return run(job, groups, folder, part, workers, timeout, context.progress, by_identity=by_identity)


def run(
    job: Job,
    groups: Sequence[ChannelGroup],
    folder: Path | None,
    part: Shard,
    workers: int,
    timeout: float,
    progress: Progress,
    *,
    by_identity: bool = False,
) -> Curves:
    """Measure a job's points, or a part of them, and return them as curves."""
    if workers < 0:
        raise SlimError(f"workers must be at least 0, not {workers}", where="workers", hint="0: this process measures")
    if timeout <= 0:
        raise SlimError(f"timeout is a number of seconds above 0, not {timeout:g}", where="timeout")
    data = job.read()
    identity = job.identity(data)
    if folder is not None and by_identity:
        folder = folder / f"sensitivity-{_digest(repr(sorted(identity.items())).encode())[:16]}"
    mine = share_of(job.keys, job.coupling, part)
    if workers and mine:
        from slim_prune.sensitivity.workers import measure_in_processes

        base, points, notes = measure_in_processes(job, data, identity, mine, folder, part, workers, timeout, progress)
    else:
        base, points, notes = _measure_here(job, data, identity, mine, folder, part, progress)
    wanted = set(mine)
    measure = Measure.of(job.task, job.metric)
    empty = Curves(
        measure.metric,
        measure.higher_is_better,
        base,
        tuple(Curve(group.name, group.units, channels_per_unit(group), ()) for group in groups),
        identity,
        tuple(notes),
    )
    return empty.with_points([point for key, point in points.items() if key in wanted])


def _measure_here(
    job: Job,
    data: Samples,
    identity: Mapping[str, Any],
    keys: Sequence[Key],
    folder: Path | None,
    part: Shard,
    progress: Progress,
) -> tuple[Base, dict[Key, Point], list[str]]:
    engine = job.engine(data)
    with ExitStack() as stack:
        store = stack.enter_context(Store(folder, identity, part)) if folder is not None else None
        points: dict[Key, Point] = dict(store.points) if store is not None else {}
        missing = [key for key in keys if key not in points]
        if store is not None and store.base is not None:
            engine.remember(store.base)
        if len(missing) < len(keys):
            progress.note(f"sensitivity: {len(keys) - len(missing)} of {len(keys)} points are there already")
        with progress.track("sensitivity", len(missing)) as track:
            base = engine.base() if missing or store is None or store.base is None else store.base
            if store is not None and store.base is None:
                store.add_base(base)
            for done in engine.measure(missing, track.advance):
                if store is not None:
                    store.add(done)
                points |= {(point.group, point.kept): point for point in done}
    return base, points, engine.notes


def measured_counts(
    group: ChannelGroup, permitted: Grid, points: int, counts: Mapping[str, Sequence[int]] | None = None
) -> tuple[int, ...]:
    """Return the numbers of units to measure: ``points`` of the permitted ones, or those that were asked for.

    Raises:
        SlimError: a count that was asked for is no number of channels of this group.
    """
    asked = by_pattern(group, counts) if counts else None
    if asked is not None:
        width = channels_per_unit(group)
        for channels in asked:
            if channels % width or not 0 < channels <= group.units * width:
                raise SlimError(
                    f"{channels} channels of channel group '{group.name}' cannot be kept",
                    where="counts",
                    hint=f"it has {group.units * width} channels" + (f" in steps of {width}" if width > 1 else ""),
                )
        return tuple(sorted({channels // width for channels in asked if channels < group.units * width}))
    below = permitted.counts[:-1]
    if not below:
        return ()
    chosen = np.linspace(0, len(below) - 1, min(points, len(below))).round().astype(int)
    return tuple(below[index] for index in np.unique(chosen))


def in_order(groups: Sequence[ChannelGroup], coupling: Coupling) -> list[ChannelGroup]:
    """Return groups in the order in which the forward first uses them."""
    first: dict[str, int] = {}
    names = {value.index: value.names for value in coupling.graph.values if value.names}
    for node in coupling.graph.nodes:
        for ref in refs_of(node.args.values()):
            for name in names.get(ref.index, ()):
                first.setdefault(name, node.index)
    last = len(coupling.graph.nodes)
    return sorted(groups, key=lambda group: min((first.get(m.name, last) for m in group.members), default=last))


def plugin_rules(registry: Registry | None) -> dict[str, Rule]:
    """Return the operator rules that plugins registered."""
    if registry is None:
        return {}
    return {name: registry.get("op_rules", name) for name in registry.names("op_rules")}


def model_identity(model: nn.Module) -> str:
    """Return a hash of a model's class and of all of its parameters and buffers."""
    state = state_of(model)
    for name, tensor in state.items():
        if tensor.is_meta:
            raise PlanError("the model is on the meta device: it has no weights to measure with", where=name)
    return _digest(type(model).__name__.encode(), digest(state).encode())


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
