"""Where an operator came from: the user's source line and the innermost module, read from Python's stack.

Nothing is patched or hooked: the frames of ``nn.Module.__call__`` hold the module that is running.
"""

from __future__ import annotations

import linecache
import sys
from functools import cached_property
from pathlib import Path
from types import FrameType

import torch
from torch import nn

from slim_core import workload
from slim_core.graph.isolate import walk
from slim_core.graph.types import SourceLine

_CALL_CODE = nn.Module._call_impl.__code__
_ENTRY_CODE = workload.call.__code__  # calls the model that is recorded: the lines above it are not the model's
_INSIDE = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(workload.__file__)), "<")


class Locator:
    """Finds line and module of the operator that is running; caches what it read.

    Args:
        model: the model whose modules are named.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._inside: dict[str, bool] = {}
        self._lines: dict[tuple[str, int], SourceLine] = {}

    @cached_property
    def _paths(self) -> dict[int, str]:
        return {id(module): path for path, module in walk(self._model)}

    def locate(self) -> tuple[str, SourceLine | None]:
        """Return the innermost module's path and the innermost line outside torch and this package.

        No line for what torch runs without any of the user's: a ``Sequential``, an exported graph.
        """
        frame: FrameType | None = sys._getframe(1)
        module: str | None = None
        source: SourceLine | None = None
        while frame is not None:
            code = frame.f_code
            if code is _ENTRY_CODE:
                break
            if code is _CALL_CODE:
                if module is None:
                    module = self._paths.get(id(frame.f_locals.get("self")))
            elif source is None and not self._is_inside(code.co_filename):
                source = self._line(code.co_filename, frame.f_lineno)
            if module is not None and source is not None:
                break
            frame = frame.f_back
        return module or "", source

    def locate_error(self, error: BaseException) -> tuple[str, SourceLine | None]:
        """Return the innermost module and user's line that ``error`` passed through."""
        module, source = "", None
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if code is _CALL_CODE:
                module = self._paths.get(id(trace.tb_frame.f_locals.get("self")), module)
            elif not self._is_inside(code.co_filename):
                source = self._line(code.co_filename, trace.tb_lineno)
            trace = trace.tb_next
        return module, source

    def _is_inside(self, filename: str) -> bool:
        known = self._inside.get(filename)
        if known is None:
            known = self._inside[filename] = filename.startswith(_INSIDE)
        return known

    def _line(self, file: str, line: int) -> SourceLine:
        key = (file, line)
        if key not in self._lines:
            self._lines[key] = SourceLine(file, line, linecache.getline(file, line).strip())
        return self._lines[key]


def first_line(error: BaseException) -> str:
    """Return ``"Type: first line of the message"``."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
