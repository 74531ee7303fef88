"""Float and quantized modules side by side on a sample: the SQNR of each layer's output, and of the model's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slim_core.modes import evaluating
from slim_core.workload import call, tensors_of
from slim_quant.schemes import sqnr_db

_MOST_DB = 200.0


def compare_modules(
    reference: nn.Module, quantized: nn.Module, inputs: Any, paths: Iterable[str]
) -> dict[str, float | None]:
    """Return the SQNR in dB of the outputs of the modules at ``paths``, and under ``""`` of the model's.

    Every layer sees what the layers before it made of the sample, so noise adds up. ``None`` stands where a module
    gives nothing in floating point.
    """
    wanted = set(paths)
    before, after = (_outputs(model, inputs, wanted) for model in (reference, quantized))
    return {path: _sqnr(before.get(path, []), after.get(path, [])) for path in [*sorted(wanted), ""]}


def _outputs(model: nn.Module, inputs: Any, paths: set[str]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    with evaluating(model), torch.no_grad(), _watching(model, paths, found):
        result = call(model, inputs)
    found[""] = _floats(result)
    return found


@contextmanager
def _watching(model: nn.Module, paths: set[str], found: dict[str, list[Tensor]]) -> Iterator[None]:
    handles = []
    for path in paths - {""}:

        def keep(_module: nn.Module, _args: Any, output: Any, path: str = path) -> None:
            found.setdefault(path, []).extend(_floats(output))

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _floats(value: Any) -> list[Tensor]:
    return [tensor.detach().float() for tensor in tensors_of(value) if tensor.is_floating_point()]


def _sqnr(before: list[Tensor], after: list[Tensor]) -> float | None:
    if not before or len(before) != len(after):
        return None
    flat = [torch.cat([tensor.reshape(-1) for tensor in tensors]) for tensors in (before, after)]
    return round(min(sqnr_db(*flat), _MOST_DB), 2) if flat[0].shape == flat[1].shape else None
