"""The options of a search, checked. What they do lives beside: ``searchers.py``, ``scoring.py``, ``workers.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from slim_core.errors import SlimError, close_match
from slim_core.technique import StrictConfig
from slim_core.training.config import FitConfig

Algorithm = Literal["aging", "annealing", "cmaes", "random"]


class SearchConfig(StrictConfig):
    """How to search for the number of channels of every group."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    algorithm: Algorithm = "aging"
    """``aging`` evolution (Real et al. 2019, arXiv:1802.01548), simulated ``annealing`` (Kirkpatrick et al. 1983),
    ``cmaes`` (Hansen and Ostermeier 2001; needs ``slim-prune[search]``), or ``random``."""
    trials: int = Field(100, ge=1)
    """Candidates that the algorithm may ask for, the first ones included; one that was scored before costs nothing."""
    baseline: int | None = Field(None, ge=0)
    """Random candidates that are scored beside, to compare with; unset: a quarter of ``trials``."""
    initial: list[str | dict[str, Any]] = Field(default_factory=list)
    """Allocations whose choice is scored first, by name or with options; ``uniform`` always is."""
    population: int = Field(20, ge=2)
    """Candidates that are alive in aging evolution."""
    tournament: int = Field(5, ge=1)
    """Candidates drawn for each parent in aging evolution: the best of them is changed."""
    lag: int = Field(4, ge=1)
    """Candidates that may be under way at once: each is chosen knowing all but the last ``lag - 1`` results, however
    many workers there are. CMA-ES knows whole generations instead."""
    metric: str | None = None
    """What is best: a metric of the task, or ``loss``; unset: the task's primary one. Equal figures are told apart by
    the loss."""
    holdout: int = Field(1000, ge=2)
    """Samples that candidates are scored on, held out of the training data."""
    recalibrate: bool = True
    """Measure the running statistics of norms anew before scoring (see :func:`slim_prune.recalibrate`)."""
    samples: int = Field(512, ge=2)
    """Training samples that the running statistics are measured on."""
    fit: FitConfig | None = None
    """Short fine-tuning of each candidate before it is scored; unset: none."""
    fit_samples: int = Field(4096, ge=2)
    """Training samples that ``fit`` trains on."""
    workers: int = Field(0, ge=0)
    """Processes that score candidates; 0: this one."""
    threads: int | None = Field(1, ge=1)
    """PyTorch threads for each candidate; a fixed number makes scores independent of ``workers`` to the last bit.
    Unset: the threads of this process, shared out among the workers."""
    timeout: float = Field(3600.0, gt=0)
    """Seconds after which a worker is given up on."""
    retries: int = Field(2, ge=0)
    """How often a candidate is tried again whose worker was killed or timed out."""

    @property
    def random_trials(self) -> int:
        """How many random candidates are scored beside the algorithm's."""
        if self.algorithm == "random":
            return 0
        return self.trials // 4 if self.baseline is None else self.baseline

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SearchConfig:
        """Return the checked options.

        Raises:
            SlimError: an option is unknown or has a wrong value.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                hint = close_match(name, cls.model_fields) or f"it takes: {', '.join(cls.model_fields)}"
                raise SlimError(f"the search takes no option '{name}'", hint=hint) from None
            message = first["msg"][:1].lower() + first["msg"][1:]
            raise SlimError(f"the search's option '{name}' is wrong: {message}", where=name) from None
