"""A pack of broken plugins, installed for real: each is named with its reason, and none hides another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

HEAD = "from slim_core import hookimpl\n"
GOOD = """
@hookimpl
def slim_register_models(register):
    register("{name}/net", dict)
"""

IN_HOOK = "@hookimpl\ndef slim_register_models(register):\n   "

#: entry-point name -> (body of its module, Requires-Dist, part of the reason)
EVIL: dict[str, tuple[str, tuple[str, ...], str]] = {
    "import_error": ("import a_module_that_is_not_there", (), "No module named 'a_module_that_is_not_there'"),
    "syntax_error": ("def broken(:", (), "SyntaxError"),
    "system_exit": ("import sys; sys.exit(3)", (), "sys.exit(3)"),
    "base_exception": ("class Odd(BaseException): ...\nraise Odd('odd')", (), "Odd: odd"),
    "stdout_closed": ("import sys; sys.stdout.close(); raise ValueError('after closing')", (), "after closing"),
    "bad_signature": ("@hookimpl\ndef slim_register_models(register, colour): ...", (), "bad hook signature"),
    "unknown_hook": ("@hookimpl\ndef slim_register_model(register): ...", (), "did you mean 'slim_register_models'"),
    "too_new_core": ("raise AssertionError('imported')", ("slim-core>=99",), "requires slim-core>=99, but slim-core"),
    "too_old_core": ("raise AssertionError('imported')", ("slim_core<0.0.1",), "requires slim_core<0.0.1"),
    "bad_requirement": ("raise AssertionError('imported')", ("slim-core>>1",), "cannot be read"),
    "duplicate_name": (f"{IN_HOOK} register('good_a/net', dict)", (), "is registered twice"),
    "raises_in_hook": (f"{IN_HOOK} raise RuntimeError('in the hook')", (), "in the hook"),
    "exits_in_hook": (f"{IN_HOOK} raise SystemExit(0)", (), "sys.exit(0)"),
    "registers_then_raises": (
        """
        @hookimpl
        def slim_register_models(register):
            register("registers_then_raises/net", dict)

        @hookimpl
        def slim_register_tasks(register):
            register("registers_then_raises", dict)
            raise RuntimeError("too late")
        """,
        (),
        "too late",
    ),
    "bad_value": (f"{IN_HOOK} register('two words', dict)", (), "text without blanks"),
    "specs_then_raises": (
        """
        import types
        import pluggy

        def slim_register_ghosts(register): ...

        @hookimpl
        def slim_add_hookspecs(pluginmanager, registry):
            specs = types.SimpleNamespace(slim_register_ghosts=pluggy.HookspecMarker("slim")(slim_register_ghosts))
            pluginmanager.add_hookspecs(specs)
            registry.add_kind("ghosts", "ghost")
            raise RuntimeError("after adding hookspecs")
        """,
        (),
        "after adding hookspecs",
    ),
    "commands_raise": (
        """
        @hookimpl
        def slim_register_models(register):
            register("commands_raise/net", dict)

        @hookimpl
        def slim_register_commands(cli):
            @cli.command()
            def half(): ...
            raise RuntimeError("no commands today")
        """,
        (),
        "no commands today",
    ),
    "takes_a_command": (
        """
        @hookimpl
        def slim_register_commands(cli):
            @cli.command("plugins")
            def mine(): ...
        """,
        (),
        "command 'plugins' is already added by plugin 'slim-core'",
    ),
}  # fmt: skip

#: plugins that load, with something that their author should know
NOTED: dict[str, tuple[str, str]] = {
    "prints": ("print('{} not json')" + GOOD.format(name="prints"), "printed to standard output while loading"),
    "slow": ("import time; time.sleep(0.4)" + GOOD.format(name="slow"), "ms to import"),
    "heavy": (
        "import sys, types; sys.modules.setdefault('torch', types.ModuleType('torch'))" + GOOD.format(name="heavy"),
        "imports torch at import time",
    ),
    "unmarked": (
        GOOD.format(name="unmarked") + "\ndef slim_register_tasks(register): ...",
        "defines slim_register_tasks without @hookimpl",
    ),
}


def install(
    site: Path,
    distribution: str,
    points: Mapping[str, str],
    body: str,
    *,
    requires: tuple[str, ...] = (),
    version: str = "1.2.3",
) -> None:
    """Write a module and its metadata into ``site``, as an installer would."""
    module = distribution.replace("-", "_")
    (site / f"{module}.py").write_text(HEAD + dedent(body).lstrip("\n"))
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.3", f"Name: {distribution}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    entries = "\n".join(f"{name} = {target}" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[slim]\n{entries}\n")


def slim(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLIM_")}
    return subprocess.run(
        [sys.executable, "-m", "slim_core", *arguments],
        env={**clean, "PYTHONPATH": str(site), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name in ("good_a", "good_z"):
        distribution = {"good_a": "aa-good", "good_z": "zz-good"}[name]  # one before and one after every culprit
        install(folder, distribution, {name: distribution.replace("-", "_")}, GOOD.format(name=name))
    for name, (body, requires, _) in EVIL.items():
        install(folder, f"evil-{name.replace('_', '-')}", {name: f"evil_{name}"}, body, requires=requires)
    for name, (body, _) in NOTED.items():
        install(folder, f"evil-{name}", {name: f"evil_{name}"}, body)
    install(folder, "evil-same-point", {"good_a": "evil_same_point"}, GOOD.format(name="same_point"))
    install(folder, "evil-no-attribute", {"no_attribute": "evil_no_attribute:missing"}, "")
    install(folder, "evil-none", {"none": "evil_none:NOTHING"}, "NOTHING = None")
    install(folder, "evil-twice", {"twice": "evil_twice", "twice_more": "evil_twice"}, GOOD.format(name="twice"))
    return folder


@pytest.fixture(scope="module")
def listing(site: Path) -> list[dict[str, Any]]:
    done = slim(site, "plugins", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)["plugins"]


def named(listing: list[dict[str, Any]], distribution: str) -> dict[str, Any]:
    (outcome,) = [outcome for outcome in listing if outcome["distribution"] == distribution]
    return outcome


@pytest.mark.parametrize("name", EVIL)
def test_a_broken_plugin_is_named_with_its_version_and_the_reason(name: str, listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, f"evil-{name.replace('_', '-')}")
    assert outcome["name"] == name
    assert outcome["status"] == "failed"
    assert outcome["version"] == "1.2.3"
    assert EVIL[name][2] in outcome["reason"]
    assert "imported" not in outcome["reason"], "it does not fit this slim-core and must not be imported"


@pytest.mark.parametrize("name", EVIL)
def test_nothing_of_a_broken_plugin_stays(name: str, listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, f"evil-{name.replace('_', '-')}")
    assert outcome["hooks"] == []
    assert outcome["registered"] == {}


def test_every_sound_plugin_loads_whatever_stands_beside_it(listing: list[dict[str, Any]]) -> None:
    for name, distribution in {"good_a": "aa-good", "good_z": "zz-good"}.items():
        outcome = named(listing, distribution)
        assert (outcome["status"], outcome["reason"]) == ("ok", None)
        assert outcome["registered"] == {"models": [f"{name}/net"]}
        assert outcome["hooks"] == ["slim_register_models"]
        assert outcome["import_ms"] >= 0


@pytest.mark.parametrize("name", NOTED)
def test_a_plugin_with_bad_manners_loads_and_is_noted(name: str, listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, f"evil-{name}")
    assert outcome["status"] == "ok"
    assert outcome["registered"] == {"models": [f"{name}/net"]}
    assert any(NOTED[name][1] in note for note in outcome["notes"]), outcome["notes"]


def test_the_second_entry_point_of_a_name_is_a_duplicate_and_not_imported(listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, "evil-same-point")
    assert outcome["status"] == "duplicate"
    assert "taken by aa-good 1.2.3" in outcome["reason"]
    assert outcome["import_ms"] is None


def test_an_entry_point_without_its_attribute_fails_alone(listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, "evil-no-attribute")
    assert outcome["status"] == "failed"
    assert "missing" in outcome["reason"]


def test_an_entry_point_that_is_none_fails_alone(listing: list[dict[str, Any]]) -> None:
    outcome = named(listing, "evil-none")
    assert (outcome["status"], outcome["reason"][:22]) == ("failed", "its entry point is Non")


def test_one_module_under_two_entry_points_loads_once(listing: list[dict[str, Any]]) -> None:
    first, second = [outcome for outcome in listing if outcome["distribution"] == "evil-twice"]
    assert (first["status"], first["registered"]) == ("ok", {"models": ["twice/net"]})
    assert (second["status"], second["registered"]) == ("failed", {})
    assert second["reason"] == "its module is loaded already, as plugin 'twice' (evil-twice 1.2.3)"


def test_reasons_name_the_line_of_the_plugin(listing: list[dict[str, Any]]) -> None:
    assert "evil_raises_in_hook.py:4" in named(listing, "evil-raises-in-hook")["reason"]
    assert "evil_syntax_error.py:2" in named(listing, "evil-syntax-error")["reason"]
    assert "evil_import_error.py:2" in named(listing, "evil-import-error")["reason"]


def test_the_table_for_people_names_every_culprit(site: Path) -> None:
    done = slim(site, "plugins")
    assert done.returncode == 0
    for name in EVIL:
        assert f"evil-{name.replace('_', '-')}" in done.stdout
    assert done.stderr == ""


def test_verbose_shows_the_tracebacks(site: Path) -> None:
    done = slim(site, "plugins", "-v")
    assert done.returncode == 0
    assert "'raises_in_hook' (evil-raises-in-hook 1.2.3):\nTraceback (most recent call last):" in done.stderr
    assert "RuntimeError: in the hook" in done.stderr


def test_other_commands_warn_in_one_line(site: Path) -> None:
    done = slim(site, "new-plugin", "--help")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: plugins ")
    assert "`slim plugins` says why" in line
    assert slim(site, "new-plugin", "--help", "--format", "quiet").stderr == ""


def test_strict_raises_on_the_first_failure(site: Path) -> None:
    done = slim(site, "plugins", "--format", "json", SLIM_STRICT_PLUGINS="1")
    assert done.returncode == 2
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "PluginError"
    assert "1.2.3) failed" in error["what"]


def test_strict_is_content_with_sound_plugins(site: Path) -> None:
    done = slim(site, "plugins", "--format", "quiet", SLIM_STRICT_PLUGINS="1", SLIM_PLUGINS="aa-good,zz-good")
    assert (done.returncode, done.stdout) == (0, "3 loaded, 0 failed\n")


def test_ctrl_c_while_a_plugin_loads_ends_the_command(site: Path, tmp_path: Path) -> None:
    install(tmp_path, "evil-interrupt", {"interrupt": "evil_interrupt"}, "raise KeyboardInterrupt")
    done = slim(tmp_path, "plugins")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_tracing_prints_each_hook_call(site: Path) -> None:
    done = slim(site, "plugins", "--format", "json", SLIM_TRACE_PLUGINS="1", SLIM_PLUGINS="good_a")
    assert "slim: slim_register_models -> 'good_a' (aa-good 1.2.3)" in done.stderr.splitlines()
    json.loads(done.stdout)
