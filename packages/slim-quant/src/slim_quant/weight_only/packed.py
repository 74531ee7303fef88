"""Weights that are kept as packed integers, in modules of the user's own classes.

A module whose weight is packed gets a subclass of its class: the parameter is gone, three buffers hold its integers,
scales and zero points, and reading the attribute gives the weight dequantized, a fresh tensor each time. Whatever the
module's forward does with its weight keeps working, and only one weight at a time is there in float. An embedding reads
the rows that it looks up, and no others.

How the integers are found is in ``quantize.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.errors import ModelError
from slim_core.export.mode import dequantized_weight, exporting
from slim_quant.weight_only.packing import bytes_of, pack, unpack

PARTS = ("packed", "scale", "zero_point")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a two-dimensional weight is stored.

    Args:
        shape: of the weight.
        axis: its input axis: rows of the packed form run along it.
        bits: 2 to 8.
        group: values of a row that share a scale; the last group may be shorter.
        affine: zero points are stored; otherwise every one is ``2**(bits - 1)``.
        single: one scale for the whole weight.
    """

    shape: tuple[int, int]
    axis: int
    bits: int
    group: int
    affine: bool
    single: bool = False

    @property
    def rows(self) -> int:
        return self.shape[1 - self.axis]

    @property
    def columns(self) -> int:
        return self.shape[self.axis]

    @property
    def groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def middle(self) -> int:
        """The stored integer that stands for 0 where there are no zero points."""
        return 1 << (self.bits - 1)

    def forms(self) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
        """Return shape and dtype of each stored part; the scales have the weight's own dtype (``None``)."""
        scales = (1, 1) if self.single else (self.rows, self.groups)
        forms: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
            "packed": ((self.rows, bytes_of(self.columns, self.bits)), torch.uint8),
            "scale": (scales, None),
        }
        if self.affine:
            forms["zero_point"] = (scales, torch.uint8)
        return forms


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight as it is stored: see :class:`Layout`.

    Args:
        layout: its shape and how it is stored.
        packed: uint8, ``(rows, bytes)``.
        scale: ``(rows, groups)`` or ``(1, 1)``; the dequantized weight has its dtype.
        zero_point: uint8, of the same shape, or ``None``.
    """

    layout: Layout
    packed: Tensor
    scale: Tensor
    zero_point: Tensor | None

    @classmethod
    def of(cls, integers: Tensor, scale: Tensor, zero_point: Tensor | None, layout: Layout) -> PackedWeight:
        """Pack integers ``(rows, columns)``: from ``-2**(bits - 1)`` where there is no zero point, from 0 otherwise."""
        stored = integers if layout.affine else integers + layout.middle
        zero = None if zero_point is None else zero_point.to(torch.uint8)
        return cls(layout, pack(stored, layout.bits), scale, zero)

    def integers(self, rows: Tensor | None = None) -> Tensor:
        """Return the integers, zero points taken away, in float32: ``(rows, columns)``, or ``(…, columns)`` of some.

        Args:
            rows: indices of rows, of any shape.
        """
        packed = self.packed if rows is None else self.packed[rows]
        values = unpack(packed, self.layout.bits, self.layout.columns).float()
        if self.zero_point is None:
            return values - self.layout.middle
        return self._by_group(torch.sub, values, self.zero_point, rows)

    def floats(self, rows: Tensor | None = None) -> Tensor:
        """Return the weight in its own shape, or some rows of the packed form."""
        values = self._by_group(torch.mul, self.integers(rows), self.scale, rows).to(self.scale.dtype)
        return values if rows is not None or self.layout.axis == 1 else values.t()

    def _by_group(
        self, operator: Callable[[Tensor, Tensor], Tensor], values: Tensor, parameter: Tensor, rows: Tensor | None
    ) -> Tensor:
        """Combine each value with the parameter of its group, in float32."""
        parameter, layout = parameter.float(), self.layout
        if layout.single:
            return operator(values, parameter.reshape(()))
        chosen = parameter if rows is None else parameter[rows]
        if layout.groups == 1:
            return operator(values, chosen)
        if layout.columns % layout.group == 0:
            parts = values.reshape(*values.shape[:-1], layout.groups, layout.group)
            return operator(parts, chosen.unsqueeze(-1)).flatten(-2)
        return operator(values, chosen.repeat_interleave(layout.group, dim=-1)[..., : layout.columns])


class Packing:
    """What the subclass of a user's module class adds: packed weights, read as if they were parameters."""

    def __getattr__(self, name: str) -> Any:
        layouts = self.__dict__.get("_packed_layouts")
        if layouts is not None and name in layouts and name not in self.__dict__["_parameters"]:
            return self.read_packed(name)
        return super().__getattr__(name)  # type: ignore[misc]

    def read_packed(self, name: str) -> Tensor:
        """Return the weight ``name`` in float; a node of its own in an exported ONNX graph."""
        weight = packed_weight(self, name)
        layout = weight.layout
        if exporting() is not None:
            return dequantized_weight(
                weight.packed, weight.scale, weight.zero_point, bits=layout.bits, columns=layout.columns,
                block=layout.group, axis=layout.axis,
            )  # fmt: skip
        return weight.floats()

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]  # type: ignore[misc]
        parts += [f"{name}: {layout.bits} bits" for name, layout in self.__dict__.get("_packed_layouts", {}).items()]
        return ", ".join(part for part in parts if part)


