"""High-bias absorption: what a ReLU always lets through moves from the bias before it into the bias after it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, fx

from slim_core.errors import SlimError
from slim_quant.edits import add_bias
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name, owner_of, tap
from slim_quant.preparation import Calibrated, CalibrationData, Prepared
from slim_quant.ptq.corrections.base import CorrectionContext, Stage
from slim_quant.ptq.corrections.bias import channel_axis, correctable


class BiasAbsorption:
    """Lowers biases by ``max(0, mean - width * std)`` of the layer's output (Nagel et al., 2019, arXiv 1906.04721).

    Between two layers with a ReLU, what a channel exceeds nearly always is a constant, which the layer after can add by
    itself: the activation between has a smaller range. With Gaussian outputs 99.87 % of the values are moved exactly at
    ``width=3``. Mean and deviation are those of the batch norm that was folded into the layer, or are measured. Layers
    that pad with zeros see another constant at the border: what they read is left as it is.

    Args:
        width: standard deviations below the mean that are left.
        samples: calibration samples to measure on where there was no batch norm, at most.

    Raises:
        SlimError: a value is out of its range.
    """

    stage: ClassVar[Stage] = "float"

    def __init__(self, width: float = 3.0, samples: int = 512) -> None:
        if width < 0 or samples < 1:
            raise SlimError("width must not be below 0 and samples at least 1")
        self.width, self.samples = width, samples

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        found = [(node, readers) for node in prepared.nodes.values() if (readers := _readers(prepared, node))]
        padded = [node for node, readers in found if any(_pads(prepared, reader) for reader in readers)]
        pairs = [(node, readers) for node, readers in found if node not in padded]
        measured = self._measured(prepared, [node for node, _ in pairs], data, context)
        moved = 0
        for node, readers in pairs:
            mean, deviation = node.meta.get("statistics") or measured[node]
            constant = (mean - self.width * deviation).clamp(min=0)
            if not bool((constant > 0).any()):
                continue
            moved += int((constant > 0).sum())
            _add(prepared, node, -constant)
            if "statistics" in node.meta:
                node.meta["statistics"] = (mean - constant, deviation)
            for reader in readers:
                if argument(reader, FOLDABLE[op_name(reader)][0]) is None:
                    prepared.edits.append(add_bias(prepared.graph, reader.name))
                _add(prepared, reader, response(prepared, reader, constant))
        kept = f"; {len(padded)} layers are left: what reads them pads with zeros" if padded else ""
        context.notes.append(f"bias_absorption: the biases of {moved} channels are lowered{kept}")

    def _measured(
        self, prepared: Prepared, nodes: list[fx.Node], data: CalibrationData, context: CorrectionContext
    ) -> dict[fx.Node, tuple[Tensor, Tensor]]:
        """Return mean and deviation of each channel of the outputs of layers that had no batch norm."""
        wanted = [node for node in nodes if "statistics" not in node.meta]
        moments = {node: Moments(channel_axis(node)) for node in wanted}
        if not wanted:
            return {}
        used = data.subset(self.samples)
        with context.progress.track("bias_absorption: measuring outputs", len(used)) as track:
            for batch in used.batches(32):
                tap(prepared.graph, batch, {node.name: moments[node].update for node in wanted})
                track.advance(32)
        return {node: found.result() for node, found in moments.items()}


class Moments:
    """Streaming mean and standard deviation of each channel, by Chan's merging of batches, in float64.

    Args:
        axis: of the channels.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        rows = values.detach().transpose(self.axis, -1)
        rows = rows.reshape(-1, rows.shape[-1]).double()
        mean, count = rows.mean(0), len(rows)
        total = self.count + count
        apart = mean - self.mean
        self.squares = self.squares + (rows - mean).square().sum(0) + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and (population) standard deviation."""
        return self.mean.float(), (self.squares / max(self.count, 1)).sqrt().float()


def response(prepared: Prepared, node: fx.Node, constant: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return what a layer without its bias answers, away from borders, to a constant for each input channel, float64.

    Args:
        prepared: the graph.
        node: the layer.
        constant: one value for each input channel.
        weight: in place of the layer's.
    """
    tensor = get_tensor(prepared.graph, str(owner_of(node.args[1]))) if weight is None else weight
    wide = tensor.detach().double().flatten(2).sum(2) if tensor.dim() > 2 else tensor.detach().double()
    values = constant.double()
    if op_name(node) == "aten.linear.default":
        return wide @ values
    groups = int(argument(node, 6, 1))
    rows = wide.view(groups, wide.shape[0] // groups, wide.shape[1])
    if FOLDABLE[op_name(node)][1] == 1:  # transposed: (groups, in, out)
        rows = rows.transpose(1, 2)
    return (rows @ values.view(groups, -1, 1)).reshape(-1)


def _readers(prepared: Prepared, node: fx.Node) -> list[fx.Node]:
    """Return the layers that read the ReLU after layer ``node``, if nothing else does; no layer otherwise."""
    if node.op != "call_function" or not correctable(prepared, node) or len(node.users) != 1:
        return []
    if argument(node, FOLDABLE[op_name(node)][0]) is None:
        return []
    relu = next(iter(node.users))
    if op_name(relu) != "aten.relu.default":
        return []
    readers = list(relu.users)
    fits = all(
        op_name(item) in FOLDABLE and item.args[0] is relu and owner_of(item.args[1]) and correctable(prepared, item)
        for item in readers
    )
    return readers if fits else []


def _pads(prepared: Prepared, node: fx.Node) -> bool:
    """Tell whether a layer sees something else than its input's values; a transposed convolution does at the border."""
    if op_name(node) == "aten.linear.default":
        return False
    if FOLDABLE[op_name(node)][1] == 1:
        return True
    padding = argument(node, 4, 0)
    if isinstance(padding, str):
        kernel = get_tensor(prepared.graph, str(owner_of(node.args[1]))).shape[2:]
        return padding != "valid" and any(size > 1 for size in kernel)
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _add(prepared: Prepared, node: fx.Node, change: Tensor) -> None:
    bias = get_tensor(prepared.graph, str(owner_of(argument(node, FOLDABLE[op_name(node)][0]))))
    with torch.no_grad():
        bias.copy_((bias.double() + change.double()).to(bias.dtype))
