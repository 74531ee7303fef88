"""``slim graph``: what a model costs, which channels belong together, and what cannot be touched and why.

The tables are in ``graph_views.py``.
"""

from __future__ import annotations

from typing import Any

import click

from slim_core.cli.app import App

_KWARGS = """{"width": 0.5}"""
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
    from slim_core.cli.subject import json_object, subject
    from slim_core.export.quantizers import has_fake_quantizers
    from slim_core.graph import analyse
    from slim_core.graph.cost import cost

    model, inputs = subject(app.registry, model_name, json_object(kwargs, "--kwargs", _KWARGS), shapes)
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
