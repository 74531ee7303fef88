"""The goals of ``slim quant ptq``: bits and skips chosen under ``--max-drop`` or ``--budget`` (``goal_options``).

Not here: how they are chosen (``slim_quant.mixed``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slim_core.cli.options import bundled, once, pair
from slim_core.cli.resuming import resumable
from slim_core.errors import DataError, SlimError

if TYPE_CHECKING:
    from slim_core.cli.app import App
    from slim_core.workload import Workload
    from slim_quant.cli.options import SchemeRequest
    from slim_quant.mixed.choose import Mixed

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class GoalRequest:
    """What the model may lose, or what it may cost, as it stands on the command line."""

    max_drop: float | None
    budget: tuple[str, ...]
    bits: tuple[str, ...]
    metric: str | None
    evaluated: int | None
    folder: Path | None

    @property
    def given(self) -> bool:
        """Whether there is a goal."""
        return self.max_drop is not None or bool(self.budget)

    def check(self, asked: SchemeRequest) -> None:
        """Find out what contradicts itself.

        Raises:
            SlimError: an option has no use without a goal, or settles what a goal is to choose.
        """
        if not self.given:
            for value, option in ((self.bits, "--bits"), (self.metric, "--metric"), (self.evaluated, "--evaluated")):
                if value:
                    raise SlimError(f"{option} needs a goal", hint="--max-drop 0.5, or --budget bytes=0.2")
        elif asked.override:
            raise SlimError(
                "a goal chooses the bits of layers itself: leave --override out",
                where=asked.override[0],
                hint="--skip keeps layers in float; --bits w4a8 --bits w8a8 says what there is to choose from",
            )

    def widest(self, asked: SchemeRequest) -> dict[str, Any]:
        """Return the schemes that chosen overrides begin with: those of the most bits there are to choose from."""
        from slim_quant.bits import parse_bits

        found = [parse_bits(item, asked.weight, asked.activation) for item in self.bits]
        if not found:
            return {}
        most = max(found, key=lambda item: item.key)
        return {"weight": most.weight, "activation": most.activation}

    def choose(self, app: App, workload: Workload, asked: SchemeRequest, corrections: list[Any], seed: int) -> Mixed:
        """Choose bits and skips, and quantize accordingly.

        Raises:
            SlimError: the goal cannot be met, or needs data with targets.
        """
        from slim_quant.mixed.choose import choose
        from slim_quant.technique import calibration_inputs

        if self.max_drop is not None and (workload.task is None or workload.val is None):
            raise DataError("--max-drop looks at a metric", where="--data", hint="name a data set that has a task")
        arguments = asked.arguments()
        arguments.pop("overrides")
        budget = once((pair(item, "--budget", "bytes=0.2") for item in self.budget), "--budget")
        kept = f"the measured points are in {self.folder}"
        with resumable(kept) if self.folder is not None else nullcontext():
            return choose(
                workload.model,
                calibration_inputs(workload, seed),
                example_inputs=workload.example_inputs,
                task=workload.task,
                val=workload.val,
                metric=self.metric,
                max_drop=self.max_drop,
                budget=budget or None,
                options=self.bits or (f"w{asked.weight_bits}a{asked.activation_bits}",),
                evaluated=self.evaluated,
                corrections=corrections,
                folder=self.folder,
                seed=seed,
                progress=app.output.progress,
                registry=app.registry,
                **arguments,
            )


_GOALS = (
    click.option(
        "--max-drop",
        type=click.FloatRange(min=0),
        metavar="POINTS",
        help="Leave in float, or give more bits, what costs more than this: 0.5 is half a per cent of a share.",
    ),
    click.option("--budget", multiple=True, metavar="COST=BOUND", help="Choose bits within: bytes=0.2, bitops=0.04."),
    click.option("--bits", multiple=True, metavar="w4a8", help="Bits to choose from; may be repeated."),
    click.option("--metric", metavar="NAME", help="What the goal is about.  [default: the task's own metric]"),
    click.option("--evaluated", type=click.IntRange(min=1), metavar="N", help="Choose on so many validation samples."),
    click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where measured points are kept while bits are chosen; the same command goes on from them.",
    ),
)


def goal_options(command: F) -> F:
    """Add the options of :class:`GoalRequest`; the command takes them as ``goal``."""
    return bundled(command, _GOALS, GoalRequest, "goal")


def pareto(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was tried as points, cost against metric, for :func:`slim_core.report.plots.read_plots`.

    Args:
        data: a :class:`slim_quant.mixed.choose.Mixed` as JSON.
    """
    points = [
        {"name": trial["label"], "x": trial["cost"], "y": _change(trial["drop"]), "group": "tried"}
        for trial in data["trials"]
    ]
    points.append({"name": "float", "x": data["cost_before"], "y": 0.0, "group": "float"})
    points.append({"name": "chosen", "x": data["cost_after"], "y": _change(data["drop"]), "group": "chosen"})
    label = f"change of {data['metric']}"
    plot = {"kind": "scatter", "title": f"{label} against {data['cost']}", "x_label": data["cost"], "y_label": label}
    return [{**plot, "points": points}] if data["metric"] is not None else []


def _change(drop: float | None) -> float | None:
    return None if drop is None else -drop
