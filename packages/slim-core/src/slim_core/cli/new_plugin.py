"""``slim new-plugin``: writes a package that works, from the files in ``templates/``.

The templates are text with ``@@word@@`` marks, never run from here.
"""

from __future__ import annotations

import keyword
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Literal

import click

from slim_core.cli.app import App
from slim_core.discovery import CORE, core_version
from slim_core.errors import OutputFolderError, SlimError

Kind = Literal["technique", "importance", "backend"]
KINDS: tuple[Kind, ...] = ("technique", "importance", "backend")

_OWN = ("slim", CORE, "slim-zoo", "slim-prune", "slim-quant", "slim-distill", "slim-nas", "slim-latency")
_DESCRIPTIONS: dict[Kind, str] = {
    "technique": "Factorizes linear layers into two thin ones",
    "importance": "Scores channels by their largest absolute weight",
    "backend": "Runs models in channels-last memory order for measuring",
}
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "technique": (CORE, "torch>=2.13,<3", "pydantic>=2.8,<3"),
    "importance": (CORE, "slim-prune", "torch>=2.13,<3"),
    "backend": (CORE, "torch>=2.13,<3", "numpy>=2.0"),
}
#: path in the new package -> template
_COMMON = {
    "pyproject.toml": "common/pyproject.toml.txt",
    "LICENSE": "common/LICENSE.txt",
    ".gitignore": "common/gitignore.txt",
    "src/@@package@@/__init__.py": "common/init.py.txt",
}
_FILES: dict[Kind, dict[str, str]] = {
    "technique": {"src/@@package@@/technique.py": "technique.py.txt", "src/@@package@@/replay.py": "replay.py.txt"},
    "importance": {"src/@@package@@/importance.py": "importance.py.txt"},
    "backend": {"src/@@package@@/backend.py": "backend.py.txt"},
}
_EVERY = {
    "README.md": "README.md.txt",
    "src/@@package@@/plugin.py": "plugin.py.txt",
    "tests/test_plugin.py": "test_plugin.py.txt",
}


def render(name: str, kind: Kind) -> dict[str, str]:
    """Return the files of a new plugin package: path to text.

    Raises:
        SlimError: ``name`` cannot be the name of a plugin package.
    """
    check_name(name)
    words = {
        "name": name,
        "package": name.replace("-", "_"),
        "short": name.removeprefix("slim-"),
        "description": _DESCRIPTIONS[kind],
        "dependencies": "\n".join(f'    "{need}",' for need in map(_requirement, _NEEDS[kind])),
    }
    sources = _COMMON | {path: f"{kind}/{source}" for path, source in (_EVERY | _FILES[kind]).items()}
    templates = files("slim_core.cli") / "templates"
    rendered = {
        _filled(path, words): _filled((templates / source).read_text(encoding="utf-8"), words)
        for path, source in sources.items()
    }
    rendered[f"src/{words['package']}/py.typed"] = ""
    return rendered


def write(name: str, kind: Kind, parent: Path) -> tuple[Path, list[str]]:
    """Write a new plugin package into ``parent/name`` and return the folder and its files.

    Raises:
        SlimError: ``name`` cannot be the name of a plugin package.
        OutputFolderError: the folder is there already, or cannot be written.
    """
    rendered = render(name, kind)
    target = parent / name
    if target.exists():
        raise OutputFolderError(
            f"{target} is there already", hint="choose another name or folder (-o); nothing was written"
        )
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        try:
            for path, text in rendered.items():
                file = staging / "package" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            (staging / "package").rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise OutputFolderError(f"{target} cannot be written: {error.strerror}", where=str(error.filename)) from error
    return target, sorted(rendered)


def check_name(name: str) -> None:
    """Check that ``name`` can be the name of a new distribution and, with underscores, of a Python package.

    Raises:
        SlimError: it cannot; the hint is a name that could.
    """
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").lstrip("0123456789-")[:60]
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 60:
        hint = f"for example {better}" if better and better != name else "for example slim-lowrank"
        raise SlimError(f"{name!r} cannot be a package name: lower case letters, digits, single dashes", hint=hint)
    package = name.replace("-", "_")
    if name in _OWN or name.removeprefix("slim-") in [own.removeprefix("slim-") for own in _OWN]:
        raise SlimError(f"'{name}' is one of Slim's own names", hint=f"for example slim-my-{better.split('-')[-1]}")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names or package in ("torch", "numpy", "tests"):
        raise SlimError(f"'{name}' is the name of a Python module already", hint=f"for example slim-{better}")


def _requirement(package: str) -> str:
    """Return a requirement on one of Slim's packages that fits the running series; others come complete."""
    if not package.startswith("slim-"):
        return package
    major, minor = (core_version() or "0.1").split(".")[:2]
    return f"{package}>={major}.{minor}.0.dev0,<{major}.{int(minor) + 1}"


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@@([a-z]+)@@", lambda match: words[match[1]], text)


@click.command("new-plugin")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="technique", show_default=True, help="What it adds.")
@click.option(
    "-o",
    "--output",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="Folder to write the package's folder into (default: here).",
)
@click.pass_obj
def new_plugin(app: App, name: str, kind: Kind, parent: Path) -> None:
    """Write a working plugin package to start from.

    NAME is the name of the distribution, for example slim-lowrank. The package builds, installs, registers one thing,
    and tests it against Slim's contracts.
    """
    folder, written = write(name, kind, parent)

    def drawn() -> str:
        listing = "\n".join(f"  {path}" for path in written)
        steps = f"  pip install -e {folder} pytest\n  slim plugins\n  pytest {folder}"
        return f"{folder}: a working plugin of kind {kind}\n{listing}\n\nNext:\n{steps}"

    app.output.emit({"folder": folder, "kind": kind, "files": written}, drawn, str(folder))
