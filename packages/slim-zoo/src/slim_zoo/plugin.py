"""The plugin: what slim-zoo registers. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from slim_core import Lazy, hookimpl
from slim_core.registry import Register
from slim_zoo.names import MODELS, PREFIX, RECIPES


@hookimpl
def slim_register_models(register: Register) -> None:
    for name in MODELS:
        register(PREFIX + name, Lazy("slim_zoo.models", name))


@hookimpl
def slim_register_datasets(register: Register) -> None:
    register("digits", Lazy("slim_zoo.data", "digits"))
    register("fashion-mnist", Lazy("slim_zoo.data", "fashion_mnist"))


@hookimpl
def slim_register_recipes(register: Register) -> None:
    folder = Path(__file__).parent / "recipes"
    for name in RECIPES:
        register(name, folder / f"{name}.yaml")
