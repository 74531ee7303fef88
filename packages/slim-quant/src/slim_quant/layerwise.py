"""Float and quantized graph side by side, layer by layer, on a few samples and in bounded memory.

Two graphs are run on one sample after the other; of each layer only the powers of signal and difference are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slim_core.graph.export import ExportedModel
from slim_core.workload import tensors_of
from slim_quant.calibration import CalibrationData, positional
from slim_quant.graph import tap

#: SQNR of equal tensors, so that it is a JSON number
MOST_DB = 200.0
#: samples that are run at once
_TOGETHER = 4


@dataclass(slots=True)
class Comparison:
    """Powers of signals and differences, by name of the layer's node; ``""`` is the model's output.

    Args:
        signal: summed squares of the float outputs.
        noise: summed squares of the differences.
    """

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, reference: Tensor, other: Tensor) -> None:
        """Count one tensor."""
        reference, other = reference.double(), other.double()
        self.signal[name] = self.signal.get(name, 0.0) + float(reference.square().sum())
        self.noise[name] = self.noise.get(name, 0.0) + float((reference - other).square().sum())

    def sqnr_db(self, name: str) -> float | None:
        """Return the SQNR, at most 200 dB; ``None`` for what was not seen."""
        if name not in self.signal:
            return None
        noise, signal = self.noise[name], max(self.signal[name], 1e-300)
        return MOST_DB if noise == 0 else round(min(10 * math.log10(signal / noise), MOST_DB), 2)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a model on samples, kept to compare a later form of it with."""

    data: CalibrationData
    values: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, model: ExportedModel, data: CalibrationData) -> Outputs:
        """Run ``model`` on all of ``data``."""
        return cls(data, tuple(outputs(model, batch) for batch in data))

    def sqnr_db(self, model: ExportedModel) -> float | None:
        """Return the SQNR of ``model``'s outputs against them, in dB."""
        found = Comparison()
        for batch, kept in zip(self.data, self.values, strict=True):
            for one, other in zip(kept, outputs(model, batch), strict=True):
                found.add("", one, other)
        return found.sqnr_db("")


def compare_layers(
    reference: ExportedModel, other: ExportedModel, data: CalibrationData, layers: Sequence[str]
) -> Comparison:
    """Compare the outputs of the nodes ``layers``, and of the models, of two graphs with the same node names."""
    found = Comparison()
    for batch in data.batches(_TOGETHER):
        kept: dict[str, Tensor] = {}
        tap(reference, batch, {name: partial(kept.__setitem__, name) for name in layers})
        tap(other, batch, {name: partial(_add_kept, found, kept, name) for name in layers})
        for one, two in zip(outputs(reference, batch), outputs(other, batch), strict=True):
            found.add("", one, two)
    return found


def outputs(model: ExportedModel, batch: Any) -> tuple[Tensor, ...]:
    """Return the model's outputs in floating point."""
    with torch.no_grad():
        result = model(**batch) if isinstance(batch, Mapping) else model(*positional(batch))
    return tuple(tensor.detach() for tensor in tensors_of(result) if tensor.is_floating_point())


def _add_kept(found: Comparison, kept: dict[str, Tensor], name: str, value: Tensor) -> None:
    found.add(name, kept.pop(name), value)
