"""Reference models, data sets and tasks of the Slim toolkit, as an ordinary plugin.

    import slim_zoo

    slim_zoo.list_models("resnet*")                      # ['zoo/resnet18', 'zoo/resnet20', …]
    model = slim_zoo.create_model("resnet18", num_classes=10, input_size=32)

Importing this package imports no torch: models and data sets are imported when they are first asked for.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any

from slim_core.errors import SlimError, UnknownNameError, close_match
from slim_zoo.names import MODELS, PREFIX

if TYPE_CHECKING:
    from torch import nn

__all__ = ["create_model", "list_models"]


def list_models(pattern: str = "*") -> list[str]:
    """Return the registered names of the models that match ``pattern``, sorted.

    Args:
        pattern: a glob over the names with or without the prefix: ``"resnet*"``, ``"zoo/vgg*_bn"``.
    """
    return [PREFIX + name for name in MODELS if fnmatchcase(name, pattern) or fnmatchcase(PREFIX + name, pattern)]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build a model with fresh weights.

    Args:
        name: a name of :func:`list_models`, with or without the prefix ``zoo/``.
        **kwargs: ``width``, ``num_classes``, ``in_channels``, ``input_size``, ``dropout``: see the model's class.

    Raises:
        UnknownNameError: the zoo has no such model.
        SlimError: the model takes no such argument, or not this value.
    """
    short = name.removeprefix(PREFIX)
    if short not in MODELS:
        hint = close_match(short, MODELS) or "`slim_zoo.list_models()` lists the names"
        raise UnknownNameError(f"the zoo has no model '{name}'", hint=hint)
    try:
        model: nn.Module = getattr(import_module("slim_zoo.models"), short)(**kwargs)
    except TypeError as error:
        known = ("width", "num_classes", "in_channels", "input_size", "dropout")
        wrong = [key for key in kwargs if key not in known]
        hint = " ".join(filter(None, (close_match(key, known) for key in wrong)))
        raise SlimError(f"cannot build '{name}': {error}", hint=hint or f"it takes: {', '.join(known)}") from error
    return model
