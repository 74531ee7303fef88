"""What a prepared model is made of, as data: enough to build it again and to convert it. No graphs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from slim_core.errors import SlimError, close_match
from slim_core.named import Named
from slim_quant.placement import Placement
from slim_quant.qat.activations import DECAY
from slim_quant.schemes import ACTIVATION, Scheme
from slim_quant.targets import Target

Strategy = Literal["static", "dynamic"]
Quantizer = Literal["moving_average", "lsq", "lsq+", "pact"]
BatchNorm = Literal["live", "batch", "folded"]


@dataclass(frozen=True, slots=True)
class QATSpec:
    """How a model was prepared.

    Args:
        placement: where the quantizers of the static form are, by the node names of the graph with folded batch norms.
        weights: schemes by weight name.
        activations: schemes by name of the scale's node.
        target: the runtime.
        strategy: ``"static"``: scales are fixed after training; ``"dynamic"``: they are those of the batch at hand.
        quantizer: how scales are found in training.
        batch_norm: ``"live"``, ``"batch"`` or ``"folded"``; see :mod:`slim_quant.qat.weights`.
        decay: of moving averages.
        observer: how the ranges that training begins with are found.
        activation: the scheme that activations have without overrides.
        notes: what stays in float, with the reason.
    """

    placement: Placement
    weights: Mapping[str, Scheme]
    activations: Mapping[str, Scheme]
    target: Target
    strategy: Strategy = "static"
    quantizer: Quantizer = "moving_average"
    batch_norm: BatchNorm = "live"
    decay: float = DECAY
    observer: Named = "min_max"
    activation: Scheme = ACTIVATION
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def learned(self) -> bool:
        """Whether the scales of weights are learned."""
        return self.quantizer in ("lsq", "lsq+")

    @property
    def activation_quantizer(self) -> str:
        """The quantizer of activations."""
        return "batch" if self.strategy == "dynamic" else self.quantizer


def check_word(value: str, known: object, what: str) -> None:
    """Check one of a few words.

    Args:
        value: what was given.
        known: a ``Literal``.
        what: for the error.

    Raises:
        SlimError: it is none of them.
    """
    words = get_args(known)
    if value not in words:
        raise SlimError(
            f"unknown {what} '{value}'", hint=f"{close_match(value, words)} known: {', '.join(words)}".strip()
        )
