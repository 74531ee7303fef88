"""``choose()``: the bits of each layer and what stays in float, under an accuracy goal or a budget, verified.

Not here: sensitivities (``slim_quant.sensitivity``), the order of upgrades (``chain.py``), knapsacks (``knapsack.py``),
costs (``costs.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slim_core.budget import Bound, parse_budget
from slim_core.errors import BudgetError, SlimError
from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.registry import Registry
from slim_core.workload import DataSource, Inputs, Task
from slim_quant.bits import FLOAT, Bits, parse_bits
from slim_quant.calibration import CalibrationData
from slim_quant.mixed.costs import costs_of
from slim_quant.mixed.judge import EPS, Judge, Settings, Trial
from slim_quant.mixed.search import Search
from slim_quant.ptq.static import quantize
from slim_quant.result import QuantResult
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme
from slim_quant.sensitivity.analysis import MEMORY, Ground, identity_of, measure, survey
from slim_quant.sensitivity.judge import Evaluation
from slim_quant.sensitivity.store import Store
from slim_quant.targets import Target


@dataclass(frozen=True, slots=True)
class Mixed:
    """A model of mixed precision.

    Args:
        assignment: unit -> name of the bits, or ``"float"``.
        result: the quantized model, or ``None`` where every unit stays in float.
        settings: overrides and skip list that ``quantize`` was given for it.
        cost: name of the cost that was kept small.
        cost_before: that cost of the float model.
        cost_after: of this model.
        metric: name of the metric, or ``None`` where there is no task.
        before: the float model's metric.
        after: this model's, measured on the model as it is handed over.
        drop: by how much it is worse: before less after where higher is better.
        trials: what was measured on the way.
        losses: unit -> choice -> noise of the model's outputs over their signal, when the unit alone is quantized.
        notes: what the reader should know.
    """

    assignment: Mapping[str, str]
    result: QuantResult | None
    settings: Settings
    cost: str
    cost_before: float
    cost_after: float
    metric: str | None
    before: float | None
    after: float | None
    drop: float | None
    trials: tuple[Trial, ...]
    losses: Mapping[str, Mapping[str, float]] = field(repr=False)
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Return how many units have which bits."""
        found: dict[str, int] = {}
        for choice in self.assignment.values():
            found[choice] = found.get(choice, 0) + 1
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "assignment": dict(self.assignment),
            "skip": list(self.settings.skip),
            "cost": self.cost,
            "cost_before": self.cost_before,
            "cost_after": self.cost_after,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "drop": self.drop,
            "trials": [asdict(trial) for trial in self.trials],
            "losses": {unit: dict(row) for unit, row in self.losses.items()},
            "notes": list(self.notes),
        }


