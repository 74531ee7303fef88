"""``FitConfig``: every knob of ``fit``, as recipes write them under ``fit:`` and ``train:``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from slim_core.technique import StrictConfig


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # YAML has lists only


class FitConfig(StrictConfig):
    """How to train. The defaults suit fine-tuning a small convolutional network with SGD.

    Attributes:
        epochs: passes over the training data.
        lr: learning rate at the schedule's top.
        optimizer: ``"sgd"`` or ``"adamw"`` (Loshchilov and Hutter, 2017, arXiv 1711.05101).
        momentum: of SGD.
        nesterov: Nesterov's form of SGD's momentum.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        decay_all: apply weight decay to biases and the parameters of norms too.
        schedule: ``"cosine"`` (Loshchilov and Hutter, 2016, arXiv 1608.03983), ``"step"`` or ``"constant"``; it moves
            with every step, not every epoch.
        warmup_epochs: epochs of linear growth to ``lr``, part of ``epochs``; may be a fraction.
        lr_floor: where cosine ends, as a share of ``lr``.
        milestones: ``step`` multiplies the rate by ``step_factor`` at each of these shares of the run.
        step_factor: see ``milestones``.
        clip_norm: largest global norm of the gradient, or ``None``.
        ema: decay of the exponential moving average of weights and buffers, or ``None``. With it, validation and the
            result use the averaged weights.
        amp: run forward and loss in ``bfloat16`` where PyTorch deems it safe.
        mixup: alpha of mixup (Zhang et al., 2017, arXiv 1710.09412); 0 is off.
        channels_last: hold pictures as NHWC; ``None``: for models with two-dimensional convolutions.
        seed: of everything random; ``None``: the run's seed, or 0.
        eval_every: validate after every so many epochs, and after the last one.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``None``: a CUDA device if there is one, else where the model is.
    """

    epochs: int = Field(10, ge=1)
    lr: float = Field(0.05, gt=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0)
    decay_all: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    lr_floor: float = Field(0.0, ge=0, le=1)
    milestones: Annotated[tuple[float, ...], BeforeValidator(_as_tuple)] = (0.5, 0.75)
    step_factor: float = Field(0.1, gt=0, le=1)
    clip_norm: float | None = Field(None, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)
    amp: bool = False
    mixup: float = Field(0.0, ge=0)
    channels_last: bool | None = None
    seed: int | None = None
    eval_every: int = Field(1, ge=1)
    device: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) is more than epochs ({self.epochs})")
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError("milestones are shares of the run, between 0 and 1")
        return self
