"""``slim graph``: what a model costs, which channels belong together, and what cannot be touched and why.

The tables are in ``graph_views.py``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slim_core.cli.app import App
from slim_core.errors import ModelError, SlimError, close_match

if TYPE_CHECKING:
    from torch import nn

    from slim_core.workload import Inputs

_VIEWS = ("modules", "groups", "frozen", "nodes")


@click.command("graph")
@click.argument("model_name", metavar="MODEL")
@click.option("--kwargs", default="{}", metavar="JSON", help="Arguments of the model's builder, as a JSON object.")
@click.option(
    "--input",
    "shapes",
    multiple=True,
    metavar="[NAME=]1,3,32,32[:DTYPE]",
    help="Shape of an input; once for each. With names they are passed as keywords.",
)
@click.option("--modules", is_flag=True, help="Only show the costs of modules.")
@click.option("--groups", is_flag=True, help="Only show the channel groups.")
@click.option("--frozen", is_flag=True, help="Only show what cannot be touched, and why.")
@click.option("--nodes", is_flag=True, help="Show every operator.")
@click.option(
    "--depth", type=click.IntRange(min=0), default=3, show_default=True, help="Show modules nested this deep."
)
@click.option("--probe/--no-probe", default=True, help="Prove the groups on the model's own forward.  [default: yes]")
@click.pass_obj
def graph(
    app: App,
    model_name: str,
    kwargs: str,
    shapes: tuple[str, ...],
    modules: bool,
    groups: bool,
    frozen: bool,
    nodes: bool,
    depth: int,
    probe: bool,
) -> None:
    r"""Show what MODEL costs, its channel groups, and what cannot be pruned and why.

    MODEL is the name of a registered model, or a checkpoint that Slim wrote. Figures are those of the inputs' batch.

    \b
    slim graph zoo/resnet18
    slim graph zoo/mobilenet_v2 --kwargs '{"width": 0.5}' --input 1,3,96,96 --groups
    slim graph my_model --load my_project.py --input ids=1,128:int64
    """
    from slim_core.cli import graph_views as views
    from slim_core.export.quantizers import has_fake_quantizers
    from slim_core.graph import analyse
    from slim_core.graph.cost import cost

    model, inputs = _subject(app, model_name, _arguments(kwargs), shapes)
    quantized = has_fake_quantizers(model)
    coupling = analyse(model, inputs, probe=probe and not quantized, registry=app.registry)
    if quantized:
        coupling = views.frozen_whole(coupling, "the graph is quantized: prune the float model before quantizing it")
    report = cost(coupling.graph)
    asked = [name for name, wanted in zip(_VIEWS, (modules, groups, frozen, nodes), strict=True) if wanted]
    shown = asked or list(_VIEWS[:3])
    data: dict[str, Any] = {"model": model_name, **views.summary(coupling, report)}
    if "modules" in shown:
        data["modules"] = report.to_json()["modules"]
    if "groups" in shown:
        data["groups"] = [views.group_json(group) for group in coupling.groups]
    if "frozen" in shown:
        data["frozen"] = [views.frozen_json(item) for item in coupling.frozen]
    if "nodes" in shown:
        data["nodes"] = report.to_json()["nodes"]
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    app.output.emit(
        data,
        lambda: views.page(model_name, coupling, report, shown, kinds, depth),
        f"{model_name}: {report.macs} MACs, {report.params} parameters, {len(coupling.groups)} channel groups",
    )


def _subject(app: App, name: str, kwargs: dict[str, Any], shapes: tuple[str, ...]) -> tuple[nn.Module, Inputs]:
    if name.endswith(".safetensors") or (("models", name) not in app.registry and Path(name).is_file()):
        from slim_core.checkpoint import load

        workload = load(name, registry=app.registry)
        return workload.model, _inputs(shapes) or workload.example_inputs
    builder = app.registry.get("models", name)
    model = _built(builder, name, kwargs)
    inputs = _inputs(shapes) or getattr(model, "example_inputs", None) or _pictures(builder, model, kwargs)
    if inputs is None:
        raise ModelError(
            f"'{name}' does not say what inputs it takes",
            hint="give their shapes: --input 1,3,224,224, or by name and type: --input ids=1,128:int64",
        )
    return model, inputs


def _built(builder: Callable[..., Any], name: str, kwargs: dict[str, Any]) -> nn.Module:
    from torch import nn

    from slim_core.recipe.arguments import accepted
    from slim_core.recipe.build import user_line

    known = accepted(builder)
    for key in kwargs:
        if known is not None and key not in known:
            hints = [close_match(key, known), f"it takes: {', '.join(known)}" if known else "it takes none"]
            raise ModelError(
                f"model '{name}' takes no argument '{key}'", where="--kwargs", hint="; ".join(filter(None, hints))
            )
    try:
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


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SlimError(
            f"--kwargs is not JSON: {error}", where=text, hint="""write for example --kwargs '{"width": 0.5}'"""
        ) from None
    if not isinstance(value, dict):
        raise SlimError(
            f"--kwargs takes a JSON object, not {text}", where="--kwargs", hint="""for example '{"width": 0.5}'"""
        )
    return value


def _inputs(shapes: tuple[str, ...]) -> Inputs | None:
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


def _pictures(builder: Callable[..., Any], model: nn.Module, kwargs: Mapping[str, Any]) -> Inputs | None:
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
