"""Layer by layer: what quantization does to each value of a model, and where the error comes from.

:func:`slim_quant.diff.analysis.diff` compares, :class:`slim_quant.diff.found.Diff` is the result.
``slim_quant.diff(...)`` calls the function, also when the package has been imported by that name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_quant.diff.found import Diff


class _Callable(ModuleType):
    """The package, which can be called like the function that it is named after."""

    def __call__(self, *args: Any, **options: Any) -> Diff:
        from slim_quant.diff.analysis import diff

        return diff(*args, **options)


sys.modules[__name__].__class__ = _Callable
