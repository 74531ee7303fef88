"""Every error that Slim raises on purpose. Each says what happened, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class SlimError(Exception):
    """Base of all errors that a user can mend.

    Args:
        what: one sentence: what happened.
        where: module path, file and line, recipe key or file that it happened in.
        hint: what to do; where possible the command that mends it.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what, where, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel between processes; the default would call the class without its keyword arguments.
        return _blank, (type(self), self.args), self.__dict__.copy()

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  do:    {self.hint}")
        return "\n".join(lines)


class PluginError(SlimError):
    """A plugin could not be loaded, or one of its hooks raised."""


class UnknownNameError(SlimError):
    """A name that no installed plugin registered."""


class MissingExtraError(SlimError):
    """An optional dependency is not installed."""


class ModelError(SlimError):
    """The user's model cannot be run, recorded or exported as asked."""


class BudgetError(SlimError):
    """A budget is malformed or cannot be reached."""


class PatternError(SlimError):
    """A glob pattern matches nothing."""


class CheckpointError(SlimError):
    """A checkpoint is damaged, foreign, hostile or does not fit. ``field`` names the offending part."""

    def __init__(self, what: str, *, field: str = "", where: str | None = None, hint: str | None = None) -> None:
        self.field = field
        super().__init__(f"{field}: {what}" if field else what, where=where, hint=hint)


class ExportError(SlimError):
    """A model could not be exported, or the exported file does not agree with the model."""


class MeasureError(SlimError):
    """A model cannot be run on a backend, or computes something else there, so that its time means nothing."""


class RecipeError(SlimError):
    """A recipe is not valid. ``where`` is ``file:line``; ``problems`` holds every problem when there are several."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        problems: Iterable[SlimError] = (),
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.problems: tuple[SlimError, ...] = tuple(problems) or (self,)


class DataError(SlimError):
    """A data set is missing, damaged or of the wrong shape."""


class OutputFolderError(SlimError):
    """An output folder cannot be used: it holds another run, or it cannot be written."""


class Interrupted(SlimError):
    """The user pressed Ctrl-C. ``hint`` is the command that resumes; the command line exits with 130."""


def _blank(kind: type[SlimError], args: tuple[Any, ...]) -> SlimError:
    return kind.__new__(kind, *args)


def close_match(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return ``"did you mean 'x' or 'y'?"`` for the names close to ``name``, or ``""``."""
    matches = get_close_matches(name, list(known), n=most, cutoff=0.5)
    if not matches:
        return ""
    return "did you mean " + " or ".join(f"'{match}'" for match in matches) + "?"
