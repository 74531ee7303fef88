"""The recipe step ``prune.evolution``: search for the number of channels of every layer, cut, fine-tune if asked."""

from __future__ import annotations

from typing import Any, ClassVar

from slim_core.registry import Registry
from slim_core.technique import Run, StepResult
from slim_core.workload import Workload
from slim_prune import allocation as allocations
from slim_prune.evolution.config import SearchConfig
from slim_prune.recalibration import recalibrate
from slim_prune.technique import StructuredConfig, StructuredPruning


class EvolutionConfig(StructuredConfig):
    """Configuration of ``prune.evolution``.

    Attributes:
        search: how to search; see :class:`slim_prune.evolution.config.SearchConfig`.
    """

    search: SearchConfig = SearchConfig.of({})


class EvolutionPruning(StructuredPruning):
    """Remove the least important channels, as many of each layer as a search over pruned copies finds best."""

    name: ClassVar[str] = "prune.evolution"
    Config: ClassVar[type[StructuredConfig]] = EvolutionConfig

    def allocation(self, config: EvolutionConfig) -> dict[str, Any]:
        return {"name": "evolution", **config.search.model_dump(exclude_unset=True)}

    @classmethod
    def check(cls, config: StructuredConfig, registry: Registry) -> None:
        """Look names up, the library of the algorithm too, before anything runs."""
        super().check(config, registry)
        assert isinstance(config, EvolutionConfig)  # noqa: S101 - the registry gave this class
        for named in config.search.initial:
            allocations.resolve(named, registry)
        if config.search.algorithm == "cmaes":
            from slim_core.extras import require
            from slim_prune.evolution.cma import EXTRA

            require("cmaes", EXTRA)

    def run(self, workload: Workload, config: StructuredConfig, run: Run) -> StepResult:
        """Search, cut, and fine-tune; without that, measure the running statistics anew as the search did."""
        result = super().run(workload, config, run)
        assert isinstance(config, EvolutionConfig)  # noqa: S101
        search, data = config.search, workload.train if workload.train is not None else workload.val
        if config.fit is None and search.recalibrate and data is not None:
            recalibrate(result.workload.model, data, samples=search.samples, task=workload.task)
        return result
