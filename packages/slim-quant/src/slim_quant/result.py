"""What a quantization gives back. No arithmetic here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slim_core.graph.export import ExportedModel
from slim_core.workload import Transform


@dataclass(frozen=True, slots=True)
class QuantReport:
    """What the quantization did.

    Args:
        layers: one row per quantized layer: name, operator, bits, SQNR of its output against the float model in dB.
        notes: what stayed in float or was changed, with the reason.
        samples: samples that were calibrated on.
        sqnr_db: SQNR of the model's outputs, in dB; ``None`` where none is in floating point.
    """

    layers: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    samples: int
    sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class QuantResult:
    """A quantized model.

    Args:
        model: computes in float what the integers will give; trainable; exports as an int8 file.
        transform: everything that is needed to build ``model``'s graph again.
        report: what was done.
    """

    model: ExportedModel
    transform: Transform
    report: QuantReport = field(repr=False)
