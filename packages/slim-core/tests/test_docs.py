"""The pages about plugins and the command line say what the code says. Only in a checkout of the repository."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from slim_core import builtin, hookspecs, register
from slim_core.errors import SlimError
from slim_core.registry import Lazy
from slim_core.testing import contracts

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="only in a checkout of the repository")

HOOKS = [name for name in vars(hookspecs) if name.startswith("slim_")]


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(?:python|\{\.python)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_documented_with_its_exact_signature(hook: str) -> None:
    signature = str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")
    text = (DOCS / "plugins" / "hooks.md").read_text(encoding="utf-8")
    section = text.split(f"### {hook}\n", 1)
    assert len(section) == 2, f"no section for {hook}"
    first_block = re.search(r"```\{\.python notest\}\n(.*?)```", section[1], re.DOTALL)
    assert first_block is not None
    assert first_block[1] == f"def {hook}{signature}\n"


def test_hooks_are_documented_in_the_order_in_which_they_are_called() -> None:
    text = (DOCS / "plugins" / "hooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^### (slim_\w+)$", text, re.MULTILINE) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_each_specification_says_since_when_it_exists(hook: str) -> None:
    assert ".. versionadded:: " in (getattr(hookspecs, hook).__doc__ or "")


def test_the_tutorial_shows_the_example_as_it_is() -> None:
    example = "\n".join(path.read_text() for path in (REPOSITORY / "examples" / "slim-example").rglob("*.py"))
    shown = [block for block in blocks("plugins/tutorial.md") if not block.startswith("from pathlib")]
    assert len(shown) >= 6
    for block in shown:
        assert block.rstrip() in example, f"not in the example any more:\n{block}"


class Commands:
    """Takes what the core's plugin adds to the command line."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[Lazy, str]] = {}

    def add_lazy(self, name: str, target: Lazy, help: str) -> None:
        self.lines[name] = (target, help)


def core_commands() -> dict[str, tuple[Lazy, str]]:
    commands = Commands()
    builtin.slim_register_commands(commands)
    return commands.lines


def test_the_page_of_the_command_line_has_every_core_command_and_no_other() -> None:
    text = (DOCS / "guide" / "cli.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `slim ([a-z-]+)` \|", text, re.MULTILINE))
    assert listed - {"prune", "quant", "latency"} == set(core_commands())


@pytest.mark.parametrize("name", core_commands())
def test_each_core_command_exists_and_has_one_line_in_the_help(name: str) -> None:
    target, line = core_commands()[name]
    command: Any = target.resolve()
    assert command.name == name
    assert command.help
    assert line.endswith(".")
    assert len(line) <= 70


def test_every_contract_is_documented() -> None:
    text = (DOCS / "plugins" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+Contract)` \|", text, re.MULTILINE))
    assert listed == {name for name in contracts.__all__ if name.endswith("Contract")}


def test_every_decorator_is_documented() -> None:
    text = (DOCS / "plugins" / "index.md").read_text(encoding="utf-8")
    made = {name for name, value in vars(register).items() if inspect.isfunction(value)} - {"named", "marked"}
    assert [name for name in sorted(made) if f"`{name}`" not in text] == []


def test_statuses_are_documented() -> None:
    text = (DOCS / "plugins" / "index.md").read_text(encoding="utf-8")
    for status in ("ok", "failed", "duplicate", "skipped"):
        assert f"| `{status}` |" in text


def test_the_error_in_the_page_looks_like_a_real_one() -> None:
    error = SlimError("unknown model 'zoo/resnet81'", where="recipe.yaml:3", hint="did you mean 'zoo/resnet18'?")
    assert f"error: {error}\n" in (DOCS / "guide" / "cli.md").read_text(encoding="utf-8")
