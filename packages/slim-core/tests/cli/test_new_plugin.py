"""``slim new-plugin``: what it writes builds, installs, loads and passes its own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slim_core.cli.new_plugin import KINDS, Kind, check_name, render, write
from slim_core.errors import OutputFolderError, SlimError

REPOSITORY = Path(__file__).parents[4]
EXAMPLE = REPOSITORY / "examples" / "slim-example"


def python(*arguments: str, path: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLIM_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_package_installs_loads_and_passes_its_own_tests(kind: Kind, tmp_path: Path) -> None:
    folder, _ = write(f"slim-my-{kind}", kind, tmp_path)
    site = tmp_path / "site"
    # Without an index and without isolation: the build backend is among this package's test requirements.
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(site))
    installed = python(*pip, str(folder), path=site)
    assert installed.returncode == 0, installed.stderr

    listed = python("-m", "slim_core", "plugins", "--format", "json", path=site)
    (outcome,) = [o for o in json.loads(listed.stdout)["plugins"] if o["distribution"] == f"slim-my-{kind}"]
    assert (outcome["status"], outcome["reason"], outcome["notes"]) == ("ok", None, [])
    assert outcome["version"] == "0.1.0"
    assert outcome["name"] == f"my-{kind}"

    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", path=site, cwd=folder)
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout
    assert "failed" not in tested.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_complete(kind: Kind) -> None:
    files = render("slim-my-plugin", kind)
    for path in ("pyproject.toml", "README.md", "LICENSE", "src/slim_my_plugin/py.typed", "tests/test_plugin.py"):
        assert path in files
    assert not [path for path, text in files.items() if "@@" in text + path]
    project = tomllib.loads(files["pyproject.toml"])
    assert project["build-system"]["build-backend"] == "poetry.core.masonry.api"
    assert project["project"]["name"] == "slim-my-plugin"
    assert project["project"]["entry-points"]["slim"] == {"my-plugin": "slim_my_plugin.plugin"}
    assert "slim-core>=0.1.0.dev0,<0.2" in project["project"]["dependencies"]
    for path, text in files.items():
        if path.endswith(".py"):
            compile(text, path, "exec")


def test_the_example_of_the_tutorial_is_what_the_command_writes() -> None:
    if not EXAMPLE.is_dir():
        pytest.skip("only in a checkout of the repository")
    made = {"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", "build", "dist"}
    found = {
        str(path.relative_to(EXAMPLE)): path.read_text(encoding="utf-8")
        for path in EXAMPLE.rglob("*")
        if path.is_file() and not made.intersection(path.parts)
    }
    assert found == render("slim-example", "technique"), "run: slim new-plugin slim-example -o examples"


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "slim-mine").mkdir()
    (tmp_path / "slim-mine" / "kept.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match="is there already"):
        write("slim-mine", "technique", tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["slim-mine", "kept.txt"]


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OutputFolderError, match="cannot be written"):
        write("slim-mine", "technique", blocked)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Slim_Mine", "slim-mine"),
        ("slim mine", "slim-mine"),
        ("slim--mine", "slim-mine"),
        ("9lives", "lives"),
        ("../mine", "mine"),
        ("", "slim-lowrank"),
        ("a" * 61, "a" * 60),
        ("slim-prune", "slim-my-prune"),
        ("prune", "slim-my-prune"),
        ("json", "slim-json"),
        ("lambda", "slim-lambda"),
        ("torch", "slim-torch"),
    ],
)
def test_names_that_cannot_be(name: str, hint: str) -> None:
    with pytest.raises(SlimError) as caught:
        check_name(name)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["slim-lowrank", "mine", "a1-b2"])
def test_names_that_can_be(name: str) -> None:
    check_name(name)
