"""The masked-original oracle: a pruned model must compute what the original computes with the removed channels at zero.

Here: masking, and the comparison of outputs. Not here: choosing what to remove, shrinking, random networks
(``strategies.py``). The oracle does not hold for a layer or group norm over a pruned dimension, because the
statistics of such a norm depend on how many channels there are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.graph.masking import divides
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.modes import evaluating
from slim_core.workload import call, tensors_of


def removed_units(group: ChannelGroup, kept: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the unit numbers of ``group`` that ``kept`` leaves out; a group that ``kept`` does not name loses none."""
    everything = np.arange(group.units, dtype=np.int64)
    if group.name not in kept:
        return everything[:0]
    return np.setdiff1d(everything, np.asarray(kept[group.name], dtype=np.int64))


def zero_removed_(model: nn.Module, coupling: Coupling, kept: Mapping[str, NDArray[np.int64]]) -> None:
    """Set what ``kept`` leaves out to zero in ``model``, in place: weights, biases, running means, affine terms, gates.

    Running variances are left as they are, because a norm divides by them.
    """
    state = _state(model)
    with torch.no_grad():
        for group in coupling.groups:
            removed = removed_units(group, kept)
            if removed.size == 0:
                continue
            for member in group.members:
                if divides(member.name, member.dim):
                    continue
                tensor = state[member.name]
                index = torch.from_numpy(member.indices[removed].reshape(-1)).to(tensor.device)
                tensor.index_fill_(member.dim, index, 0)


def mask_removed(model: nn.Module, coupling: Coupling, kept: Mapping[str, NDArray[np.int64]]) -> nn.Module:
    """Return a deep copy of ``model`` in which everything that ``kept`` leaves out is zero (:func:`zero_removed_`)."""
    masked = copy.deepcopy(model)
    zero_removed_(masked, coupling, kept)
    return masked


def assert_equals_masked_original(
    original: nn.Module,
    pruned: nn.Module,
    coupling: Coupling,
    kept: Mapping[str, NDArray[np.int64]],
    inputs: Any,
    *,
    rtol: float = 1e-5,
    double: bool = True,
) -> float:
    """Assert that ``pruned`` computes what the masked original computes, and return the largest relative difference.

    Both run in eval mode without gradients, on copies; neither model is changed.

    Args:
        original: the model before pruning.
        pruned: the model after pruning.
        coupling: what belongs together in ``original``.
        kept: kept unit numbers per group name.
        inputs: what the models' forward takes.
        rtol: bound on ``max |difference| / max |value|``, for each output tensor.
        double: run in float64, so that the bound tells an error of logic from rounding.

    Raises:
        AssertionError: an output differs in number, shape, dtype or value; the message names it.
    """
    expected = outputs_of(mask_removed(original, coupling, kept), inputs, double=double)
    actual = outputs_of(copy.deepcopy(pruned), inputs, double=double)
    return assert_outputs_close(actual, expected, rtol=rtol, names=("the pruned model", "the masked original"))


def outputs_of(model: nn.Module, inputs: Any, *, double: bool = False) -> list[Tensor]:
    """Run ``model`` in eval mode without gradients and return its output tensors; ``double`` converts it in place."""
    if double:
        model = model.double()
        inputs = as_double(inputs)
    with evaluating(model), torch.no_grad():
        return tensors_of(call(model, inputs))


def assert_outputs_close(
    actual: list[Tensor], expected: list[Tensor], *, rtol: float, names: tuple[str, str] = ("actual", "expected")
) -> float:
    """Assert that two lists of output tensors agree, and return the largest ``max |difference| / max |value|``."""
    first, second = names
    assert len(actual) == len(expected), f"{first} returns {len(actual)} tensors, {second} {len(expected)}"  # noqa: S101
    worst = 0.0
    for number, (left, right) in enumerate(zip(actual, expected, strict=True)):
        assert left.shape == right.shape, (  # noqa: S101
            f"output {number}: {first} gives shape {tuple(left.shape)}, {second} {tuple(right.shape)}"
        )
        assert left.dtype == right.dtype, (  # noqa: S101
            f"output {number}: {first} gives {left.dtype}, {second} {right.dtype}"
        )
        error = relative_error(left, right)
        assert error <= rtol, (  # noqa: S101
            f"output {number} of shape {tuple(left.shape)}: {first} differs from {second} by {error:.3g} "
            f"of the largest value (bound: {rtol:.3g})"
        )
        worst = max(worst, error)
    return worst


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ``max |actual - expected| / max |expected|``; infinite where only one of them is not a number.

    Integer and boolean tensors either agree (0) or do not (infinity).
    """
    if actual.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else float("inf")
    odd = ~torch.isfinite(expected)
    if bool((odd != ~torch.isfinite(actual)).any()) or not torch.equal(
        actual[odd].nan_to_num(nan=0.0), expected[odd].nan_to_num(nan=0.0)
    ):
        return float("inf")
    finite = ~odd
    if not bool(finite.any()):
        return 0.0
    difference = float((actual[finite] - expected[finite]).abs().max())
    scale = float(expected[finite].abs().max())
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


def as_double(value: Any) -> Any:
    """Return nested tuples, lists and mappings with every floating tensor in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: as_double(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(as_double(item) for item in value)
    return value


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
