"""What weight-only and dynamic quantization give back: a model of the user's own class. No arithmetic here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from slim_core.workload import Transform
from slim_quant.result import QuantReport


@dataclass(frozen=True, slots=True)
class PackedResult:
    """A model whose weights are integers in memory; fields as in :class:`slim_quant.QuantResult`.

    Args:
        model: a copy of the user's model, of the same class; the weights that were quantized are integers.
        transform: everything that is needed to build ``model`` again from the float one.
        report: what was done.
        sizes: bytes of all parameters and buffers: ``{"float": …, "quantized": …}``.
    """

    model: nn.Module
    transform: Transform
    report: QuantReport = field(repr=False)
    sizes: Mapping[str, int] = field(default_factory=dict)


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; tied ones count once."""
    tensors = {id(item): item for item in [*model.parameters(), *model.buffers()]}
    return sum(item.numel() * item.element_size() for item in tensors.values())
