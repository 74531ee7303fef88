"""Contracts that a plugin's author inherits in the plugin's own tests: one fixture in, a dozen promises checked.

    from slim_core.testing.contracts import TechniqueCase, TechniqueContract

    class TestMine(TechniqueContract):
        @pytest.fixture
        def case(self) -> TechniqueCase:
            return TechniqueCase(Mine, config={"keep": 0.5})

Needs pytest, which slim-core does not depend on: only tests import this package.
"""

from __future__ import annotations

import pytest

# Before the modules are imported: a failed assertion then shows its values, as in a test file.
pytest.register_assert_rewrite(
    *(f"slim_core.testing.contracts.{name}" for name in ("backend", "cost", "importance", "replayer", "technique"))
)

from slim_core.testing.contracts.backend import (  # noqa: E402
    BackendCase,
    BackendContract,
    model_artifact,
    onnx_artifact,
)
from slim_core.testing.contracts.cost import CostModelContract  # noqa: E402
from slim_core.testing.contracts.importance import ImportanceContract  # noqa: E402
from slim_core.testing.contracts.replayer import ReplayCase, ReplayerContract  # noqa: E402
from slim_core.testing.contracts.technique import TechniqueCase, TechniqueContract  # noqa: E402

__all__ = [
    "BackendCase",
    "BackendContract",
    "CostModelContract",
    "ImportanceContract",
    "ReplayCase",
    "ReplayerContract",
    "TechniqueCase",
    "TechniqueContract",
    "model_artifact",
    "onnx_artifact",
]
