"""``FitConfig``: every knob of ``fit``, as recipes write them under ``fit:`` and ``train:``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from slim_core.technique import StrictConfig


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only


class FitConfig(StrictConfig):
    """How to train. The defaults suit fine-tuning a small convolutional network with SGD."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    epochs: int = Field(10, ge=1)
    """Passes over the training data."""
    lr: float = Field(0.05, gt=0)
    """Learning rate at the schedule's top."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """``sgd``, or ``adamw`` (Loshchilov and Hutter, 2017, arXiv 1711.05101)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of SGD's momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty (SGD) or decoupled decay (AdamW)."""
    decay_all: bool = False
    """Apply weight decay to biases and the parameters of norms too."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """``cosine`` (Loshchilov and Hutter, 2016, arXiv 1608.03983), ``step`` or ``constant``; moves with every step."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs of linear growth to ``lr``, part of ``epochs``; may be a fraction."""
    lr_floor: float = Field(0.0, ge=0, le=1)
    """Where ``cosine`` ends, as a share of ``lr``."""
    milestones: Annotated[tuple[float, ...], BeforeValidator(_as_tuple)] = (0.5, 0.75)
    """``step`` multiplies the rate by ``step_factor`` at each of these shares of the run."""
    step_factor: float = Field(0.1, gt=0, le=1)
    """What ``step`` multiplies by at each milestone."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest global norm of the gradient."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the moving average of weights and buffers; with it, validation and the result use the averages."""
    amp: bool = False
    """Run forward and loss in ``bfloat16`` where PyTorch deems it safe."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al., 2017, arXiv 1710.09412); 0 is off."""
    channels_last: bool | None = None
    """Hold pictures as NHWC while training; unset: for models with convolutions that run with it."""
    seed: int | None = None
    """Seed of everything random; unset: the run's seed, or 0."""
    eval_every: int = Field(1, ge=1)
    """Validate after every so many epochs, and after the last one."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``; unset: a CUDA device if there is one, else where the model is."""

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is more than epochs ({self.epochs})")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError("milestones are shares of the run, between 0 and 1")
        return self
