"""Checkpoints: one safetensors file that says how to rebuild the model, what was done to it, and proves its bytes.

    from slim_core import checkpoint

    checkpoint.save(workload, "model.safetensors")
    workload = checkpoint.load("model.safetensors")
    checkpoint.inspect("model.safetensors")         # the header alone; neither this nor verify and diff import torch

The format is specified in ``docs/reference/checkpoint-format.md``. Importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slim_core.errors import CheckpointError

if TYPE_CHECKING:
    from slim_core.checkpoint.checking import Verification as Verification
    from slim_core.checkpoint.checking import inspect as inspect
    from slim_core.checkpoint.checking import verify as verify
    from slim_core.checkpoint.comparing import Difference as Difference
    from slim_core.checkpoint.comparing import diff as diff
    from slim_core.checkpoint.header import Header as Header
    from slim_core.checkpoint.reading import load as load
    from slim_core.checkpoint.reading import load_into as load_into
    from slim_core.checkpoint.reading import parity_error as parity_error
    from slim_core.checkpoint.writing import save as save

_LAZY = {
    "save": "writing",
    "load": "reading",
    "load_into": "reading",
    "parity_error": "reading",
    "inspect": "checking",
    "verify": "checking",
    "Verification": "checking",
    "diff": "comparing",
    "Difference": "comparing",
    "Header": "header",
}

__all__ = ["CheckpointError", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"slim_core.checkpoint.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'slim_core.checkpoint' has no attribute {name!r}")
