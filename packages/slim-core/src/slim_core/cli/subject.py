"""What commands are asked to look at: a registered model with arguments, or a checkpoint, and the shapes of inputs.

Not here: data and tasks, which only recipes and commands that evaluate need.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_core.errors import ModelError, SlimError, close_match

if TYPE_CHECKING:
    from torch import nn

    from slim_core.registry import Registry
    from slim_core.workload import Inputs


def subject(registry: Registry, name: str, kwargs: dict[str, Any], shapes: tuple[str, ...]) -> tuple[nn.Module, Inputs]:
    """Return a model, registered or from a checkpoint, and inputs for it.

    Args:
        registry: what plugins registered.
        name: a registered name, or the path of a checkpoint.
        kwargs: arguments of the model's builder.
        shapes: shapes of the inputs, as :func:`inputs_of` reads them; empty: the model's own.

    Raises:
        ModelError: the model cannot be built, or does not say what it takes.
    """
    if name.endswith(".safetensors") or (("models", name) not in registry and Path(name).is_file()):
        from slim_core.checkpoint import load

        workload = load(name, registry=registry)
        return workload.model, inputs_of(shapes) or workload.example_inputs
    builder = registry.get("models", name)
    model = built(builder, name, kwargs)
    inputs = inputs_of(shapes) or getattr(model, "example_inputs", None) or _picture(builder, model, kwargs)
    if inputs is None:
        raise ModelError(
            f"'{name}' does not say what inputs it takes",
            hint="give their shapes: --input 1,3,224,224, or by name and type: --input ids=1,128:int64",
        )
    return model, inputs


def built(builder: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build a registered model; random weights are the same in every process, so that what was begun can resume.

    Raises:
        ModelError: it takes no such argument, or cannot be built; says the user's line.
    """
    from torch import nn

    from slim_core.recipe.arguments import accepted
    from slim_core.recipe.build import seeded, user_line

    known = accepted(builder)
    for key in kwargs:
        if known is not None and key not in known:
            hints = [close_match(key, known), f"it takes: {', '.join(known)}" if known else "it takes none"]
            raise ModelError(
                f"model '{name}' takes no argument '{key}'", where="--kwargs", hint="; ".join(filter(None, hints))
            )
    try:
        with seeded(0):
            model = builder(**kwargs)
    except SlimError as error:
        error.where = error.where or f"model '{name}', built with --kwargs {json.dumps(kwargs)}"
        error.hint = error.hint or "change --kwargs"
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"model '{name}' cannot be built: {type(error).__name__}: {line}",
            where=user_line(error) or "--kwargs",
            hint="check --kwargs" + (f"; it takes: {', '.join(known)}" if known else ""),
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model '{name}' gave a {type(model).__name__}, not an nn.Module")
    return model


def json_object(text: str, option: str, example: str) -> dict[str, Any]:
    """Return the JSON object that stands behind an option.

    Raises:
        SlimError: it is no JSON, or no object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SlimError(
            f"{option} is not JSON: {error}", where=text, hint=f"write for example {option} '{example}'"
        ) from None
    if not isinstance(value, dict):
        raise SlimError(f"{option} takes a JSON object, not {text}", where=option, hint=f"for example '{example}'")
    return value


def inputs_of(shapes: tuple[str, ...]) -> Inputs | None:
    """Return inputs of the shapes that were asked for: keyword inputs if they have names."""
    parsed = [_input(text) for text in shapes]
    named = {name: tensor for name, tensor in parsed if name}
    if named and len(named) != len(parsed):
        raise SlimError("--input: give every input a different name, or none of them one")
    return named or tuple(tensor for _, tensor in parsed) or None


def _input(text: str) -> tuple[str, Any]:
    import torch

    from slim_core.tensors import DTYPE_BYTES

    name, _, rest = text.rpartition("=")
    sizes, _, dtype = rest.partition(":")
    try:
        shape = [int(size) for size in sizes.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise SlimError(f"cannot read --input '{text}'", hint="write --input 1,3,32,32 or --input ids=1,128:int64")
    if dtype and dtype not in DTYPE_BYTES:
        raise SlimError(f"--input '{text}' has an unknown type", hint=f"known: {', '.join(DTYPE_BYTES)}")
    return name, torch.zeros(shape, dtype=getattr(torch, dtype or "float32"))


def _picture(builder: Callable[..., Any], model: nn.Module, kwargs: Mapping[str, Any]) -> Inputs | None:
    """Return one picture for models that are built with ``in_channels`` and ``input_size``, by what they were given."""
    import torch

    values: dict[str, Any] = {}
    for source in (type(model).__init__, builder):
        try:
            parameters = inspect.signature(source).parameters
        except (TypeError, ValueError):
            continue
        values |= {name: item.default for name, item in parameters.items() if isinstance(item.default, int)}
    values |= kwargs
    channels, size = values.get("in_channels"), values.get("input_size")
    if not isinstance(channels, int) or not isinstance(size, int):
        return None
    return (torch.zeros(1, channels, size, size),)
