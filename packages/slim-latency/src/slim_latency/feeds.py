"""What runtimes take: arrays by input name, from inputs by position or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim_core.errors import MeasureError
from slim_core.workload import Inputs, tensors_of


def feeds(names: Sequence[str], inputs: Inputs, where: str) -> dict[str, NDArray[Any]]:
    """Return contiguous arrays by the file's input names.

    Args:
        names: of the file's inputs, in order.
        inputs: by these names, or as many in this order.
        where: the file, for messages.

    Raises:
        MeasureError: there are more or fewer than the file takes.
    """
    if isinstance(inputs, Mapping) and all(name in inputs for name in names):
        values = [inputs[name] for name in names]
    else:
        values = list(tensors_of(inputs))
    if len(values) != len(names):
        raise MeasureError(
            f"the file takes {len(names)} inputs ({', '.join(names)}), {len(values)} are given", where=where
        )
    return {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in zip(names, values, strict=True)}


def first_line(error: BaseException) -> str:
    """Return the first line of what a runtime raised."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
