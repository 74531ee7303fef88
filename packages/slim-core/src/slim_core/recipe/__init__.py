"""Recipes: YAML in, compressed model and report out.

``source`` reads the text, ``load`` checks it, ``schema`` says which keys there are, ``runner`` runs it. A recipe names
only what plugins registered; it never names code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim_core.recipe.editor import json_schema as json_schema
    from slim_core.recipe.load import load_recipe as load_recipe
    from slim_core.recipe.runner import run as run
    from slim_core.recipe.runner import run_recipe as run_recipe
    from slim_core.recipe.schema import Recipe as Recipe

_LAZY = {"json_schema": "editor", "load_recipe": "load", "run": "runner", "run_recipe": "runner", "Recipe": "schema"}

__all__ = ["Recipe", "json_schema", "load_recipe", "run", "run_recipe"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"slim_core.recipe.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'slim_core.recipe' has no attribute {name!r}")
