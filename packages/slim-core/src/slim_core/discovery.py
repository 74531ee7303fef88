"""Where plugins come from: entry points, and single files. Finds and imports them; keeps no state.

What happens to a plugin after its import is :mod:`slim_core.plugins`' business.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from slim_core.errors import PluginError, SlimError

CORE = "slim-core"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that could be loaded. Nothing of it has been imported.

    Args:
        name: entry-point name.
        distribution: the package that offers it, where there is one.
        version: the package's version.
        load: imports and returns the plugin object.
        refusal: why it must not be imported, or ``None``.
    """

    name: str
    distribution: str | None
    version: str | None
    load: Callable[[], Any]
    refusal: str | None = None

    def __str__(self) -> str:
        package = " ".join(part for part in (self.distribution, self.version) if part)
        return f"'{self.name}' ({package})" if package else f"'{self.name}'"


def core_version() -> str | None:
    """Return the running slim-core's version, or ``None`` when it runs without being installed."""
    try:
        return metadata.version(CORE)
    except metadata.PackageNotFoundError:
        return None


def entry_point_candidates(group: str) -> list[Candidate]:
    """List the entry points of ``group``, without importing any.

    Slim's own packages come first, the others follow by name, so that of two plugins that want the same
    name it does not depend on the order of installation which one gets it.
    """
    running = core_version()
    found = []
    for point in metadata.entry_points(group=group):
        dist = point.dist
        requires = list(dist.requires or ()) if dist is not None else []
        found.append(
            Candidate(
                point.name,
                dist.name if dist is not None else None,
                dist.version if dist is not None else None,
                point.load,
                _refusal(requires, running) if running is not None else None,
            )
        )
    return sorted(found, key=lambda c: (not (c.distribution or "").startswith("slim-"), c.distribution or "", c.name))


def _refusal(requires: Sequence[str], running: str) -> str | None:
    """Return why a package that declares ``requires`` does not fit the running slim-core, or ``None``."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    for text in requires:
        if "slim" not in text.lower():
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            return f"its requirement {text!r} cannot be read: {error}"
        if canonicalize_name(requirement.name) != CORE:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(running, prereleases=True):
            return f"requires {requirement.name}{requirement.specifier}, but slim-core {running} is running"
    return None


def import_file(path: Path) -> ModuleType:
    """Import one local Python file.

    The file's folder goes to the front of ``sys.path`` and stays there, as with ``python my_project.py``, so that the
    file may import its neighbours, also later. The module gets the name that ``import my_project`` would give it, so
    that worker processes can unpickle what it defines; where that name belongs to something else, it gets another.
    The file runs each time: a host that is made after an edit sees the edit.

    Raises:
        PluginError: the file is not there, or it raised; ``where`` is the file and the line.
    """
    path = path.resolve()
    if not path.is_file():
        raise PluginError(f"there is no file {path}", hint="--load takes the path of one Python file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = _module_name(path)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path.name} is not a Python file", hint="--load takes the path of one .py file")
    module = module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        if isinstance(error, KeyboardInterrupt | SlimError):
            raise
        raise PluginError(
            f"{path.name} could not be loaded: {describe(error)}",
            where=place(error, prefer=path),
            hint=f"`python {path.name}` shows the whole traceback",
        ) from error
    return module


def _module_name(path: Path) -> str:
    """Return the file's stem where importing that finds this file, else a name that nothing else has."""
    stem = path.stem
    with suppress(ImportError, ValueError, AttributeError):
        if stem in sys.modules:
            found = sys.modules[stem].__file__
        else:
            spec = find_spec(stem) if stem.isidentifier() else None
            found = spec.origin if spec is not None else None
        if found is not None and Path(found).resolve() == path:
            return stem
    return f"slim_project_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def describe(error: BaseException) -> str:
    """Return the class and message of ``error`` in one line."""
    if isinstance(error, SlimError):
        return " ".join([error.what, *([f"({error.hint})"] if error.hint else [])])
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def place(error: BaseException, *, prefer: Path | None = None) -> str | None:
    """Return ``file:line`` of the innermost frame outside the import machinery and the host, or of the syntax error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    skip = (
        str(Path(__file__)),
        str(Path(__file__).with_name("plugins.py")),
        str(Path(__file__).with_name("registry.py")),
    )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename not in skip and "importlib" not in frame.filename
        and "pluggy" not in Path(frame.filename).parts
    ]  # fmt: skip
    preferred = [frame for frame in frames if prefer is not None and frame.filename == str(prefer)]
    chosen = (preferred or frames)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else None
