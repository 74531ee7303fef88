"""Makes the helper modules beside the tests importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import checkpoint_kit as kit


@pytest.fixture(scope="session")
def registry():
    return kit.registry()


@pytest.fixture(scope="session")
def rich_file(tmp_path_factory) -> Path:
    """A checkpoint that uses every field of the header."""
    path = tmp_path_factory.mktemp("rich") / "rich.safetensors"
    kit.save_rich(path)
    return path
