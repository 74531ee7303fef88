"""Structured pruning as steps of a recipe: plan under a budget, cut and train as the schedule says.

:class:`StructuredPruning` does the work; a technique is a subclass that says how much is taken where. Not here: the
allocations themselves, and carrying schedules out (``schedules/``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.config import FitConfig
from slim_core.workload import Workload
from slim_prune import allocation as allocations
from slim_prune import importance as importances
from slim_prune.options import check_numbers
from slim_prune.planning import plan
from slim_prune.prune_plan import PrunePlan
from slim_prune.schedules.carry_out import carry_out, rehearsed
from slim_prune.schedules.config import OneShot, ScheduleConfig

if TYPE_CHECKING:
    from slim_prune.allocation import Allocation


class StructuredConfig(StrictConfig):
    """What every structured pruning step takes.

    Attributes:
        budget: bounds by cost model, shares or figures: ``{macs: 0.5}``, ``{params: 1.2M}``; several hold at once.
        importance: the criterion's name, or a mapping with ``name`` and its options.
        include: globs over module paths that may be pruned; empty: all.
        exclude: globs over module paths that may not be touched.
        ratios: shares of channels to keep by glob, fixed before the budget is met with the rest.
        round_to: kept channels are a multiple of this.
        min_channels: the least that a layer keeps, for all layers or by glob.
        prefer: what attention loses where its forward leaves the choice: whole ``heads``, or equal positions of all
            heads (``head_dim``).
        schedule: when the channels go: ``{kind: one_shot}``, ``iterative``, ``soft`` or ``gradual``; ``null``: at once.
        fit: the training: after the cut, or around it for soft and gradual schedules; ``null``: none.
    """

    budget: dict[str, float | int | str] | None = None
    importance: str | dict[str, Any] = "l1"
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    ratios: dict[str, float] = Field(default_factory=dict)
    round_to: int = Field(8, ge=1)
    min_channels: int | dict[str, int] = 1
    prefer: Literal["heads", "head_dim"] = "heads"
    schedule: ScheduleConfig | None = None
    fit: FitConfig | None = None

    @model_validator(mode="after")
    def _trained(self) -> StructuredConfig:
        if self.schedule is not None and self.schedule.kind in ("soft", "gradual") and self.fit is None:
            raise ValueError(f"the schedule '{self.schedule.kind}' prunes during training; give fit: {{epochs: …}}")
        return self


class StructuredPruning:
    """Base of the structured techniques: a subclass names itself, its ``Config`` and its :meth:`allocation`."""

    name: ClassVar[str]
    Config: ClassVar[type[StructuredConfig]] = StructuredConfig
    #: Whether how many channels each layer keeps is the same whatever the weights and the data: only then does a
    #: rehearsal know the structure that the next step will find.
    rehearsed: ClassVar[bool] = False

    def allocation(self, config: Any) -> str | Mapping[str, Any] | Allocation:
        """Return what decides how much is taken where: what :func:`slim_prune.plan` takes as ``allocation``."""
        raise NotImplementedError

    @classmethod
    def check(cls, config: StructuredConfig, registry: Registry) -> None:
        """Look names up and check figures: called when a recipe is read, before anything runs."""
        importances.resolve(config.importance, registry)
        allocations.resolve(cls().allocation(config), registry)
        check_numbers(config.ratios, config.round_to, config.min_channels)

    def rehearse(self, workload: Workload, config: StructuredConfig, run: Run) -> Workload | None:
        """Plan and cut, before any training: what budgets and patterns come to hardly depends on the weights.

        The channels are chosen by ``l1``, which needs neither data nor trained weights, the same share of every layer:
        that shows whether the budget is in reach. The workload comes back where the structure is the same in the end.

        Raises:
            BudgetError: the budget is out of reach.
            PatternError: a pattern matches nothing.
        """
        criterion = importances.resolve(config.importance, run.registry)
        importances.check_data(*criterion, task=workload.task, train=workload.train, val=workload.val)
        allocations.resolve(self.allocation(config), run.registry)
        options = options_of(workload, config, run, importance="l1", allocation="uniform")
        _, after = rehearsed(workload, config.budget, config.schedule or OneShot(), options)
        return after if self.rehearsed else None

    def run(self, workload: Workload, config: StructuredConfig, run: Run) -> StepResult:
        """Prune and train as the schedule says, and leave the plan as ``plan.json`` in the step's folder."""
        run.folder.mkdir(parents=True, exist_ok=True)
        options = options_of(workload, config, run, importance=config.importance, allocation=self.allocation(config))
        outcome = carry_out(workload, config.budget, config.schedule or OneShot(), config.fit, run, options)
        details, notes = report_of(outcome.plan, config)
        curves = [*details.pop("curves", []), *outcome.details.get("curves", [])]
        details |= {name: value for name, value in outcome.details.items() if name != "curves"}
        if curves:
            details["curves"] = curves
        if outcome.history:
            details["history"] = outcome.history
        return StepResult(outcome.workload, details, (*notes, *outcome.notes))


