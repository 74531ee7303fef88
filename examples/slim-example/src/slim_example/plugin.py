"""What slim-example adds to Slim.

Slim imports this module for every command, also for ``slim --help``: whatever needs torch is registered as a
``Lazy`` reference, which is imported when somebody uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slim_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slim_core.registry import Register


@hookimpl
def slim_register_techniques(register: Register) -> None:
    """Recipes use the technique as ``kind: example.lowrank``."""
    register("example.lowrank", Lazy("slim_example.technique", "LowRank"))


@hookimpl
def slim_register_transforms(register: Register) -> None:
    """Checkpoints of a compressed model are rebuilt with this."""
    register("example.lowrank", Lazy("slim_example.replay", "LowRankReplayer"))
