"""Promises that the repository as a whole keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
SOURCES = sorted(path for package in PACKAGES for path in (package / "src").rglob("*.py"))

#: Calls that run code found in data, by dotted name.
UNSAFE_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os._exit",
}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "packages")))
def test_library_code_runs_nothing_that_data_names(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and dotted(node.func) in UNSAFE_CALLS:
            found.append(f"line {node.lineno}: {dotted(node.func)}")
        if isinstance(node, ast.Import):
            found += [
                f"line {node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in UNSAFE_MODULES
            ]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(f"line {node.lineno}: from {node.module}")
    assert found == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_each_package_carries_what_a_release_needs(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    module = package.name.replace("-", "_")
    assert project["license"] == "Apache-2.0"
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (package / "src" / module / "py.typed").is_file()
    assert re.search(rf"^## {re.escape(project['version'])}\b", (package / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (package / project["readme"]).stat().st_size > 0
    if package.name != "slim-core":
        assert "slim-core>=0.1.0.dev0,<0.2" in project["dependencies"]
        assert project["entry-points"]["slim"] == {package.name.removeprefix("slim-"): f"{module}.plugin"}


#: distributions whose module has another name
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn", "poetry-core": "poetry"}


def modules_of(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements]  # type: ignore[union-attr]
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imported(folder: Path, *, but: str = "") -> dict[str, str]:
    """Return the top-level modules that the files of a folder import, each with one file that does.

    Left out is the agent's own runtime: that file runs without its package, where somebody installed the runtime.
    """
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if but and but in path.relative_to(folder).with_suffix("").parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            names = [name for name in names if (path.name, name) != ("agent.py", "onnxruntime")]
            found.update({name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names})
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_each_package_declares_what_it_imports(package: Path) -> None:
    data = tomllib.loads((package / "pyproject.toml").read_text())
    declared = modules_of(data["project"]["dependencies"]) | {package.name.replace("-", "_")}
    used = imported(package / "src", but="testing")  # helpers for tests, which bring pytest and hypothesis themselves
    assert {name: path for name, path in used.items() if name not in declared} == {}
    declared |= modules_of(data["dependency-groups"]["test"]) | {
        path.stem for path in (package / "tests").rglob("*.py")
    }
    used = imported(package / "tests")
    assert {name: path for name, path in used.items() if name not in declared} == {}


def test_the_figures_in_the_docs_are_those_of_the_results() -> None:
    result = subprocess.run(
        [sys.executable, "benchmarks/render.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout


def test_every_page_of_the_docs_is_reachable() -> None:
    nav = re.findall(r"[\w/.-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(nav)


def test_code_in_the_docs_is_fenced_as_the_site_renders_it() -> None:
    """Options after a bare language name, as in ``python notest``, make the site show the fence as text."""
    wrong = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in sorted((ROOT / "docs").rglob("*.md"))
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if re.match(r"\s*```\w+ +\w", line)
    ]
    assert wrong == []
