"""The oracle where channels are normalized: the masked original, with statistics over the kept channels only.

A layer norm over fewer channels is not the layer norm of the masked original, whose zeros take part. It is the norm of
what is left. This module runs the masked original operator by operator and gives norms, means and extremes (and windows
along the channels) nothing but the kept entries; the pruned model must compute the same to float error. Where nothing
is normalized, this is the masked original itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_core.graph.isolate import quiet_torch
from slim_core.graph.record import Several
from slim_core.graph.rules import builtin_rules, find_rule
from slim_core.graph.shrink import removed_classes
from slim_core.graph.types import Coupling, Node, Ref
from slim_core.modes import evaluating
from slim_core.testing.oracle import as_double, assert_outputs_close, mask_removed
from slim_core.workload import call, tensors_of

Kept = Mapping[str, NDArray[np.int64]]

#: operators that take statistics over channels, or slide along them
STATISTICS = frozenset(
    f"aten.{name}" for name in (
        "layer_norm", "rms_norm", "group_norm", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "max",
        "min", "conv1d",
    )
)  # fmt: skip
#: operators that compute nothing, and whose trace depends on where and as what tensors are made
_SILENT = frozenset(f"aten.{name}" for name in ("contiguous", "detach", "alias", "to", "_to_copy", "lift_fresh"))


def assert_equals_kept_statistics(
    original: nn.Module, pruned: nn.Module, coupling: Coupling, kept: Kept, inputs: Any, *, rtol: float = 1e-9
) -> float:
    """Assert that ``pruned`` is the masked original with statistics over what is kept, in float64.

    Args:
        original: the model before pruning.
        pruned: the model after pruning.
        coupling: what belongs together in ``original``.
        kept: kept unit numbers per group name.
        inputs: what ``coupling`` was derived with (``Several`` where it was several).
        rtol: bound on ``max |difference| / max |value|``, for each output tensor.

    Returns:
        The largest relative difference.

    Raises:
        AssertionError: an output differs, or the model runs other operators than were recorded.
    """
    expected = kept_statistics(original, coupling, kept, inputs)
    smaller = copy.deepcopy(pruned).double()
    actual: list[Tensor] = []
    with evaluating(smaller), torch.no_grad():
        for one in inputs if isinstance(inputs, Several) else (inputs,):
            actual += tensors_of(call(smaller, as_double(one)))
    return assert_outputs_close(actual, expected, rtol=rtol, names=("the pruned model", "the reference over kept"))


def kept_statistics(original: nn.Module, coupling: Coupling, kept: Kept, inputs: Any) -> list[Tensor]:
    """Return the outputs of the masked ``original`` in float64, with statistics over the kept channels."""
    masked = mask_removed(original, coupling, kept).double()
    outputs: list[Tensor] = []
    every = [as_double(one) for one in (inputs if isinstance(inputs, Several) else (inputs,))]
    with evaluating(masked), quiet_torch(masked), torch.inference_mode(), _OverKept(coupling, kept) as mode:
        for one in every:
            outputs += tensors_of(call(masked, one))
    assert mode.done(), "the masked original runs fewer operators than were recorded"  # noqa: S101
    return outputs


class _OverKept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the recording, and gives statistics only the kept entries."""

    def __init__(self, coupling: Coupling, kept: Kept) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.labels = coupling.graph, coupling.labels
        self.gone = removed_classes(coupling, kept)
        self.place = 0
        self._composite: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_composite(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        node = self._next(str(func))
        if node is not None and _packet(node.op) in STATISTICS and not _is_plain_convolution(node, args):
            return self._over_kept(func, node, args, kwargs)
        return func(*args, **kwargs)

    def _is_composite(self, func: Any) -> bool:
        if func not in self._composite:
            key = torch._C.DispatchKey.CompositeImplicitAutograd
            whole = find_rule(builtin_rules(), str(func)) is not None
            self._composite[func] = func.has_kernel_for_dispatch_key(key) and not whole
        return self._composite[func]

    def done(self) -> bool:
        return all(_packet(node.op) in _SILENT for node in self.graph.nodes[self.place :])

    def _next(self, op: str) -> Node | None:
        nodes = self.graph.nodes
        if _packet(op) in _SILENT and (self.place == len(nodes) or nodes[self.place].op != op):
            return None
        while self.place < len(nodes) and nodes[self.place].op != op and _packet(nodes[self.place].op) in _SILENT:
            self.place += 1
        recorded = nodes[self.place].op if self.place < len(nodes) else "nothing"
        assert recorded == op, f"{op} runs where {recorded} was recorded"  # noqa: S101
        self.place += 1
        return nodes[self.place - 1]

    def _over_kept(self, func: Any, node: Node, args: Any, kwargs: Any) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        for name, ref in node.args.items():
            if isinstance(ref, Ref) and isinstance(given.get(name), Tensor):
                given[name] = self._cut(given[name], ref.index)
        if "normalized_shape" in given:
            given["normalized_shape"] = list(given["input"].shape[-len(given["normalized_shape"]) :])
        result = func(*[given[name] for name in names[: len(args)]], **{name: given[name] for name in kwargs})
        outputs = iter(node.outputs)
        return pytree.tree_map_only(Tensor, lambda tensor: self._spread(tensor, next(outputs)), result)

    def _kept(self, index: int) -> list[Tensor | None]:
        return [
            None if classes is None else torch.from_numpy(np.flatnonzero(~np.isin(classes, self.gone)))
            for classes in self.labels[index]
        ]

    def _cut(self, tensor: Tensor, index: int) -> Tensor:
        for dim, places in enumerate(self._kept(index)):
            if places is not None:
                tensor = tensor.index_select(dim, places)
        return tensor

    def _spread(self, tensor: Tensor, index: int) -> Tensor:
        """Put the kept entries in their places, and zeros between."""
        for dim, places in enumerate(self._kept(index)):
            if places is not None and len(places) != self.graph.values[index].shape[dim]:
                size = list(tensor.shape)
                size[dim] = self.graph.values[index].shape[dim]
                tensor = tensor.new_zeros(size).index_copy_(dim, places, tensor)
        return tensor


def _is_plain_convolution(node: Node, args: Any) -> bool:
    """Return whether a convolution has more than the one window that may slide along channels."""
    return _packet(node.op) == "aten.conv1d" and tuple(args[1].shape[:2]) != (1, 1)


def _packet(op: str) -> str:
    return op.rsplit(".", 1)[0]
