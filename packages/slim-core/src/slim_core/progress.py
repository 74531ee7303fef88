"""How long work reports its progress. The CLI gives a rich implementation; the default is silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Track(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1.0, **fields: float | str) -> None:
        """Report ``amount`` more units done, with figures to show beside the bar (``loss=0.3``)."""


class Progress(Protocol):
    """Where long work reports to."""

    def track(self, description: str, total: float | None = None) -> AbstractContextManager[Track]:
        """Open a piece of work of ``total`` units (``None``: unknown)."""

    def note(self, line: str) -> None:
        """Say one line that the user should read."""


class _SilentTrack:
    def advance(self, amount: float = 1.0, **fields: float | str) -> None:
        pass


class SilentProgress:
    """Progress for programs: nothing is shown."""

    @contextmanager
    def track(self, description: str, total: float | None = None) -> Iterator[Track]:
        yield _SilentTrack()

    def note(self, line: str) -> None:
        pass
