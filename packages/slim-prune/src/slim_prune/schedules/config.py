"""The ``schedule:`` block of structured pruning steps, as recipes write it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from slim_core.technique import StrictConfig
from slim_core.training.config import FitConfig


class OneShot(StrictConfig):
    """Everything at once, then ``fit``."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["one_shot"] = "one_shot"


class Iterative(StrictConfig):
    """Several cuts, each planned anew from the weights of the moment, with fine-tuning after each."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["iterative"]
    steps: int = Field(4, ge=1)
    """Number of cuts."""
    spacing: Literal["geometric", "linear", "cubic"] = "geometric"
    """Budgets on the way: the same share of what is there (geometric), the same amount (linear), or much at first."""
    fit: FitConfig | None = None
    """Fine-tuning between the cuts; unset: as after the last cut, by the step's own ``fit``."""


class Soft(StrictConfig):
    """Soft filter pruning (He et al., 2018, arXiv 1808.06866) during ``fit``, and one cut at the end.

    Channels are zeroed after each epoch and go on learning.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["soft"]
    asymptotic: bool = True
    """Let the rate grow towards its goal (ASFP; He et al., 2019, arXiv 1808.07471)."""
    every: int = Field(1, ge=1)
    """Zero after every so many epochs, and after the last one."""
    zero: Literal["channels", "filters"] = "channels"
    """``channels``: silent as after the cut; ``filters``: the layers that make them only, as in the paper."""
    fit: FitConfig | None = None
    """Fine-tuning after the cut; unset: none."""


class Gradual(StrictConfig):
    """Cuts during ``fit``."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["gradual"]
    steps: int = Field(4, ge=1)
    """Number of cuts."""
    start: float = Field(0.0, ge=0, le=1)
    """Where the first cut is, as a share of the training."""
    end: float = Field(0.5, ge=0, le=1)
    """Where the last cut is, as a share of the training."""
    at_epochs: list[Annotated[float, Field(ge=0)]] | None = None
    """Instead of steps, start and end: finished epochs before each cut; fractions are possible."""
    spacing: Literal["geometric", "linear", "cubic"] = "cubic"
    """Budgets on the way, as for iterative pruning; cubic: Zhu and Gupta, 2017, arXiv 1710.01878."""
    masked: bool = False
    """Hold masks, and cut at the end."""

    @model_validator(mode="after")
    def _in_order(self) -> Gradual:
        if self.start > self.end:
            raise ValueError(f"start ({self.start:g}) is after end ({self.end:g})")
        times = self.at_epochs
        if times is not None and (not times or any(b <= a for a, b in pairwise(times))):
            raise ValueError("at_epochs must be growing numbers of epochs")
        return self


ScheduleConfig = Annotated[OneShot | Iterative | Soft | Gradual, Field(discriminator="kind")]
