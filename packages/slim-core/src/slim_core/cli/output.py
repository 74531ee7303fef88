"""How commands talk: one ``Output`` per run, for people, for programs, or for scripts that want one line.

Standard output carries the result and nothing else; notes, warnings, progress and errors go to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO

from slim_core.errors import SlimError
from slim_core.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import ProgressColumn, Task

    from slim_core.progress import Track

Format = Literal["human", "json", "quiet"]
FORMATS: tuple[Format, ...] = ("human", "json", "quiet")
_PLAIN_WIDTH = 120  # width of tables that go to a file or a pipe


class Output:
    """Where a command's words go.

    Args:
        format: ``"human"`` draws, ``"json"`` prints one JSON document, ``"quiet"`` prints one line or nothing.
        stdout, stderr: for tests; ``None`` means the process's own, looked up at each use.
    """

    def __init__(self, format: Format = "human", stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.format: Format = format
        self.color = "NO_COLOR" not in os.environ
        self._stdout, self._stderr = stdout, stderr
        self._progress: Progress | None = None

    @property
    def stdout(self) -> TextIO:
        return self._stdout or sys.stdout

    @property
    def stderr(self) -> TextIO:
        return self._stderr or sys.stderr

    def emit(
        self,
        data: Any,
        render: Callable[[], RenderableType] | None = None,
        quiet: str | Callable[[], str] | None = None,
    ) -> None:
        """Print a command's result.

        Args:
            data: JSON values (dataclasses, paths, numpy scalars and NaN are converted).
            render: returns what to draw for people; without it they get the JSON.
            quiet: the one line of the quiet format; without it nothing is printed.
        """
        if self.format == "quiet":
            line = quiet() if callable(quiet) else quiet
            if line:
                self.stdout.write(f"{line}\n")
        elif self.format == "json" or render is None:
            json.dump(plain(data), self.stdout, indent=2, ensure_ascii=not _unicode(self.stdout), allow_nan=False)
            self.stdout.write("\n")
        else:
            self.console().print(render(), crop=False)
        self.stdout.flush()

    def note(self, line: str) -> None:
        """Say one line to people, on standard error; programs and scripts have the result."""
        if self.format == "human":
            self._say(line)

    def warn(self, line: str) -> None:
        """Say one line about something that is wrong but does not stop the command; quiet in the quiet format."""
        if self.format != "quiet":
            self._say(f"{self._styled('warning:', '33')} {line}")

    def error(
        self, kind: str, what: str, where: str | None = None, hint: str | None = None, notes: list[str] | None = None
    ) -> None:
        """Report why a command failed, as one block on standard error."""
        if self.format == "json":
            error = {"type": kind, "what": what, "where": where, "hint": hint, "notes": notes or []}
            self.stderr.write(json.dumps({"error": error}, ensure_ascii=not _unicode(self.stderr)) + "\n")
            return
        block = [str(SlimError(what, where=where, hint=hint)), *(f"  note:  {note}" for note in notes or [])]
        self._say(f"{self._styled('error:', '31')} " + "\n".join(block))

    @property
    def interactive(self) -> bool:
        """Whether a person watches: human format, and standard error is a terminal."""
        return self.format == "human" and self.stderr.isatty()

    @property
    def progress(self) -> Progress:
        """Bars for people at a terminal; notes only, or nothing, otherwise."""
        if self._progress is None:
            self._progress = _Bars(self) if self.interactive else _Notes(self)
        return self._progress

    def console(self, *, stderr: bool = False) -> Console:
        """Return a rich console on standard output (or error)."""
        from rich.console import Console

        stream = self.stderr if stderr else self.stdout
        width = None if stream.isatty() or "COLUMNS" in os.environ else _PLAIN_WIDTH
        return Console(file=stream, width=width, no_color=not self.color or None, highlight=False, soft_wrap=False)

    def _say(self, line: str) -> None:
        if isinstance(self._progress, _Bars) and self._progress.say(line):
            return
        self.stderr.write(f"{line}\n")
        self.stderr.flush()

    def _styled(self, word: str, code: str) -> str:
        return f"\x1b[1;{code}m{word}\x1b[0m" if self.color and self.stderr.isatty() else word


class _Notes(SilentProgress):
    """Progress without bars."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def note(self, line: str) -> None:
        self._output.note(line)


class _Bars:
    """Progress bars of rich; one live display, however deep the work is nested."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._live: Any = None
        self._depth = 0

    @contextmanager
    def track(self, description: str, total: float | None = None) -> Iterator[Track]:
        live = self._open()
        task = live.add_task(_escaped(description), total=total, figures="")
        try:
            yield _Bar(live, task)
        finally:
            live.refresh()
            live.remove_task(task)
            self._close()

    def note(self, line: str) -> None:
        self._output.note(line)

    def say(self, line: str) -> bool:
        """Print above the live display; ``False`` when there is none."""
        if self._live is None:
            return False
        from rich.text import Text

        self._live.console.print(Text.from_ansi(line))
        return True

    def _open(self) -> Any:
        if self._live is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[cyan]{task.fields[figures]}"),
                TimeElapsedColumn(),
                _left_column(),
                console=self._output.console(stderr=True),
                transient=True,
            )
            self._live.start()
        self._depth += 1
        return self._live

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._live.stop()
            self._live = None


def _left_column() -> ProgressColumn:
    """Return a column with the time that is left, and nothing while that is not known."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Left(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            seconds = task.time_remaining
            known = seconds is not None and not task.finished
            return Text(f"{timedelta(seconds=int(seconds or 0))} left" if known else "", style="progress.remaining")

    return Left()


class _Bar:
    def __init__(self, live: Any, task: Any) -> None:
        self._live, self._task = live, task
        self._fields: dict[str, float | str] = {}

    def advance(self, amount: float = 1.0, **fields: float | str) -> None:
        self._fields.update(fields)  # a figure stays until a newer one replaces it
        self._live.update(self._task, advance=amount, figures=_escaped(figures(self._fields)))


def figures(fields: Mapping[str, float | str]) -> str:
    """Return the text beside a bar: ``"loss 0.3120  top1 0.9714  1,240 images/s"``.

    Names that end in ``_per_s`` stand behind their number, which has no decimals from 100 on.
    """
    parts = []
    for name, value in fields.items():
        rate = name.removesuffix("_per_s")
        if isinstance(value, str):
            text = value
        elif abs(value) >= 1000 or (rate != name and abs(value) >= 100) or isinstance(value, int):
            text = f"{value:,.0f}"
        else:
            text = f"{value:#.4g}"  # with the zeros at the end: a figure that changes keeps its width
        parts.append(f"{text} {rate}/s" if rate != name else f"{name} {text}")
    return "  ".join(parts)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON values. NaN and infinities become ``None``: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def _unicode(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().startswith("utf")


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")
