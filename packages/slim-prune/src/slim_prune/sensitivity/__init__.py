"""Sensitivity: how much a metric suffers when one channel group at a time is pruned.

:func:`slim_prune.sensitivity.analysis.sensitivity` measures, :class:`slim_prune.sensitivity.curves.Curves` is the
result. ``slim_prune.sensitivity(...)`` calls the function, also when the package has been imported by that name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_prune.sensitivity.curves import Curves


def losses_from_file(path: str | os.PathLike[str]) -> Mapping[str, Mapping[int, float]]:
    """Return the monotone envelopes of written curves: group name -> {kept units: drop}.

    Raises:
        PlanError: the file holds no curves.
    """
    from slim_prune.sensitivity.choose import losses
    from slim_prune.sensitivity.curves import Curves

    return losses(Curves.load(path))


class _Callable(ModuleType):
    """The package, which can be called like the function that it is named after."""

    def __call__(self, *args: Any, **options: Any) -> Curves:
        from slim_prune.sensitivity.analysis import sensitivity

        return sensitivity(*args, **options)


sys.modules[__name__].__class__ = _Callable
