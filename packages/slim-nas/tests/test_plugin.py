"""The package holds its place and pretends nothing."""

from __future__ import annotations

from slim_core.plugins import load_plugins


def test_the_plugin_loads_and_registers_nothing() -> None:
    host = load_plugins(select=["nas"])
    outcomes = {outcome.name: outcome for outcome in host.outcomes}
    assert outcomes["nas"].status == "ok"
    assert [
        entry.name for kind in host.registry.kinds() for entry in host.registry.entries(kind) if entry.plugin == "nas"
    ] == []
