"""Inputs for files that come without any: drawn from the file's signature, or read from an ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim_core.errors import MeasureError
from slim_core.tensors import TensorSpec

#: what numpy and its zip reader raise for files that are damaged, encrypted, or say absurd sizes
_UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def draw(
    signature: Sequence[TensorSpec], *, batch: int = 1, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return random inputs: floats uniform in [0, 1), integers 0 or 1, which are valid for any table look-up.

    Args:
        signature: names, shapes (``None`` for a dimension of any size) and dtypes.
        batch: size of a first dimension of any size.
        shapes: whole shapes by input name, for inputs with other dimensions of any size.
        seed: of the values.

    Raises:
        MeasureError: a dimension other than the first has any size and ``shapes`` does not give it, or ``shapes``
            does not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    given = dict(shapes or {})
    drawn: dict[str, Tensor] = {}
    for spec in signature:
        shape = _shape(spec, given.pop(spec.name, None), batch)
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            drawn[spec.name] = torch.rand(shape, generator=generator).to(dtype)
        else:
            drawn[spec.name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    if given:
        names = ", ".join(spec.name for spec in signature)
        raise MeasureError(f"the model has no input '{next(iter(given))}'", hint=f"it has: {names}")
    return drawn


def read(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an ``.npz`` file.

    Raises:
        MeasureError: the file is not there, is damaged, or is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise ValueError("it holds a single array without a name")
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except _UNREADABLE as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MeasureError(
            f"cannot read inputs: {first}", where=str(path), hint="write one with numpy.savez(path, NAME=array)"
        ) from error


def _shape(spec: TensorSpec, given: Any, batch: int) -> tuple[int, ...]:
    if given is not None:
        fits = len(given) == len(spec.shape) and all(
            want in (None, have) for want, have in zip(spec.shape, given, strict=True)
        )
        if not fits or any(size < 1 for size in given):
            raise MeasureError(f"shape {list(given)} does not fit input '{spec.name}' of shape {_text(spec)}")
        return tuple(given)
    shape = tuple(batch if size is None and position == 0 else size for position, size in enumerate(spec.shape))
    if any(size is None for size in shape):
        raise MeasureError(
            f"input '{spec.name}' has the shape {_text(spec)}", hint=f"give it: --shape {spec.name}=1,128"
        )
    return tuple(size for size in shape if size is not None)


def _text(spec: TensorSpec) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in spec.shape) + ")"
