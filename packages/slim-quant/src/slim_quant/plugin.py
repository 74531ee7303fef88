"""The plugin: what slim-quant registers. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slim_core.registry import Register


@hookimpl
def slim_register_techniques(register: Register) -> None:
    register("quant.ptq", Lazy("slim_quant.technique", "PTQTechnique"))


@hookimpl
def slim_register_transforms(register: Register) -> None:
    register("quant.static", Lazy("slim_quant.record", "StaticReplayer"))
