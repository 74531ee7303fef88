"""What a comparison found, as plain values: JSON, and the plots that are made of it. Nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from slim_core.files import require_folder, write_json

SCHEMA_VERSION = 1
#: layers that the overview draws at most: the worst ones
MOST_BARS = 40


@dataclass(frozen=True, slots=True)
class LayerDiff:
    """A layer or operator.

    Args:
        name: the layer's name; of an operator without a weight its node's.
        node: its node in the exported graph.
        op: the operator.
        weight_bits: bits of its weight, or ``None``.
        activation_bits: bits of what it reads, the fewest where it reads several; ``None`` where that is float.
        sqnr_db: of its result in the quantized model against the float one: its own error and all inherited ones.
        alone_db: of its result computed from the float model's values: its own error.
        weight_db: of its weight, or ``None``.
        worst_channel: the channel of its result with the lowest SQNR, or ``None`` where it has no channels.
        worst_channel_db: that SQNR.
        max_diff: the largest absolute difference of its result.
        rescaled: whether its channels are scaled on purpose (equalization): its SQNRs are those after undoing that.
    """

    name: str
    node: str
    op: str
    weight_bits: int | None
    activation_bits: int | None
    sqnr_db: float | None
    alone_db: float | None
    weight_db: float | None
    worst_channel: int | None
    worst_channel_db: float | None
    max_diff: float
    rescaled: bool = False


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """A quantized activation or weight, and where its values lie.

    Args:
        name: the node, or the weight's state-dict name.
        kind: ``"activation"`` or ``"weight"``.
        readers: the layers that read it.
        bits: bits of the integers.
        low: the smallest value in the float model.
        high: the largest.
        threshold_low: the lowest representable value (of all channels).
        threshold_high: the highest.
        clipped: share of the values that lie beyond the thresholds by more than half a step.
        used: share of the representable range between the smallest and the largest value.
        sqnr_db: of the rounding alone.
        edges: of the histogram.
        counts: float values between neighbouring edges.
    """

    name: str
    kind: str
    readers: tuple[str, ...]
    bits: int
    low: float
    high: float
    threshold_low: float
    threshold_high: float
    clipped: float
    used: float
    sqnr_db: float | None
    edges: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class OutputDiff:
    """An output of the model.

    Args:
        name: ``"output 0"``.
        sqnr_db: of its values.
        max_diff: largest absolute difference.
        agreement: share of rows whose largest entry is at the same place, in per cent.
    """

    name: str
    sqnr_db: float | None
    max_diff: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Diff:
    """A float model and its quantized form, compared.

    Args:
        layers: in the order of the forward.
        tensors: activations in the order of the forward, then weights.
        outputs: the model's outputs.
        samples: how many samples were run.
        notes: what the reader should know.
    """

    layers: tuple[LayerDiff, ...]
    tensors: tuple[TensorDiff, ...]
    outputs: tuple[OutputDiff, ...]
    samples: int
    notes: tuple[str, ...] = ()

    def worst(self, most: int = 5) -> tuple[LayerDiff, ...]:
        """Return the layers with the largest error of their own, the worst first."""
        known = [layer for layer in self.layers if layer.alone_db is not None]
        return tuple(sorted(known, key=lambda layer: layer.alone_db or 0.0)[:most])

    def to_json(self) -> dict[str, Any]:
        """Return everything, histograms included, as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "samples": self.samples,
            "layers": [asdict(layer) for layer in self.layers],
            "tensors": [{**asdict(item), "readers": list(item.readers), "edges": list(item.edges),
                         "counts": list(item.counts)} for item in self.tensors],
            "outputs": [asdict(output) for output in self.outputs],
            "notes": list(self.notes),
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON; a kill leaves the old file or the new one.

        Raises:
            SlimError: the folder of ``path`` is not there.
        """
        require_folder(path)
        write_json(path, self.to_json())

    def plots(self) -> list[dict[str, Any]]:
        """Return the plots as ``slim_core.report.plots.read_plots`` reads them: SQNRs per layer, then histograms."""
        shown = self.layers
        if len(shown) > MOST_BARS:
            worst = {layer.node for layer in self.worst(MOST_BARS)}
            shown = tuple(layer for layer in shown if layer.node in worst)
        rest = f" (the {MOST_BARS} worst of {len(self.layers)})" if len(shown) < len(self.layers) else ""
        found = [
            {"kind": "bars", "title": f"{title}{rest}", "unit": "dB", "rows": [
                {"name": layer.name, "value": value, "note": _bits(layer)}
                for layer in shown if (value := getattr(layer, key)) is not None
            ]}
            for title, key in (("SQNR of each layer alone", "alone_db"), ("SQNR in the whole model", "sqnr_db"))
        ]  # fmt: skip
        return [item for item in found if item["rows"]] + [_histogram(item) for item in self.tensors]


def _bits(layer: LayerDiff) -> str:
    weight = f"w{layer.weight_bits}" if layer.weight_bits else ""
    return weight + (f"a{layer.activation_bits}" if layer.activation_bits else "")


def _histogram(item: TensorDiff) -> dict[str, Any]:
    return {
        "kind": "histogram",
        "title": f"{item.kind} {item.name}, {item.bits} bits, {item.clipped:.2%} clipped",
        "edges": list(item.edges),
        "counts": list(item.counts),
        "marks": [{"name": "threshold", "x": item.threshold_low}, {"name": "threshold", "x": item.threshold_high}],
    }


def plots_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the plots of a written comparison."""
    return read(data).plots()


def read(data: Mapping[str, Any]) -> Diff:
    """Return the comparison that :meth:`Diff.to_json` gave."""
    tensors = tuple(
        TensorDiff(**{**item, "readers": tuple(item["readers"]), "edges": tuple(item["edges"]),
                      "counts": tuple(item["counts"])}) for item in data["tensors"]
    )  # fmt: skip
    return Diff(
        tuple(LayerDiff(**item) for item in data["layers"]), tensors,
        tuple(OutputDiff(**item) for item in data["outputs"]), data["samples"], tuple(data["notes"]),
    )  # fmt: skip