def choose(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    example_inputs: Inputs,
    task: Task | None = None,
    val: DataSource | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    budget: Mapping[str, float | int | str] | None = None,
    options: Sequence[str | Bits] = ("w4a8", "w8a8"),
    allow_float: bool = True,
    cost: str = "bytes",
    costs: Mapping[str, Mapping[str, float]] | None = None,
    target: str | Target = "onnxruntime",
    weight: Scheme = WEIGHT,
    activation: Scheme = ACTIVATION,
    observer: Named = "mse",
    weight_observer: str = "abs_max",
    skip: Sequence[str] = (),
    samples: int = 256,
    evaluated: int | None = None,
    corrections: Sequence[Any] = (),
    folder: str | os.PathLike[str] | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> Mixed:
    """Choose bits for each layer, and which layers stay in float; quantize accordingly and measure what came of it.

    With ``max_drop`` alone: the cheapest model found that keeps the goal. Layers get more bits one by one, those first
    that save the most noise for their cost; where to stop is measured. With a ``budget``: the least sum of noise within
    it (a knapsack, solved exactly). With both, the budget decides, and a model that misses the goal is an error.

    Args:
        model: the float model; it is not changed.
        batches: batches of what the forward takes, to calibrate on.
        example_inputs: inputs to export the model with.
        task: measures the metric; needed for ``max_drop``.
        val: batches to measure on.
        metric: what is measured; ``None``: the task's primary metric.
        max_drop: the most that the metric may get worse: in points (hundredths) for a metric that is a share between 0
            and 1, otherwise in the metric's own unit.
        budget: a bound on one cost: ``{"bytes": 0.2}``, ``{"bytes": "1.2MB"}``, ``{"bitops": 0.04}``; other names need
            ``costs``.
        options: choices of bits.
        allow_float: whether units may stay in float.
        cost: what is kept small under ``max_drop``: ``"bytes"``, ``"bitops"``, or the name of ``costs``.
        costs: measured figures (milliseconds of a profile, say): unit -> choice -> figure.
        target: runtime that the quantizers are placed for.
        weight: gives the weights' symmetry and granularity.
        activation: gives the activations' symmetry.
        observer: how activation ranges are found.
        weight_observer: how weight ranges are found.
        skip: layers that stay in float throughout.
        samples: how many samples to calibrate on.
        evaluated: search on the first so many samples of ``val``; ``None``: all. The final figure is of all samples.
        corrections: what ``quantize`` corrects weights with; models on the way are then built for real, which is slow.
        folder: where sensitivities are kept as they are measured.
        memory: bytes of float activations that may be kept.
        seed: for corrections.
        progress: where to report to.
        registry: where names are looked up.

    Raises:
        SlimError: neither goal nor budget, or a goal without a task.
        BudgetError: the budget cannot be met, or not together with the goal.
        PatternError: a glob matches nothing.
        ModelError: the model cannot be exported.
    """
    progress = progress or SilentProgress()
    bound = _bound(max_drop, budget, task, val)
    bits = _options(options, weight, activation)
    data = CalibrationData(batches, samples)
    common: dict[str, Any] = {"observer": observer, "weight_observer": weight_observer, "skip": skip}
    ground = survey(model, data, bits, example_inputs=example_inputs, target=target, progress=progress, **common)
    evaluation = Evaluation(data if val is None else val, task, metric, evaluated)
    losses = _losses(ground, evaluation, identity_of(model, ground, common), allow_float, folder, memory, progress)
    name = bound.cost if bound is not None else cost
    chosen = [unit for unit in ground.units if name != "bytes" or unit.weights]
    search = Search(ground, evaluation, costs_of(name, ground.graph, chosen, bits, costs), losses, memory)

    def build(settings: Settings) -> QuantResult:
        return quantize(
            model, data, example_inputs=example_inputs, target=target, weight=bits[-1].weight,
            activation=bits[-1].activation, observer=observer, weight_observer=weight_observer,
            overrides=settings.overrides, skip=[*skip, *settings.skip], samples=len(data), corrections=corrections,
            seed=seed, registry=registry,
        )  # fmt: skip

    judge = Judge(model, task, val, evaluation.metric, evaluation.higher_is_better, build, ground.units, bits, progress)
    if bound is not None:
        assignment = search.within(bound)
    else:
        assignment = search.keeping(judge.limit(float(max_drop or 0.0)), judge, built=bool(corrections))
    after, drop = judge.metric_of(assignment), judge.drop_of(assignment)
    if max_drop is not None and drop is not None and drop > judge.limit(max_drop) + EPS:
        raise BudgetError(
            f"the best model within {bound} is worse by {drop:.4g} of {evaluation.metric}, and "
            f"{judge.limit(max_drop):.4g} are allowed",
            hint="raise max_drop or the budget; corrections such as adaround lose less",
        )
    result, settings = judge.result(assignment), judge.settings(assignment)
    notes = () if result is not None else ("no layer can be quantized within the goal: the model stays in float",)
    return Mixed(
        assignment, result, settings, name, search.costs.original, search.total(assignment), evaluation.metric,
        judge.before(), after, drop, tuple(search.trials), losses, notes,
    )  # fmt: skip


def _bound(
    max_drop: float | None, budget: Mapping[str, float | int | str] | None, task: Task | None, val: DataSource | None
) -> Bound | None:
    if max_drop is None and budget is None:
        raise SlimError("there is neither a goal nor a budget", hint="pass max_drop=0.5 or budget={'bytes': 0.2}")
    if max_drop is not None and max_drop < 0:
        raise SlimError(f"max_drop must not be negative: {max_drop}")
    if max_drop is not None and (task is None or val is None):
        raise SlimError("max_drop needs a metric", hint="pass task= and val=")
    if task is not None and val is None:
        raise SlimError("a metric is measured on data with targets", hint="pass val=, or leave out task=")
    if budget is None:
        return None
    bounds = parse_budget(budget)
    if len(bounds) != 1:
        raise BudgetError("a budget for bits bounds one cost", hint="write for example {'bytes': 0.2}")
    return bounds[0]


def _options(options: Sequence[str | Bits], weight: Scheme, activation: Scheme) -> tuple[Bits, ...]:
    """Return the choices, from the fewest bits to the most."""
    if not options:
        raise SlimError("there are no bits to choose from", hint="write for example options=['w4a8', 'w8a8']")
    found = [parse_bits(item, weight, activation) for item in dict.fromkeys(options)]
    return tuple(sorted(found, key=lambda item: item.key))


def _losses(
    ground: Ground, evaluation: Evaluation, identity: Mapping[str, Any], allow_float: bool,
    folder: str | os.PathLike[str] | None, memory: int, progress: Progress,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return what each unit loses at each choice: noise over signal of the outputs, more bits never more.

    Errors of different layers are nearly independent, so that their powers add up.
    """
    store = Store(None if folder is None else Path(folder), {**identity, "evaluated": evaluation.identity})
    jobs = [(unit, item.name, "quantized") for item in ground.bits for unit in ground.units]
    measure(ground, evaluation, jobs, store, memory=memory, progress=progress)
    found: dict[str, dict[str, float]] = {}
    for unit in ground.units:
        row: dict[str, float] = {}
        least = math.inf
        for item in ground.bits:
            figure = store.points[unit.name, item.name, "quantized"].sqnr_db
            least = min(least, 1.0 if figure is None else 10 ** (-figure / 10))
            row[item.name] = least
        found[unit.name] = row | ({FLOAT: 0.0} if allow_float else {})
    return found
