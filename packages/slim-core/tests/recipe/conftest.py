from pathlib import Path

import pytest

from slim_core.plugins import load_plugins

PROJECT = Path(__file__).parent / "project.py"

RECIPE = {
    "version": 1,
    "seed": 5,
    "workload": {"model": "t/net", "kwargs": {"width": 16}, "data": "t/data"},
    "train": {"epochs": 3, "lr": 0.05},
    "steps": [
        {"kind": "t.nudge", "by": 0.01, "fit": {"epochs": 2, "lr": 0.01}},
        {"kind": "fit", "name": "tune", "epochs": 1, "lr": 0.001},
    ],
    "compare": {"max_drop": 0.05},
}


@pytest.fixture
def registry(monkeypatch):
    """The core's own registrations and the test project's."""
    monkeypatch.setenv("SLIM_PLUGINS", "")
    host = load_plugins()
    host.load_file(PROJECT)
    return host.registry


@pytest.fixture
def recipe():
    import copy

    return copy.deepcopy(RECIPE)
