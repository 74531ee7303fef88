"""``slim latency``: one module per group of commands; nothing here imports torch."""

from __future__ import annotations

import click

from slim_latency.cli.bundle import bundle, calibrate, import_
from slim_latency.cli.compare import backends, compare
from slim_latency.cli.predict import devices, predict
from slim_latency.cli.profile import profile
from slim_latency.cli.table import table


@click.group("latency")
def latency() -> None:
    """Measure models on real runtimes, and predict what they take on devices that have a table."""


for _command in (profile, compare, backends, predict, devices, bundle, import_, calibrate, table):
    latency.add_command(_command)

__all__ = ["latency"]
