"""Makes the helper modules beside the tests importable, and gives the hand-made network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import prune_hand as hand


@pytest.fixture
def net():
    return hand.net()


@pytest.fixture
def plan():
    return hand.plan()
