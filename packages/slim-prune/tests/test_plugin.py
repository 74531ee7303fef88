"""What slim-prune registers, how a third party adds a criterion, and that registering imports no torch."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import prune_hand as hand
import pytest
import torch

from slim_core import hookimpl
from slim_core.plugins import load_plugins
from slim_prune import importance
from slim_prune.plugin import IMPORTANCES


@pytest.fixture(scope="module")
def host():
    return load_plugins(select=["slim-prune"], strict=True)


def test_everything_is_registered_and_resolves(host) -> None:
    registry = host.registry
    assert set(IMPORTANCES) <= set(registry.names("importances"))
    for name in registry.names("importances"):
        assert callable(registry.get("importances", name))
    assert registry.get("techniques", "prune.uniform").name == "prune.uniform"
    assert hasattr(registry.get("transforms", "prune.channels"), "replay")


def test_a_plugin_adds_a_criterion_through_the_hook() -> None:
    module = ModuleType("third_party")

    def last(group, tensors):
        return torch.arange(group.units, dtype=torch.float32)

    @hookimpl
    def slim_register_importances(register) -> None:
        register("last", last)

    module.slim_register_importances = slim_register_importances
    host = load_plugins(select=["slim-prune"], extra=[module], strict=True)
    name, function = importance.resolve("last", host.registry)
    group = hand.coupling().groups[0]
    assert importance.score(name, function, group, {}).tolist() == [0, 1, 2, 3, 4, 5]


def test_importing_the_package_and_the_plugin_imports_no_torch() -> None:
    code = (
        "import sys, slim_prune, slim_prune.plugin\n"
        "from slim_core.plugins import load_plugins\n"
        "host = load_plugins(select=['slim-prune'], strict=True)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert callable(slim_prune.plan) and slim_prune.PrunePlan\n"
        "import slim_prune.prune_plan, slim_prune.planning\n"
        "assert callable(slim_prune.plan)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_attributes_of_the_package_are_attribute_errors() -> None:
    import slim_prune

    with pytest.raises(AttributeError, match="'pruneplan'"):
        _ = slim_prune.pruneplan
