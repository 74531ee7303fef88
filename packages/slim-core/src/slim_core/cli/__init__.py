"""The ``slim`` command. Importing this package imports neither torch nor click."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status (the console script ``slim``)."""
    from slim_core.cli.main import run

    return run(argv)
