"""The output folder of a run: who owns it, which steps are done, and the lock that keeps two runs apart."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_core.errors import OutputFolderError, SlimError
from slim_core.files import write_json
from slim_core.recipe.source import KeyPath, show_path
from slim_core.report.data import StepRow, step_from_json

STATE_FORMAT = 1

CHECKPOINT = "model.safetensors"
REPORT = "report.json"
HTML = "report.html"
CARD = "README.md"
RESOLVED = "recipe.resolved.yaml"
STEPS = "steps"

#: what is drawn from the report's figures
VIEWS = (HTML, CARD)

#: everything that a run writes into its folder, beside exported files
OWN_FILES = (CHECKPOINT, REPORT, HTML, CARD, RESOLVED, "model.onnx", "original.onnx")
#: weights of a large exported file, named by their content
_OWN_DATA = re.compile(r"(model|original)\.onnx\.[0-9a-f]{16}\.data")
_LOCK = ".slim-lock"
#: how a step's folder is named, and nothing else in ``steps``
_STEP_FOLDER = re.compile(r"[0-9]{2,}-[A-Za-z0-9._-]+")
#: what the head of every model card of Slim says
_CARD_SIGN = "library_name: slim"


@dataclass(frozen=True, slots=True)
class OutFolder:
    """An output folder that this run owns.

    Args:
        path: the folder.
        identity: hash of recipe and weights.
        versions: packages that the run was begun with.
    """

    path: Path
    identity: str
    versions: Mapping[str, str]

    def file(self, name: str) -> Path:
        """Return the path of ``name`` in the folder."""
        return self.path / name

    def step_folder(self, index: int, kind: str) -> Path:
        """Return the folder of one step, made if it is not there."""
        folder = self.path / STEPS / f"{index:02d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', kind)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def work_folder(self, index: int, kind: str) -> Path:
        """Return the folder that a technique keeps its resumable state in until the step is done."""
        folder = self.step_folder(index, kind) / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def finish_step(self, row: StepRow) -> None:
        """Mark a step, whose checkpoint is written, as done."""
        folder = self.step_folder(row.index, row.kind)
        write_json(folder / "result.json", {"format": STATE_FORMAT, "run": self.identity, "step": row_to_json(row)})
        shutil.rmtree(folder / "work", ignore_errors=True)

    def finished_step(self, index: int, kind: str) -> StepRow | None:
        """Return what a step of this run left when it was done, or ``None``."""
        folder = self.step_folder(index, kind)
        if not (folder / CHECKPOINT).is_file():
            return None
        state = _read_json(folder / "result.json")
        if state is None or state.get("format") != STATE_FORMAT or state.get("run") != self.identity:
            return None
        try:
            return step_from_json(state["step"])
        except (KeyError, TypeError):
            return None

    def forget_step(self, index: int, kind: str) -> None:
        """Take back that a step was done."""
        (self.step_folder(index, kind) / "result.json").unlink(missing_ok=True)


@contextmanager
def open_folder(
    out: str | os.PathLike[str],
    identity: str,
    recipe: Mapping[str, Any],
    *,
    versions: Mapping[str, str],
    overwrite: bool = False,
) -> Iterator[OutFolder]:
    """Take hold of an output folder for the length of a run.

    Args:
        out: the folder; made if it is not there.
        identity: hash of recipe and weights.
        recipe: the resolved recipe, to tell what differs from the run that the folder holds.
        versions: packages, noted when the run begins.
        overwrite: remove what an earlier run left, and nothing else.

    A run that fails before anything was computed leaves the folder as it found it.

    Raises:
        OutputFolderError: it cannot be written, another process runs in it, it holds another run, or files that are
            not a run's.
    """
    path = Path(out)
    made, locked = not path.exists(), (path / _LOCK).exists()
    taken = begun = False
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError):
        raise OutputFolderError(f"'{path}' is a file, not a folder", hint="choose another folder with -o") from None
    except OSError as error:
        raise OutputFolderError(
            f"the output folder '{path}' cannot be written: {error.strerror}", hint="choose another folder with -o"
        ) from None
    try:
        _take_lock(lock, path)
        taken = True
        _check_card(path)
        if overwrite:
            _wipe(path)
        _check_owner(path, identity, recipe)
        state_file = path / STEPS / "run.json"
        state = _read_json(state_file)
        if state is None:
            state = {"format": STATE_FORMAT, "run": identity, "recipe": recipe, "versions": dict(versions)}
            write_json(state_file, state)
            begun = True
        yield OutFolder(path, identity, state.get("versions", {}))
    except BaseException:
        if begun:
            _forget(path)
        if taken and not locked and not (path / STEPS / "run.json").exists():
            (path / _LOCK).unlink(missing_ok=True)
            if made and not any(path.iterdir()):
                path.rmdir()
        raise
    finally:
        os.close(lock)  # this also gives the lock back


def row_to_json(row: StepRow) -> dict[str, Any]:
    """Return a step's row as JSON values."""
    from dataclasses import asdict

    data: dict[str, Any] = json.loads(json.dumps(asdict(row), allow_nan=False))
    return data


