"""Which channels of a graph can be scaled without changing what the network computes, and by which parameters.

Multiply what writes a channel by 1/s and what reads it by s: the network computes the same, if everything between works
on channels independently and is positively homogeneous (ReLU, pooling, additions, concatenations, moving values about).
Each channel of each such activation carries a label; additions, concatenations and shared weights make labels equal, an
operator of another kind freezes them. Labels are tensors of integers in the shape of the activation: whatever only
moves values is run on them as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from slim_core.graph.classes import components
from slim_core.graph.export import ExportedModel
from slim_quant.fold import FOLDABLE
from slim_quant.graph import argument, get_tensor, op_name, owner_of

#: Element-wise, and f(s x) = s f(x) for s > 0.
HOMOGENEOUS = frozenset({
    "aten.relu.default", "aten.leaky_relu.default", "aten.dropout.default", "aten.feature_dropout.default",
    "aten.prelu.default", "aten.neg.default", "aten.abs.default",
})  # fmt: skip
#: Work on each channel by itself, and homogeneously, whatever they do to the axes from 2 on.
POOLS = frozenset({
    "aten.max_pool1d.default", "aten.max_pool2d.default", "aten.max_pool3d.default", "aten.avg_pool1d.default",
    "aten.avg_pool2d.default", "aten.avg_pool3d.default", "aten.adaptive_avg_pool1d.default",
    "aten.adaptive_avg_pool2d.default", "aten.adaptive_avg_pool3d.default", "aten.adaptive_max_pool2d.default",
    "aten.upsample_nearest2d.vec", "aten.upsample_bilinear2d.vec", "aten.upsample_nearest1d.vec",
})  # fmt: skip
#: Only move, repeat or choose values.
MOVING = frozenset({
    "aten.flatten.using_ints", "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default",
    "aten.permute.default", "aten.transpose.int", "aten.t.default", "aten.squeeze.dim", "aten.squeeze.dims",
    "aten.squeeze.default", "aten.unsqueeze.default", "aten.unflatten.int", "aten.slice.Tensor", "aten.select.int",
    "aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int", "getitem",
    "aten.contiguous.default", "aten.clone.default", "aten.expand.default", "aten.cat.default", "aten.stack.default",
    "aten.flip.default", "aten.channel_shuffle.default", "aten.alias.default", "aten.detach.default",
    "aten.roll.default", "aten.repeat.default", "aten.narrow.default", "aten.movedim.int",
})  # fmt: skip
_VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})  # labels are no contiguous tensors
_PADS = frozenset({"aten.constant_pad_nd.default", "aten.pad.default"})
_SUMS = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.maximum.default", "aten.minimum.default"})
_MEANS = frozenset({"aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default"})
_NORMS = {"aten.layer_norm.default": 2, "aten.rms_norm.default": 2, "aten.group_norm.default": 2}
#: the label of everything that cannot be scaled
FROZEN = 0
_BATCH = 2

Kind = Literal["write", "read"]


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One parameter that writes or reads channels.

    Args:
        name: its state-dict name.
        kind: does it write the channels (it is multiplied by 1/s) or read them (by s)?
        shape: the parameter seen as (groups, a, b, rest), so that ``axis`` counts channels within a group.
        axis: 1 or 2 of ``shape``; channel ``g * shape[axis] + i`` is index ``i`` of group ``g``.
        labels: one label per channel, numbered as in :class:`Streams`.
        layer: the node that uses it.
        weight: it multiplies; otherwise it is a bias, which is added.
    """

    name: str
    kind: Kind
    shape: tuple[int, int, int, int]
    axis: int
    labels: np.ndarray[Any, np.dtype[np.int64]]
    layer: str
    weight: bool = True

    def ranges(self, tensor: Tensor) -> Tensor:
        """Return the largest absolute value of each channel, float64, on the CPU as the labels are."""
        view = tensor.detach().abs().reshape(self.shape)
        return view.amax((3 - self.axis, 3)).reshape(-1).double().cpu()

    def scale(self, tensor: Tensor, factors: Tensor) -> None:
        """Multiply the parameter in place by a factor for each channel."""
        wide = factors.to(tensor.device).reshape(self.shape[0], -1).unsqueeze(3 - self.axis).unsqueeze(3)
        with torch.no_grad():
            tensor.copy_((tensor.double().reshape(self.shape) * wide.double()).reshape(tensor.shape))


