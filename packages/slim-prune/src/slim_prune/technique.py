"""The recipe step ``prune.uniform``: plan under a budget, cut, fine-tune if asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field

from slim_core.registry import Registry
from slim_core.technique import Run, StepResult, StrictConfig
from slim_core.training.config import FitConfig
from slim_core.workload import Workload
from slim_prune import importance as importances
from slim_prune.planning import check_numbers, plan
from slim_prune.prune_plan import PrunePlan


class UniformConfig(StrictConfig):
    """Configuration of ``prune.uniform``.

    Attributes:
        budget: bounds by cost model, shares or figures: ``{macs: 0.5}``, ``{params: 1.2M}``; several hold at once.
        importance: the criterion's name, or a mapping with ``name`` and its options.
        include: globs over module paths that may be pruned; empty: all.
        exclude: globs over module paths that may not be touched.
        ratios: shares of channels to keep by glob, fixed before the budget is met with the rest.
        round_to: kept channels are a multiple of this.
        min_channels: the least that a layer keeps, for all layers or by glob.
        fit: fine-tuning after the cut; ``null``: none.
    """

    budget: dict[str, float | int | str] | None = None
    importance: str | dict[str, Any] = "l1"
    include: list[str] = Field(default_factory=list)
    exclude: list[str] = Field(default_factory=list)
    ratios: dict[str, float] = Field(default_factory=dict)
    round_to: int = Field(8, ge=1)
    min_channels: int | dict[str, int] = 1
    fit: FitConfig | None = None


class UniformPruning:
    """Remove the least important channels, nearly the same share of every layer."""

    name: ClassVar[str] = "prune.uniform"
    Config: ClassVar[type[UniformConfig]] = UniformConfig

    @staticmethod
    def check(config: UniformConfig, registry: Registry) -> None:
        """Look the criterion's name up and check figures: called when a recipe is read, before anything runs."""
        name = config.importance if isinstance(config.importance, str) else config.importance.get("name")
        if isinstance(name, str):
            registry.get("importances", name)
        check_numbers(config.ratios, config.round_to, config.min_channels)

    def rehearse(self, workload: Workload, config: UniformConfig, run: Run) -> Workload:
        """Plan and cut, before any training: what a budget and patterns come to hardly depends on the weights.

        The channels are chosen by ``l1``, which needs no trained weights; that decides which ones go, not how many.

        Raises:
            BudgetError: the budget is out of reach.
            PatternError: a pattern matches nothing.
        """
        importances.resolve(config.importance, run.registry)
        planned = _plan(workload, config, "l1", run)
        return workload.with_model(planned.apply(workload.model), planned.transform())

    def run(self, workload: Workload, config: UniformConfig, run: Run) -> StepResult:
        planned = _plan(workload, config, config.importance, run)
        run.folder.mkdir(parents=True, exist_ok=True)
        planned.save(run.folder / "plan.json")
        pruned = workload.with_model(planned.apply(workload.model), planned.transform())
        reached, expected, notes = _sorted_notes(planned.notes, config.budget or {})
        details: dict[str, Any] = {
            "budget": reached,
            "left alone as it must be": expected,
            "channels": planned.summary(),
            "before": dict(planned.before),
            "after": dict(planned.after),
        }
        if config.fit is not None:
            from slim_core.training import fit

            result = fit(pruned, config.fit, run=run, inplace=True)
            pruned = result.workload
            details["history"] = [dict(row) for row in result.history]
        return StepResult(pruned, details, tuple(notes))


def _plan(workload: Workload, config: UniformConfig, importance: str | dict[str, Any], run: Run) -> PrunePlan:
    return plan(
        workload.model,
        workload.example_inputs,
        config.budget,
        importance=importance,
        include=config.include,
        exclude=config.exclude,
        ratios=config.ratios,
        round_to=config.round_to,
        min_channels=config.min_channels,
        registry=run.registry,
    )


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
