"""The hooks that slim-quant adds. Other plugins implement them with ``slim_core.hookimpl``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from slim_core.registry import Register

hookspec = pluggy.HookspecMarker("slim")


@hookspec
def slim_register_quant_targets(register: Register) -> None:
    """Register quantization targets by name: :class:`slim_quant.targets.Target` objects.

    .. versionadded:: 0.1
    """


@hookspec
def slim_register_corrections(register: Register) -> None:
    """Register corrections by name: classes whose instances are called between calibration and insertion.

    The arguments of ``__init__`` are the correction's options. See :mod:`slim_quant.ptq.corrections` for the contract.

    .. versionadded:: 0.1
    """