def require_space(path: Path, needed: int) -> None:
    """Check that ``needed`` bytes are free where ``path`` is.

    Raises:
        OutputFolderError: they are not.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OutputFolderError(
            f"'{path}' has {free / 1e6:.0f} MB free; this run needs about {needed / 1e6:.0f} MB",
            hint="free some space or choose another folder with -o",
        )


def _take_lock(lock: int, path: Path) -> None:
    """Hold the lock until the process ends or closes it: the system frees the lock of a killed process by itself."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: two runs in one folder are then not noticed
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        who = f" (process {owner})" if owner.isdigit() else ""
        raise OutputFolderError(
            f"another run is working in '{path}'{who}", hint="wait for it, or choose another folder with -o"
        ) from None
    try:
        same = os.stat(path / _LOCK).st_ino == os.fstat(lock).st_ino
    except FileNotFoundError:
        same = False
    if not same:  # its owner removed it between our opening and locking it
        raise OutputFolderError(f"another run was working in '{path}' until now", hint="give the same command again")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _check_owner(path: Path, identity: str, recipe: Mapping[str, Any]) -> None:
    state = _read_json(path / STEPS / "run.json")
    if state is None:
        ours = _own_files(path)
        if ours:
            raise OutputFolderError(
                f"'{path}' holds files that this run would replace: {', '.join(ours)}",
                hint=f"choose another folder with -o; --overwrite removes {', '.join(ours)}",
            )
        return
    if state.get("run") != identity:
        other = state.get("recipe")
        differences = list(differing(other, recipe)) if isinstance(other, Mapping) else []
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise OutputFolderError(
            f"'{path}' holds another run" + (f": {shown}" if shown else ""),
            where=str(path / STEPS / "run.json"),
            hint=f"choose another folder with -o, or replace the run with --overwrite, which removes {_listed(path)}",
        )


def differing(old: Any, new: Any, path: KeyPath = ()) -> Iterator[str]:
    """Yield one text for each key in which two recipes differ in a way that changes the model."""
    ignored = ("name", "description", "export", "measure", "compare")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            if path or key not in ignored:
                yield from differing(old.get(key), new.get(key), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for position, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differing(left, right, (*path, position))
    elif old != new and not (len(path) == 3 and path[-1] == "name"):
        yield f"there {show_path(path)} is {_short(old)}, here {_short(new)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    return "not set" if value is None else repr(value)


def _check_card(path: Path) -> None:
    """Refuse to write a model card over a README that somebody wrote."""
    card = path / CARD
    if not card.is_file():
        return
    with card.open("rb") as handle:
        head = handle.read(2048).decode("utf-8", "replace")
    if not head.startswith("---") or _CARD_SIGN not in head:
        raise OutputFolderError(
            f"'{path}' holds a {CARD} that is not Slim's; the run's model card would replace it",
            where=str(card),
            hint="choose another folder with -o, or move that file",
        )


def _step_folders(path: Path) -> list[Path]:
    steps = path / STEPS
    if not steps.is_dir():
        return []
    return sorted(
        entry for entry in steps.iterdir()
        if _STEP_FOLDER.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink()
    )  # fmt: skip


def _own_files(path: Path) -> list[str]:
    """Return the names of a run's files that are there."""
    known = [name for name in OWN_FILES if os.path.lexists(path / name)]
    return known + sorted(entry.name for entry in path.glob("*.data") if _OWN_DATA.fullmatch(entry.name))


def _listed(path: Path) -> str:
    """Return what ``--overwrite`` would remove."""
    return ", ".join(
        [*_own_files(path), *(f"{STEPS}/{folder.name}" for folder in _step_folders(path)), f"{STEPS}/run.json"]
    )


def _wipe(path: Path) -> None:
    """Remove a run: its files, and the folders of its steps. Whatever else lies there stays."""
    steps = path / STEPS
    if steps.is_symlink():
        raise OutputFolderError(f"'{steps}' is a link; it is not removed", hint="choose another folder with -o")
    state = _read_json(steps / "run.json") if steps.is_dir() else None
    if steps.exists() and (state is None or "run" not in state or "format" not in state):
        raise OutputFolderError(
            f"'{steps}' is not the work of a run of Slim (it has no run.json); it is not removed",
            where=str(steps),
            hint="choose another folder with -o, or move it",
        )
    for name in _own_files(path):
        (path / name).unlink(missing_ok=True)
    if state is not None:
        folders = _step_folders(path)
        for folder in folders:  # first of all no step counts as done any more
            (folder / "result.json").unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder)
        (steps / "run.json").unlink(missing_ok=True)
        _remove_if_empty(steps)


def _forget(path: Path) -> None:
    """Take back that a run was begun, if it computed nothing."""
    steps = path / STEPS
    state = steps / "run.json"
    if any(entry != state and not entry.is_dir() for entry in steps.rglob("*")):
        return
    state.unlink(missing_ok=True)
    for folder in (*(folder / "work" for folder in _step_folders(path)), *_step_folders(path), steps):
        _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SlimError(f"the state of the run cannot be read: {error}", where=str(path)) from None
    return data if isinstance(data, dict) else None
