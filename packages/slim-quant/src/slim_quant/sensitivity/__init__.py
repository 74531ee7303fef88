"""Sensitivity: what it costs to quantize one layer, or one kind of operator, by itself, and what leaving it saves.

:func:`slim_quant.sensitivity.analysis.sensitivity` measures, :class:`slim_quant.sensitivity.found.Sensitivity` is the
result. ``slim_quant.sensitivity(...)`` calls the function, also when the package has been imported by that name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_quant.sensitivity.found import Sensitivity


class _Callable(ModuleType):
    """The package, which can be called like the function that it is named after."""

    def __call__(self, *args: Any, **options: Any) -> Sensitivity:
        from slim_quant.sensitivity.analysis import sensitivity

        return sensitivity(*args, **options)


sys.modules[__name__].__class__ = _Callable
