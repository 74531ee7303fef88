"""What learned rounding reproduces: the output of a layer, or of a block, on the samples that a walk keeps there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from slim_core.errors import ModelError
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, owner_of
from slim_quant.ptq.corrections.columns import groups_of, input_columns, output_columns
from slim_quant.ptq.corrections.units import Unit
from slim_quant.ptq.corrections.walk import Change, Chunk, Values, Walk

#: weights by state-dict name
Weights = Mapping[str, Tensor]
#: positions of a layer's output that are kept, over all samples
_KEPT = 65536


class Reconstruction(Protocol):
    """Errors of a unit's outputs for given weights."""

    count: int

    def gradients(self, batch: int, weights: Weights, factor: float) -> tuple[float, dict[str, Tensor]]:
        """Return ``factor`` times the mean squared error on one of ``count`` batches, and its gradients by weight."""

    def change(self, exact: Weights, rounded: Weights) -> float:
        """Return the mean squared change of the outputs between two sets of weights."""

    def total(self, weights: Weights) -> float:
        """Return the squared error over everything that is kept, over the squares of the float outputs."""

    def settle(self, keep: bool) -> None:
        """Keep what was learned beside the weights, or go back to what was calibrated."""


class LayerReconstruction:
    """One layer and its activation function, as products of its weight with columns of inputs.

    The error is a sum over output positions, so a step can take positions from all over the samples: far fewer are
    needed than there are in a batch of whole pictures.

    Args:
        walk: runs the nodes.
        unit: a layer that is a matrix product, perhaps with an activation function.
        chunks: its batches.
        generator: chooses positions.
        positions: of a step.
    """

    def __init__(
        self, walk: Walk, unit: Unit, chunks: Sequence[Chunk], generator: torch.Generator, positions: int = 1024
    ) -> None:
        self.node, self.name = unit.nodes[0], unit.weights[0].name
        self.function = unit.nodes[1] if len(unit.nodes) > 1 else None
        graph = walk.prepared.graph
        weight = get_tensor(graph, self.name).detach()
        self.shape = (groups_of(self.node), weight.shape[0] // groups_of(self.node), weight[0].numel())
        bias = argument(self.node, FOLDABLE["aten.linear.default"][0])
        self.bias = None if bias is None else get_tensor(graph, str(owner_of(bias))).detach().view(*self.shape[:2], 1)
        most = max(positions, min(_KEPT, walk.memory // (4 * self.shape[0] * (self.shape[1] + self.shape[2]))))
        inputs, outputs = [], []
        for chunk in chunks:
            target = output_columns(self.node, chunk.targets[unit.nodes[-1]])
            taken = min(target.shape[2], -(-most // len(chunks)))
            where = torch.randperm(target.shape[2], generator=generator)[:taken]
            inputs.append(input_columns(self.node, chunk.quantized, weight)[:, :, where])
            outputs.append(target[:, :, where])
        mixed = torch.randperm(sum(item.shape[2] for item in inputs), generator=generator)
        whole_inputs, whole_outputs = torch.cat(inputs, 2), torch.cat(outputs, 2)
        del inputs, outputs
        parts = [mixed[start : start + positions] for start in range(0, len(mixed), positions)]
        if len(parts) > 1 and len(parts[-1]) < positions // 2:
            parts.pop()
        self.inputs = [whole_inputs[:, :, part] for part in parts]
        self.outputs = [whole_outputs[:, :, part] for part in parts]
        self.count = len(parts)
        self.power = max(sum(float(item.double().square().sum()) for item in self.outputs), 1e-30)

    def gradients(self, batch: int, weights: Weights, factor: float) -> tuple[float, dict[str, Tensor]]:
        weight = weights[self.name]
        x, target = self.inputs[batch], self.outputs[batch]
        before = self._product(weight, x)
        if self.function is None:
            error = before - target
            slope = error
        else:
            with torch.enable_grad():
                leaf = before.requires_grad_()
                value = self._activated(leaf)
            error = value.detach() - target
            (slope,) = torch.autograd.grad(value, leaf, error)
        scale = factor / error.numel()
        gradient = torch.bmm(slope, x.transpose(1, 2)).mul_(2 * scale)
        return float(error.square().sum()) * scale, {self.name: gradient.view(weight.shape)}

    def change(self, exact: Weights, rounded: Weights) -> float:
        found = [float((self._output(exact, x) - self._output(rounded, x)).square().mean()) for x in self.inputs[:4]]
        return sum(found) / len(found)

    def total(self, weights: Weights) -> float:
        pairs = zip(self.inputs, self.outputs, strict=True)
        return sum(float((self._output(weights, x) - y).double().square().sum()) for x, y in pairs) / self.power

    def settle(self, keep: bool) -> None:
        """Nothing but weights is learned."""

    def _output(self, weights: Weights, x: Tensor) -> Tensor:
        return self._activated(self._product(weights[self.name], x))

    def _product(self, weight: Tensor, x: Tensor) -> Tensor:
        rows = weight.view(self.shape)
        return torch.bmm(rows, x) if self.bias is None else torch.baddbmm(self.bias, rows, x)

    def _activated(self, value: Tensor) -> Tensor:
        if self.function is None:
            return value
        result: Tensor = self.function.target(value, *self.function.args[1:], **self.function.kwargs)  # type: ignore[operator]
        return result


class BlockReconstruction:
    """Any unit, run as it is on batches of whole samples.

    Args:
        walk: runs the nodes.
        unit: the unit.
        chunks: its batches.
        inner: what is done while learning with the values of the unit's nodes.
        mix: makes the inputs of a step from a batch; without one they are the quantized network's.
        scales: more to learn: parameters, their step size, and what keeps or forgets them.
    """

    def __init__(
        self, walk: Walk, unit: Unit, chunks: Sequence[Chunk], *, inner: Change | None = None,
        mix: Callable[[Chunk], Values] | None = None, scales: LearnedScales | None = None,
    ) -> None:  # fmt: skip
        self.walk, self.unit, self.chunks = walk, unit, chunks
        self.count = len(chunks)
        self.inner = inner
        self.mix = mix or (lambda chunk: dict(chunk.quantized))
        self.scales = scales
        squares = sum(float(target.double().square().sum()) for chunk in chunks for target in _floats(chunk.targets))
        self.power = max(squares, 1e-30)

    def gradients(self, batch: int, weights: Weights, factor: float) -> tuple[float, dict[str, Tensor]]:
        chunk = self.chunks[batch]
        with torch.enable_grad():
            leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
            found = self._outputs(self.mix(chunk), leaves, self.inner)
            loss = _error(found, _floats(chunk.targets)) * factor
        learned = [] if self.scales is None else self.scales.parameters
        gradients = torch.autograd.grad(loss, [*leaves.values(), *learned], allow_unused=True)
        if self.scales is not None:
            self.scales.step(gradients[len(leaves) :])
        by_name = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=False)
        }
        return float(loss.detach()), by_name

    def change(self, exact: Weights, rounded: Weights) -> float:
        found = []
        for chunk in self.chunks[:4]:
            one, other = (self._outputs(dict(chunk.quantized), weights, None) for weights in (exact, rounded))
            found.append(float(_error(one, other)))
        return sum(found) / len(found)

    def total(self, weights: Weights) -> float:
        squares = 0.0
        for chunk in self.chunks:
            found = self._outputs(dict(chunk.quantized), weights, self._inside)
            pairs = zip(found, _floats(chunk.targets), strict=True)
            squares += sum(float((one - other).double().square().sum()) for one, other in pairs)
        return squares / self.power

    def settle(self, keep: bool) -> None:
        if self.scales is not None:
            self.scales.settle(keep)

    def _outputs(self, inputs: Values, weights: Weights, change: Change | None) -> list[Tensor]:
        values = self.walk.advance(inputs, self.unit.nodes, weights, change)
        return _floats({node: values[node] for node in self.unit.outputs})

    def _inside(self, node: fx.Node, value: Any) -> Any:
        return value if node in self.unit.outputs else self.walk.fake(node, value)


class LearnedScales:
    """Activation scales that are learned together with a block's roundings: those that only the block uses.

    Args:
        walk: has the calibrated scales.
        unit: the block.
        lr: step size of Adam on the logarithms of the scales; 0 to learn none.
    """

    def __init__(self, walk: Walk, unit: Unit, lr: float) -> None:
        self.walk = walk
        inside = {node.name for node in unit.nodes if node not in unit.outputs}
        members: dict[str, set[str]] = {}
        for node, scale in walk.scales.items():
            members.setdefault(scale, set()).add(node)
        names = [scale for scale, nodes in members.items() if nodes <= inside] if lr else []
        self.start = {name: walk.calibrated.activations[name] for name in names}
        #: logarithm of each scale over the calibrated one
        self.logs = {name: torch.zeros_like(scale).requires_grad_() for name, (scale, _) in self.start.items()}
        self.parameters = list(self.logs.values())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr) if self.parameters else None

    def fake(self, node: fx.Node, value: Any) -> Any:
        """Return ``value`` on its grid, differentiable in the value and in the scale (Esser et al., 2020: LSQ)."""
        name = self.walk.scales[node.name]
        if name not in self.logs:
            return self.walk.fake(node, value)
        scheme = self.walk.prepared.activations[name]
        start, zero_point = self.start[name]
        scale = start * torch.exp(self.logs[name])
        steps = value / scale
        rounded = steps + (torch.round(steps) - steps).detach()
        low, high = scheme.qmin - zero_point, scheme.qmax - zero_point
        return torch.clamp(rounded, low.to(value.dtype), high.to(value.dtype)) * scale

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Make one step of Adam."""
        if self.optimizer is None:
            return
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def settle(self, keep: bool) -> None:
        """Write the learned scales into the calibration, or the calibrated ones again."""
        with torch.no_grad():
            for name, log in self.logs.items():
                scale, zero_point = self.start[name]
                learned = (scale * torch.exp(log)).detach() if keep else scale
                self.walk.calibrated.activations[name] = (learned, zero_point)


def _floats(values: Mapping[fx.Node, object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values.values():
        tensors = value if isinstance(value, list | tuple) else (value,)
        found.extend(tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.is_floating_point())
    return found


def _error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error over all entries of all tensors."""
    if not wanted:
        raise ModelError("a unit has no output in floating point")
    squares = [(one - other).square().sum() for one, other in zip(found, wanted, strict=True)]
    return torch.stack(squares).sum() / max(1, sum(tensor.numel() for tensor in wanted))