class UniformConfig(StructuredConfig):
    """Configuration of ``prune.uniform``."""


class UniformPruning(StructuredPruning):
    """Remove the least important channels, nearly the same share of every layer."""

    name: ClassVar[str] = "prune.uniform"
    Config: ClassVar[type[StructuredConfig]] = UniformConfig
    rehearsed: ClassVar[bool] = True

    def allocation(self, config: UniformConfig) -> str:
        return "uniform"


def options_of(
    workload: Workload,
    config: StructuredConfig,
    run: Run,
    *,
    importance: Any,
    allocation: str | Mapping[str, Any] | Allocation,
) -> dict[str, Any]:
    """Return what a step passes to :func:`slim_prune.plan`, beside model, inputs, budget and folder.

    Args:
        workload: what is pruned; its data and task serve criteria and allocations that look at them.
        config: the step's configuration.
        run: seed, progress and registry.
        importance: the criterion.
        allocation: the allocation.
    """
    return {
        "importance": importance,
        "allocation": allocation,
        "include": config.include,
        "exclude": config.exclude,
        "ratios": config.ratios,
        "round_to": config.round_to,
        "min_channels": config.min_channels,
        "prefer": config.prefer,
        "task": workload.task,
        "train": workload.train,
        "val": workload.val,
        "seed": run.seed,
        "progress": run.progress,
        "registry": run.registry,
    }


def planned_for(
    workload: Workload,
    config: StructuredConfig,
    run: Run,
    *,
    importance: Any,
    allocation: str | Mapping[str, Any] | Allocation,
    budget: Mapping[str, float | int | str] | None = None,
) -> PrunePlan:
    """Return the plan for a workload: :func:`slim_prune.plan` with a step's configuration.

    Args:
        workload: what is pruned.
        config: the step's configuration.
        run: seed, folder, progress and registry.
        importance: the criterion.
        allocation: the allocation.
        budget: instead of the configuration's.
    """
    options = options_of(workload, config, run, importance=importance, allocation=allocation)
    asked = config.budget if budget is None else budget
    return plan(workload.model, workload.example_inputs, asked, folder=run.folder, **options)


def report_of(planned: PrunePlan, config: StructuredConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the details and notes of a step that carried ``planned`` out."""
    reached, expected, notes = _sorted_notes(planned.notes, config.budget or {})
    details: dict[str, Any] = {
        "budget": reached,
        "left alone as it must be": expected,
        "channels": planned.summary(),
        "before": dict(planned.before),
        "after": dict(planned.after),
        **planned.details,
    }
    return details, tuple(notes)


def _sorted_notes(notes: Iterable[str], budget: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Part a plan's notes into what the budget reached, what must be so, and what a reader should know."""
    heads = tuple(f"{name}: " for name in budget)
    reached: list[str] = []
    expected: list[str] = []
    others: list[str] = []
    for note in notes:
        outputs = note.startswith("frozen: ") and "is an output of the model" in note
        (reached if note.startswith(heads) and heads else expected if outputs else others).append(note)
    return reached, expected, others