class PackedEmbedding(Packing):
    """An embedding that unpacks the rows that it looks up."""

    def forward(self, input: Tensor) -> Tensor:
        if exporting() is not None:
            return nn.functional.embedding(input, self.read_packed("weight"))
        return packed_weight(self, "weight").floats(input)


def packed_weight(module: Any, name: str) -> PackedWeight:
    """Return the packed weight that ``module`` holds under ``name``."""
    buffers = module.__dict__["_buffers"]
    parts = [buffers.get(f"{name}_{part}") for part in PARTS]
    return PackedWeight(module.__dict__["_packed_layouts"][name], *parts)


def packed_names(model: nn.Module) -> dict[str, Layout]:
    """Return the layouts of all packed weights of a model by name, those of tied weights under each name."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, layout in module.__dict__.get("_packed_layouts", {}).items():
            found[f"{path}.{name}" if path else name] = layout
    return found


def holds_packed(model: nn.Module) -> bool:
    """Tell whether a model holds packed weights."""
    return bool(packed_names(model))


def install(model: nn.Module, names: Sequence[str], weight: PackedWeight) -> None:
    """Put a packed weight in the place of the parameter with these (tied) names; edits ``model``.

    Raises:
        ModelError: the module cannot hold it: it has a buffer of that name already, or keeps its parameters in a list.
    """
    for full in names:
        path, _, name = full.rpartition(".")
        module = model.get_submodule(path)
        reason = obstacle(module, name)
        if reason is not None:
            raise ModelError(f"the weight '{full}' cannot be packed: {reason}")
        if "_packed_layouts" not in module.__dict__:
            become(module, PackedEmbedding if looks_up(module, name, weight.layout) else Packing)
        hold(module, name, weight)


def obstacle(module: nn.Module, name: str) -> str | None:
    """Return why ``module`` cannot hold its parameter ``name`` packed, or ``None``."""
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return f"a {type(module).__name__} holds it"
    if isinstance(module, nn.RNNBase):
        return "a recurrent layer keeps its weights in a list of its own"
    if isinstance(module, torch.fx.GraphModule):
        return "it belongs to the graph itself"
    if name not in module._parameters:
        return "it is no parameter of its module"
    taken = [part for part in PARTS if hasattr(module, f"{name}_{part}")]
    return f"the module has a '{name}_{taken[0]}' of its own" if taken else None


def hold(module: nn.Module, name: str, weight: PackedWeight) -> None:
    """Put a packed weight in the place of a parameter of a module whose class reads it."""
    layouts = module.__dict__.setdefault("_packed_layouts", {})
    layouts[name] = weight.layout
    del module._parameters[name]
    for part in PARTS:
        tensor = getattr(weight, part)
        if tensor is not None:
            module.register_buffer(f"{name}_{part}", tensor)


def become(module: nn.Module, mixin: type) -> None:
    """Give ``module`` a subclass of its class that has ``mixin`` in front."""
    base = type(module)
    module.__class__ = type(base.__name__, (mixin, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def looks_up(module: nn.Module, name: str, layout: Layout) -> bool:
    """Tell whether a module only looks up rows of its weight."""
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    return plain and name == "weight" and layout.axis == 1 and module.max_norm is None


def empty(layout: Layout, like: Tensor) -> PackedWeight:
    """Return a packed weight of zeros for a weight ``like`` this one: its dtype, on its device."""
    parts = {
        part: torch.zeros(shape, dtype=dtype or like.dtype, device=like.device)
        for part, (shape, dtype) in layout.forms().items()
    }
    return PackedWeight(layout, parts["packed"], parts["scale"], parts.get("zero_point"))