@dataclass(slots=True, eq=False)
class Streams:
    """All channels of a graph that can be scaled.

    Args:
        count: how many labels there are; label 0 is frozen.
        uses: parameters that write and read channels.
        values: labels of activations by node, in the activation's shape for two samples, where some can be scaled.
    """

    count: int
    uses: tuple[Use, ...]
    values: dict[str, Tensor] = field(repr=False)

    def free(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell for each label whether a weight or norm writes it and a weight reads it, and nothing freezes it."""
        found = {kind: np.zeros(self.count, dtype=bool) for kind in ("write", "read")}
        for use in self.uses:
            if use.weight:
                found[use.kind][use.labels] = True
        both: np.ndarray[Any, np.dtype[np.bool_]] = found["write"] & found["read"]
        both[FROZEN] = False
        return both

    def apply(self, model: ExportedModel, scales: Tensor) -> None:
        """Multiply every parameter that reads label i by ``scales[i]``, and divide what writes it.

        Args:
            model: the graph.
            scales: one for each label, above 0; ``scales[0]`` is 1.
        """
        for use in self.uses:
            factors = scales[torch.from_numpy(use.labels)].double()
            use.scale(get_tensor(model, use.name), factors if use.kind == "read" else 1 / factors)
        _scale_statistics(model, self, scales)


def find_streams(model: ExportedModel) -> Streams:
    """Return the channels of ``model`` that can be scaled. Nothing is changed."""
    return _Finder(model).find()


class _Finder:
    def __init__(self, model: ExportedModel) -> None:
        self.model = model
        self.labels: dict[fx.Node, Any] = {}
        self.pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self.next = 1
        self.ends: dict[tuple[int, Kind], np.ndarray[Any, Any]] = {}
        self.uses: list[Use] = []
        self.counts = _uses_of_tensors(model)

    def find(self) -> Streams:
        for node in self.model.graph.nodes:
            if node.op == "call_function":
                self._visit(node)
            elif node.op == "output":
                for source in node.all_input_nodes:
                    self._freeze(self.labels.get(source))
        classes = components(self.next, self.pairs)  # frozen labels are in the class of label 0, which is class 0
        uses = tuple(
            Use(item.name, item.kind, item.shape, item.axis, classes[item.labels], item.layer, item.weight)
            for item in self.uses
        )
        table = torch.from_numpy(classes)
        values = {
            node.name: found
            for node, labels in self.labels.items()
            if isinstance(labels, Tensor) and bool((found := table[_small(labels)]).any())
        }
        return Streams(int(classes.max()) + 1, uses, values)

    def _visit(self, node: fx.Node) -> None:
        name = op_name(node)
        sources = [self.labels.get(item) for item in node.all_input_nodes]
        if name in FOLDABLE:
            self._layer(node, name)
        elif name in _NORMS and self._norm(node, name):
            pass
        elif all(item is None for item in sources) or name.startswith("aten.sym_"):
            return
        elif name in HOMOGENEOUS and len([item for item in sources if item is not None]) == 1:
            self.labels[node] = self.labels.get(node.args[0])  # type: ignore[arg-type]
        elif name in MOVING:
            self._move(node)
        elif name in POOLS or (name in _MEANS and _keeps_channels(node)) or (name in _PADS and _pads_zeros(node)):
            self._pool(node)
        elif name in _SUMS:
            self._sum(node)
        elif name in ("aten.mul.Tensor", "aten.div.Tensor"):
            self._product(node, name)
        elif name in ("aten.matmul.default", "aten.bmm.default"):
            self._matmul(node)
        elif name == "aten.scaled_dot_product_attention.default":
            self._attention(node)
        else:
            for item in sources:
                self._freeze(item)

    def _layer(self, node: fx.Node, name: str) -> None:
        weight, bias = owner_of(node.args[1]), argument(node, FOLDABLE[name][0])
        source = self.labels.get(node.args[0])  # type: ignore[arg-type]
        if weight is None or (bias is not None and owner_of(bias) is None) or _shape(node) is None:
            self._freeze(source)
            return
        tensor = get_tensor(self.model, weight)
        linear, transposed = name == "aten.linear.default", FOLDABLE[name][1] == 1
        groups = 1 if linear else int(argument(node, 6, 1))
        rest = math.prod(tensor.shape[2:])
        shape = (groups, tensor.shape[0] // groups, tensor.shape[1], rest)  # transposed: (groups, in, out, rest)
        reads, writes = (1, 2) if transposed else (2, 1)
        axis = -1 if linear else 1
        incoming = self._ends(tensor, "read", shape[0] * shape[reads])
        channels = None if source is None else _channels(source, axis)
        if channels is None or len(channels) != len(incoming):
            self._freeze(source)
            self.pairs.append((incoming, np.zeros_like(incoming)))
        else:
            self.pairs.append((incoming, channels))
        outgoing = self._ends(tensor, "write", shape[0] * shape[writes])
        if self._first(node, weight):
            self.uses.append(Use(weight, "read", shape, reads, incoming, node.name))
            self.uses.append(Use(weight, "write", shape, writes, outgoing, node.name))
        self._added(node, bias, outgoing)
        self._emit(node, outgoing, axis)

    def _norm(self, node: fx.Node, name: str) -> bool:
        """A norm freezes what it reads; its gain and shift write channels."""
        self._freeze(self.labels.get(node.args[0]))  # type: ignore[arg-type]
        gain, shift = argument(node, 2), argument(node, 3) if name != "aten.rms_norm.default" else None
        weight = owner_of(gain)
        if weight is None or (shift is not None and owner_of(shift) is None) or _shape(node) is None:
            return True
        tensor = get_tensor(self.model, weight)
        if tensor.dim() != 1:
            return True
        outgoing = self._ends(tensor, "write", len(tensor))
        if self._first(node, weight):
            self.uses.append(Use(weight, "write", (1, len(tensor), 1, 1), 1, outgoing, node.name))
        self._added(node, shift, outgoing)
        self._emit(node, outgoing, 1 if name == "aten.group_norm.default" else -1)
        return True

    def _added(self, node: fx.Node, bias: Any, outgoing: np.ndarray[Any, Any]) -> None:
        name = owner_of(bias)
        if name is None:
            return
        tensor = get_tensor(self.model, name)
        labels = self._ends(tensor, "write", len(outgoing))
        self.pairs.append((labels, outgoing))
        if self._first(node, name):
            self.uses.append(Use(name, "write", (1, len(outgoing), 1, 1), 1, labels, node.name, weight=False))

    def _first(self, node: fx.Node, name: str) -> bool:
        """Tell whether this is the first layer that uses a parameter, so that it is scaled once."""
        tensor = get_tensor(self.model, name)
        return not any(get_tensor(self.model, use.name) is tensor for use in self.uses if use.layer != node.name)

    def _ends(self, tensor: Tensor, kind: Kind, count: int) -> np.ndarray[Any, Any]:
        """Return the labels of a parameter's channels; one parameter has one set, wherever it is used.

        A parameter that something else than layers and norms reads is frozen.
        """
        key = (id(tensor), kind)
        if key not in self.ends:
            self.ends[key] = np.arange(self.next, self.next + count, dtype=np.int64)
            self.next += count
            if self.counts.get(id(tensor), 0):
                self.pairs.append((self.ends[key], np.zeros(count, dtype=np.int64)))
        found = self.ends[key]
        if len(found) != count:
            self.pairs.append((found, np.zeros_like(found)))
            return np.zeros(count, dtype=np.int64)
        return found

    def _emit(self, node: fx.Node, labels: np.ndarray[Any, Any], axis: int) -> None:
        shape = _shape(node)
        assert shape is not None  # noqa: S101 - checked by the caller
        view = [1] * len(shape)
        view[axis] = len(labels)
        self.labels[node] = torch.from_numpy(labels.copy()).view(view).expand(shape)

    def _move(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._concrete)
        flat, spec = pytree.tree_flatten((args, kwargs))
        if any(item is None for item, given in zip(flat, pytree.tree_leaves((node.args, node.kwargs)), strict=False)
               if isinstance(given, fx.Node)):  # fmt: skip
            return self._freeze_inputs(node)
        try:
            args, kwargs = pytree.tree_unflatten(flat, spec)
            run: Any = torch.ops.aten.reshape.default if op_name(node) in _VIEWS else node.target
            self.labels[node] = run(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError):
            self._freeze_inputs(node)
        return None

    def _concrete(self, node: fx.Node) -> Any:
        """Return labels of an activation, the number behind a symbolic size, and frozen labels for what has none."""
        found = self.labels.get(node)
        if found is not None:
            return found
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            shape = _shape(node)
            return None if shape is None else torch.zeros((), dtype=torch.int64).expand(shape)
        return _number(value)

    def _pool(self, node: fx.Node) -> None:
        source, shape = self.labels.get(node.args[0]), _shape(node)  # type: ignore[arg-type]
        if op_name(node) in _MEANS:
            axes = [int(axis) for axis in node.args[1]]  # type: ignore[union-attr, arg-type]
            same = source if source is None else _constant(source, axes)
            if same is None:
                return self._freeze(source)
            keep = bool(argument(node, 2, False))
            kept = same.sum(axes, keepdim=keep) // math.prod(same.shape[axis] for axis in axes)
            self.labels[node] = kept
            return None
        channels = None if source is None else _channels(source, 1)
        if channels is None or shape is None:
            return self._freeze(source)
        self._emit(node, channels, 1)
        return None

    def _sum(self, node: fx.Node) -> None:
        """Both sides must be scaled alike; a number or a constant that is added freezes the other side."""
        parts = [self.labels.get(item) if isinstance(item, fx.Node) else None for item in node.args[:2]]
        one, other = parts
        if one is None or other is None:
            return self._freeze_inputs(node)
        try:
            left, right = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return self._freeze_inputs(node)
        self.pairs.append((_small(left, right).numpy().ravel(), _small(right, left).numpy().ravel()))
        self.labels[node] = left
        return None

    def _product(self, node: fx.Node, name: str) -> None:
        """One side may be scaled if the other is not: a gate, a number, a constant."""
        one, other = (self.labels.get(item) if isinstance(item, fx.Node) else None for item in node.args[:2])
        kept = one if one is not None else other
        if name == "aten.div.Tensor" and one is None:
            return self._freeze(other)
        if one is not None and other is not None:
            self._freeze(other)
        shape = _shape(node)
        if kept is None or shape is None:
            return self._freeze_inputs(node)
        try:
            self.labels[node] = kept.expand(shape)
        except RuntimeError:
            self._freeze_inputs(node)
        return None

    def _matmul(self, node: fx.Node) -> None:
        """The right factor's last axis passes through, if each of its columns is one channel."""
        left, right = (self.labels.get(item) for item in node.args[:2])  # type: ignore[arg-type]
        self._freeze(left)
        self._through(node, right)

    def _attention(self, node: fx.Node) -> None:
        query, key, value = (self.labels.get(item) for item in node.args[:3])  # type: ignore[arg-type]
        self._freeze(query)
        self._freeze(key)
        self._through(node, value)

    def _through(self, node: fx.Node, source: Tensor | None) -> None:
        shape = _shape(node)
        same = None if source is None or source.dim() < 2 else _constant(source, [-2])
        if same is None or shape is None:
            return self._freeze(source)
        try:
            self.labels[node] = same.narrow(-2, 0, 1).expand(shape)
        except RuntimeError:
            self._freeze(source)
        return None

    def _freeze_inputs(self, node: fx.Node) -> None:
        for item in node.all_input_nodes:
            self._freeze(self.labels.get(item))

    def _freeze(self, labels: Any) -> None:
        for item in pytree.tree_leaves(labels):
            if isinstance(item, Tensor):
                found = np.unique(_small(item).numpy())
                self.pairs.append((found, np.zeros_like(found)))


def _uses_of_tensors(model: ExportedModel) -> dict[int, int]:
    """Return, by identity of the tensor, how often something reads it that is no weight, bias or affine of a norm."""
    counts: dict[int, int] = {}
    for node in model.graph.nodes:
        if node.op != "get_attr":
            continue
        for user in node.users:
            places = {1, FOLDABLE[op_name(user)][0]} if op_name(user) in FOLDABLE else set()
            places = {2, 3} if op_name(user) in _NORMS else places
            if not any(place < len(user.args) and user.args[place] is node for place in places):
                tensor = get_tensor(model, str(node.target))
                counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def _scale_statistics(model: ExportedModel, streams: Streams, scales: Tensor) -> None:
    """Divide the statistics that folded batch norms left on layers, as their outputs are divided."""
    nodes = {node.name: node for node in model.graph.nodes}
    for use in streams.uses:
        kept = nodes[use.layer].meta.get("statistics")
        if use.kind == "write" and use.weight and kept is not None and op_name(nodes[use.layer]) in FOLDABLE:
            factors = scales[torch.from_numpy(use.labels)].to(kept[0])
            nodes[use.layer].meta["statistics"] = (kept[0] / factors, kept[1] / factors)


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's value, for two samples where the batch is open; ``None`` if it has none."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    sizes = [_number(size) for size in value.shape]
    return None if any(size is None for size in sizes) else tuple(int(size) for size in sizes)  # type: ignore[arg-type]


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value
    expression = getattr(getattr(value, "node", None), "expr", None)
    if expression is None:
        return None
    return int(expression.subs(dict.fromkeys(expression.free_symbols, _BATCH)))


def _pads_zeros(node: fx.Node) -> bool:
    """Padding with zeros that leaves the axes 0 and 1 as they are."""
    constant = op_name(node) == "aten.constant_pad_nd.default" or argument(node, 2, "constant") == "constant"
    value = argument(node, 2 if op_name(node) == "aten.constant_pad_nd.default" else 3, 0)
    shape = _shape(node)
    around = node.args[1]
    return constant and not value and shape is not None and len(around) <= 2 * (len(shape) - 2)  # type: ignore[arg-type]


def _keeps_channels(node: fx.Node) -> bool:
    return isinstance(node.args[1], list | tuple)


def _small(labels: Tensor, beside: Tensor | None = None) -> Tensor:
    """Return ``labels`` without the axes that only repeat it (and ``beside`` alike)."""
    for axis in range(labels.dim()):
        others = (labels,) if beside is None else (labels, beside)
        if labels.shape[axis] > 1 and all(item.stride(axis) == 0 for item in others):
            labels = labels.narrow(axis, 0, 1)
            beside = None if beside is None else beside.narrow(axis, 0, 1)
    return labels


def _constant(labels: Tensor, axes: Sequence[int]) -> Tensor | None:
    """Return ``labels`` if it does not change along ``axes``."""
    for axis in axes:
        if labels.stride(axis) != 0 and not bool((labels == labels.narrow(axis, 0, 1)).all()):
            return None
    return labels


def _channels(labels: Tensor, axis: int) -> np.ndarray[Any, Any] | None:
    """Return the label of each index of ``axis``, if it depends on nothing else."""
    if labels.dim() < 2:
        return None
    axis %= labels.dim()
    others = [item for item in range(labels.dim()) if item != axis]
    if 0 in labels.shape or _constant(labels, others) is None:
        return None
    found = labels[tuple(slice(None) if item == axis else 0 for item in range(labels.dim()))]
    return found.contiguous().numpy().copy()
