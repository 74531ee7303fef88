"""Which quantizers of a graph are on: the same graph runs with any part of them, without being built again.

A float graph is run, and quantizers are done beside it: what a node computes is rounded before anyone reads it, and a
layer reads a rounded weight in place of its own. That is what ``insert`` builds into a graph, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slim_quant.biases import bias_step, rounded_bias, single_bias
from slim_quant.graph import get_tensor
from slim_quant.placement import WeightPlace
from slim_quant.preparation import Calibrated
from slim_quant.schemes import Scheme, on_grid
from slim_quant.units import Unit


@dataclass(frozen=True, eq=False, slots=True)
class Rounding:
    """The fake-quantizer of an activation. Two are the same where they round alike."""

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @property
    def key(self) -> tuple[float, int, int, int]:
        return float(self.scale), int(self.zero_point), self.low, self.high

    def __call__(self, values: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, self.low, self.high)


@dataclass(frozen=True, eq=False, slots=True)
class Switches:
    """The quantizers that are on.

    Args:
        activations: what rounds the value of a node.
        weights: the rounded weight that a node reads, by the node's name.
        biases: likewise.
    """

    activations: Mapping[str, Rounding] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def changed(self, base: Switches) -> set[str]:
        """Return the nodes at which something differs from ``base``."""
        nodes = {
            name
            for name in {*self.activations, *base.activations}
            if _key(self.activations.get(name)) != _key(base.activations.get(name))
        }
        names = {*self.weights, *base.weights, *self.biases, *base.biases}
        return nodes | {name for name in names if not self.same(base, name)}

    def same(self, base: Switches, node: str) -> bool:
        """Tell whether a node reads the weight and the bias that it reads in ``base``."""
        return self.weights.get(node) is base.weights.get(node) and self.biases.get(node) is base.biases.get(node)


OFF = Switches()


class Scales:
    """Scales of one choice of bits, from a calibration of the whole model.

    Args:
        calibrated: the model with scales, not yet finished.
    """

    def __init__(self, calibrated: Calibrated) -> None:
        prepared = calibrated.prepared
        self.placement = prepared.placement
        self._nodes = {item.node: item.scale for item in self.placement.activations}
        self._roundings = {
            scale: Rounding(*calibrated.activations[scale], prepared.activations[scale].qmin,
                            prepared.activations[scale].qmax)
            for scale in set(self._nodes.values())
        }  # fmt: skip
        self._weights: dict[str, Tensor] = {}
        self._places = {item.name: item for item in self.placement.weights}
        self._calibrated = calibrated
        self._biases: dict[tuple[str, float], Tensor | None] = {}
        self._layers = {
            node.name: node for node in prepared.graph.graph.nodes
            if any(node.name in item.layers for item in self.placement.weights)
        }  # fmt: skip

    def reads(self, layer: str) -> str:
        """Return the node whose values a layer reads."""
        return getattr(self._layers[layer].args[0], "name", "")

    def rounding(self, node: str) -> Rounding:
        return self._roundings[self._nodes[node]]

    def weight(self, name: str) -> tuple[WeightPlace, Tensor]:
        """Return where a weight is read, and its values on their grid."""
        place = self._places[name]
        if name not in self._weights:
            prepared = self._calibrated.prepared
            scheme = prepared.weights[name]
            values = get_tensor(prepared.graph, name).detach()
            self._weights[name] = rounded(values, *self._calibrated.weights[name], scheme, place.along(scheme))
        return place, self._weights[name]

    def bias(self, layer: str, weight: str, read: Rounding | None) -> Tensor | None:
        """Return the bias of a layer on the steps of its integers; ``None``: it stays as it is.

        Args:
            layer: the layer's node.
            weight: name of its weight.
            read: what rounds the values that it reads.
        """
        prepared = self._calibrated.prepared
        if read is None or not prepared.target.integer_bias:
            return None
        key = (layer, float(read.scale))
        if key not in self._biases:
            name = single_bias(prepared.graph, self._layers[layer])
            step = bias_step(self._layers[layer], read.scale, self._calibrated.weights[weight][0])
            on_steps = None if name is None or step is None else rounded_bias(get_tensor(prepared.graph, name), step)
            self._biases[key] = on_steps
        return self._biases[key]


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, axis: int) -> Tensor:
    """Return a weight as a finished graph has it."""
    return on_grid(values, scale, zero_point, scheme, axis)


def switches(choice: Iterable[tuple[Unit, Scales]]) -> Switches:
    """Return the quantizers of units, each with its own bits.

    A value that two units share is rounded as its reader has it; among several readers the most bits win. Scales that
    several values share go together.

    Args:
        choice: the units that are quantized, with the scales of their bits.
    """
    pairs = list(choice)
    activations: dict[str, Rounding] = {}
    readers: dict[str, list[Rounding]] = {}
    weights: dict[str, Tensor] = {}
    for unit, scales in pairs:
        for name in unit.activations:
            rounding = scales.rounding(name)
            if name in unit.reads:
                readers.setdefault(name, []).append(rounding)
            else:
                activations.setdefault(name, rounding)
        for name in unit.weights:
            place, values = scales.weight(name)
            weights.update(dict.fromkeys(place.layers, values))
    activations.update({name: max(found, key=_bits) for name, found in readers.items()})
    biases = {
        layer: made
        for unit, scales in pairs for name in unit.weights for layer in scales.weight(name)[0].layers
        if (made := scales.bias(layer, name, activations.get(scales.reads(layer)))) is not None
    }  # fmt: skip
    return Switches(activations, weights, biases)


def everything(units: Sequence[Unit], scales: Scales) -> Switches:
    """Return all quantizers of a placement, also those that belong to no unit (of what only moves values)."""
    found = switches((unit, scales) for unit in units)
    rest = {item.node: scales.rounding(item.node) for item in scales.placement.activations}
    return Switches({**rest, **found.activations}, found.weights, found.biases)


def _bits(rounding: Rounding) -> int:
    return rounding.high - rounding.low


def _key(rounding: Rounding | None) -> Any:
    return None if rounding is None else rounding.key
