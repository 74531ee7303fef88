"""The plugin host, with plugins that are modules made by the test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pluggy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slim_core
from slim_core import Lazy, hookimpl, hookspecs
from slim_core.discovery import Candidate
from slim_core.errors import PluginError
from slim_core.plugins import Outcome, PluginHost, _choose, load_plugins

#: every registering hook, and the kind that it fills
REGISTERING = {
    "slim_register_techniques": "techniques",
    "slim_register_models": "models",
    "slim_register_datasets": "datasets",
    "slim_register_tasks": "tasks",
    "slim_register_cost_models": "cost_models",
    "slim_register_backends": "backends",
    "slim_register_losses": "losses",
    "slim_register_exporters": "exporters",
    "slim_register_transforms": "transforms",
    "slim_register_op_rules": "op_rules",
    "slim_register_recipes": "recipes",
}


def plugin(name: str, **hooks: Callable[..., Any]) -> ModuleType:
    """Make a module that implements ``hooks``."""
    module = ModuleType(name)
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    return module


def host_of(*modules: ModuleType | Path, strict: bool = False) -> PluginHost:
    return load_plugins(select=[], extra=modules, strict=strict)


def outcome_of(host: PluginHost, name: str) -> Outcome:
    (outcome,) = [outcome for outcome in host.outcomes if outcome.name == name]
    return outcome


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLIM_PLUGINS", "SLIM_STRICT_PLUGINS", "SLIM_TRACE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("hook", "kind"), REGISTERING.items())
def test_a_registering_hook_fills_its_kind(hook: str, kind: str) -> None:
    thing = object()
    host = host_of(plugin("mine", **{hook: lambda register: register("mine.thing", thing)}))
    assert host.registry.get(kind, "mine.thing") is thing
    outcome = outcome_of(host, "mine")
    assert outcome.hooks == (hook,)
    assert outcome.registered == {kind: ("mine.thing",)}


def test_every_registering_hook_is_tested_here() -> None:
    specified = {name for name in vars(hookspecs) if name.startswith("slim_register_")}
    assert specified - {"slim_register_commands"} == set(REGISTERING)


def test_registering_hooks_run_once_each_in_the_order_of_the_specifications() -> None:
    calls: list[str] = []
    hooks = {hook: (lambda register, hook=hook: calls.append(hook)) for hook in reversed(REGISTERING)}
    host_of(plugin("mine", **hooks))
    in_file = [name for name in vars(hookspecs) if name in REGISTERING]
    assert calls == in_file


def test_slim_register_commands_adds_to_the_command_line() -> None:
    class Line:
        def __init__(self) -> None:
            self.adopted: dict[str, list[str]] = {}

        def fresh(self) -> list[str]:
            return []

        def adopt(self, group: list[str], plugin: str) -> tuple[str, ...]:
            self.adopted[plugin] = group
            return tuple(group)

    host = load_plugins(select=[], extra=[plugin("mine", slim_register_commands=lambda cli: cli.append("hello"))])
    host.manager.unregister(name="slim-core")  # its commands want a click group
    host._modules.pop("slim-core")
    line = Line()
    host.register_commands(line)
    host.register_commands(line)  # a second call adds nothing twice
    assert line.adopted == {"mine": ["hello"]}
    assert outcome_of(host, "mine").registered == {"commands": ("hello",)}


def spec_plugin() -> ModuleType:
    """A plugin that specifies ``slim_register_ghosts`` and the hook ``slim_haunt``."""
    marker = pluggy.HookspecMarker("slim")

    def slim_register_ghosts(register: Any) -> None: ...

    def slim_haunt(house: str) -> str: ...

    def add(pluginmanager: pluggy.PluginManager, registry: slim_core.Registry) -> None:
        pluginmanager.add_hookspecs(
            SimpleNamespace(slim_register_ghosts=marker(slim_register_ghosts), slim_haunt=marker(slim_haunt))
        )
        registry.add_kind("ghosts", "ghost")

    return plugin("specs", slim_add_hookspecs=add)


def test_slim_add_hookspecs_lets_other_plugins_implement_new_hooks_also_when_loaded_before() -> None:
    user = plugin(
        "user",
        slim_register_ghosts=lambda register: register("casper", dict),
        slim_haunt=lambda house: f"boo in {house}",
    )
    host = host_of(user, spec_plugin())
    assert host.failures == ()
    assert host.registry.get("ghosts", "casper") is dict
    assert host.manager.hook.slim_haunt(house="the attic") == ["boo in the attic"]


def test_the_new_kind_has_errors_of_its_own_word() -> None:
    host = host_of(spec_plugin(), plugin("user", slim_register_ghosts=lambda register: register("casper", dict)))
    with pytest.raises(slim_core.SlimError, match="unknown ghost 'caspar'") as caught:
        host.registry.get("ghosts", "caspar")
    assert "did you mean 'casper'?" in str(caught.value)


def test_a_hook_of_an_absent_plugin_fails_unless_it_is_optional() -> None:
    strictly = plugin("strictly", slim_haunt=lambda house: None)
    optional = ModuleType("optional")
    optional.slim_haunt = hookimpl(optionalhook=True)(lambda house: None)  # type: ignore[attr-defined]
    host = host_of(strictly, optional)
    assert outcome_of(host, "strictly").status == "failed"
    assert "optionalhook=True" in (outcome_of(host, "strictly").reason or "")
    assert outcome_of(host, "optional").status == "ok"


def test_failed_hookspecs_leave_neither_hook_nor_kind() -> None:
    good = spec_plugin()
    add = good.slim_add_hookspecs

    def add_then_raise(pluginmanager: Any, registry: Any) -> None:
        add(pluginmanager, registry)
        raise RuntimeError("too late")

    host = host_of(plugin("bad", slim_add_hookspecs=add_then_raise))
    assert outcome_of(host, "bad").status == "failed"
    assert not hasattr(host.manager.hook, "slim_haunt")
    assert "ghosts" not in host.registry.kinds()


def test_a_hook_that_raises_later_names_its_plugin() -> None:
    def haunt(house: str) -> str:
        raise ValueError("no ghosts here")

    sound = plugin("sound", slim_haunt=lambda house: "boo")
    host = host_of(spec_plugin(), sound, plugin("broken", slim_haunt=haunt))
    with pytest.raises(ValueError, match="no ghosts here") as caught:
        host.manager.hook.slim_haunt(house="the attic")
    assert caught.value.__notes__ == ["raised by hook slim_haunt of plugin 'broken'"]


def test_the_callback_cannot_be_used_after_the_hook_returned() -> None:
    kept: list[Callable[[str, Any], None]] = []
    host = host_of(plugin("sly", slim_register_models=lambda register: kept.append(register)))
    with pytest.raises(PluginError, match="after the hook had returned"):
        kept[0]("sly/net", dict)
    assert ("models", "sly/net") not in host.registry


def test_the_later_of_two_plugins_with_one_registered_name_fails() -> None:
    def register_it(register: Any) -> None:
        register("same/net", dict)

    def register_two(register: Any) -> None:
        register("other/net", dict)
        register("same/net", list)

    host = host_of(plugin("a", slim_register_models=register_it), plugin("b", slim_register_models=register_two))
    assert host.registry.get("models", "same/net") is dict
    assert ("models", "other/net") not in host.registry
    assert "is registered twice: by plugin 'a' and by plugin 'b'" in (outcome_of(host, "b").reason or "")


def test_hosts_share_nothing() -> None:
    first = host_of(plugin("a", slim_register_models=lambda register: register("a/net", dict)))
    second = host_of()
    assert ("models", "a/net") in first.registry
    assert ("models", "a/net") not in second.registry
    assert not second.manager.has_plugin("a")


def test_the_core_enters_by_the_same_door() -> None:
    core = host_of().outcomes[0]
    assert (core.name, core.distribution, core.status) == ("slim-core", "slim-core", "ok")
    assert "fit" in core.registered["techniques"]


def test_nothing_is_loaded_when_the_selection_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_PLUGINS", "")
    assert [outcome.name for outcome in load_plugins().outcomes if outcome.status == "ok"] == ["slim-core"]


def test_selecting_what_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_PLUGINS", "prun-it-all")
    outcome = outcome_of(load_plugins(), "prun-it-all")
    assert outcome.status == "failed"
    assert "not installed" in (outcome.reason or "")
    with pytest.raises(PluginError, match="not installed"):
        load_plugins(strict=True)


@pytest.mark.parametrize("word", ["my-plug_in", "my-plug-in", "MY_PLUG_IN", "some-distribution", "Some_Distribution"])
def test_plugins_are_selected_by_either_name_however_it_is_written(word: str) -> None:
    found = [
        Candidate("my_plug_in", "some-distribution", "1.0", dict),
        Candidate("other", "other-distribution", "1.0", dict),
    ]
    wanted, left_out = _choose(found, [word])
    assert wanted == found[:1]
    assert [(outcome.name, outcome.status) for outcome in left_out] == [("other", "skipped")]


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("yes", True), ("0", False), ("", False), ("false", False)])
def test_switches_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, strict: bool) -> None:
    monkeypatch.setenv("SLIM_STRICT_PLUGINS", value)
    bad = plugin("bad", slim_register_models=lambda nonsense: None)
    if strict:
        with pytest.raises(PluginError, match="bad hook signature"):
            load_plugins(select=[], extra=[bad])
    else:
        assert outcome_of(load_plugins(select=[], extra=[bad]), "bad").status == "failed"


def test_strict_raises_and_keeps_the_cause() -> None:
    def explode(register: Any) -> None:
        raise ValueError("boom")

    with pytest.raises(PluginError, match="plugin 'bad' failed: registering: ValueError: boom") as caught:
        host_of(plugin("bad", slim_register_models=explode), strict=True)
    assert isinstance(caught.value.__cause__, ValueError)


def test_extra_takes_dotted_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra_by_name.py").write_text(
        "from slim_core import hookimpl\n@hookimpl\ndef slim_register_models(register): register('by/name', dict)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    host = load_plugins(select=[], extra=["extra_by_name"])
    assert outcome_of(host, "extra_by_name").registered == {"models": ("by/name",)}


# --- a project's own file -------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_project", raising=False)

    def write(text: str) -> Path:
        path = tmp_path / "my_project.py"
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return write


def test_decorators_register_every_kind(project: Callable[[str], Path]) -> None:
    kinds = (
        "technique",
        "model",
        "dataset",
        "task",
        "loss",
        "cost_model",
        "backend",
        "exporter",
        "transform",
        "op_rule",
    )
    blocks = [f"@slim_core.register.{kind}('my.{kind}')\ndef a_{kind}(): return '{kind}'\n" for kind in kinds]
    host = host_of()
    outcome = host.load_file(project("import slim_core\n\n" + "\n".join(blocks)))
    assert outcome.name == "my_project.py"
    registered = {name for names in outcome.registered.values() for name in names}
    assert registered == {f"my.{kind}" for kind in kinds}
    assert host.registry.get("losses", "my.loss")() == "loss"


def test_one_object_may_have_several_names(project: Callable[[str], Path]) -> None:
    host = host_of()
    host.load_file(
        project("""
        import slim_core

        @slim_core.register.model("my/net")
        @slim_core.register.model("my/other")
        def net(): ...
        """)
    )
    assert host.registry.get("models", "my/net") is host.registry.get("models", "my/other")


def test_a_subclass_is_not_registered_with_its_parent(project: Callable[[str], Path]) -> None:
    host = host_of()
    outcome = host.load_file(
        project("""
        import slim_core

        @slim_core.register.task("my/task")
        class Task: ...

        class Special(Task): ...
        """)
    )
    assert outcome.registered == {"tasks": ("my/task",)}
    assert host.registry.get("tasks", "my/task").__name__ == "Task"


def test_a_file_may_use_kinds_that_plugins_added(project: Callable[[str], Path]) -> None:
    host = host_of(spec_plugin())
    host.load_file(project("import slim_core\n@slim_core.register.named('ghosts', 'casper')\ndef casper(): ...\n"))
    assert ("ghosts", "casper") in host.registry


def test_a_file_may_implement_hooks_and_import_its_neighbours(project: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "my_neighbour.py").write_text("NAME = 'my/net'\n")
    host = host_of()
    host.load_file(
        project("""
        from dataclasses import dataclass
        from my_neighbour import NAME
        from slim_core import hookimpl

        @dataclass
        class Net:
            width: int = 3

        @hookimpl
        def slim_register_models(register):
            register(NAME, Net)
        """)
    )
    assert host.registry.get("models", "my/net")().width == 3


def test_loading_one_file_twice_registers_once(project: Callable[[str], Path]) -> None:
    path = project("import slim_core\n@slim_core.register.model('my/net')\ndef net(): ...\n")
    host = host_of()
    assert host.load_file(path) is host.load_file(path)


def test_a_later_host_sees_what_was_edited_meanwhile(project: Callable[[str], Path]) -> None:
    text = "import slim_core\n@slim_core.register.model('my/net')\ndef net(): return {}\n"
    assert host_of(project(text.format(1))).registry.get("models", "my/net")() == 1
    assert host_of(project(text.format("'two'"))).registry.get("models", "my/net")() == "two"


def test_a_worker_process_can_unpickle_what_the_file_defines(project: Callable[[str], Path]) -> None:
    path = project("import slim_core\n@slim_core.register.model('my/net')\ndef net(): return 'built'\n")
    built = host_of(path).registry.get("models", "my/net")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(built).result(timeout=60) == "built"


def test_a_file_named_like_an_installed_module_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("import slim_core\n@slim_core.register.model('my/net')\ndef net(): ...\n")
    assert host_of(tmp_path / "json.py").registry.names("models") == ("my/net",)
    assert sys.modules["json"] is json


def test_two_files_of_one_name_both_load(project: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "my_project.py"
    other.write_text("import slim_core\n@slim_core.register.model('other/net')\ndef net(): ...\n")
    host = host_of()
    host.load_file(project("import slim_core\n@slim_core.register.model('my/net')\ndef net(): ...\n"))
    host.load_file(other)
    assert host.registry.names("models") == ("my/net", "other/net")


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("import slim_core\n\nslim_core.register.nothing('x')\n", 3, "AttributeError"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
        ("import sys\nsys.exit(4)\n", 2, "sys.exit(4)"),
        ("def helper():\n    return 1 / 0\n\nhelper()\n", 2, "ZeroDivisionError"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),  # not the line inside json
    ],
)
def test_errors_in_the_file_name_file_and_line(project: Callable[[str], Path], text: str, line: int, what: str) -> None:
    path = project(text)
    host = host_of()
    before = set(sys.modules)
    with pytest.raises(PluginError) as caught:
        host.load_file(path)
    assert caught.value.where == f"{path}:{line}"
    assert what in caught.value.what
    assert not [name for name in set(sys.modules) - before if "my_project" in name]


def test_a_clash_in_the_file_takes_everything_of_it_back(project: Callable[[str], Path]) -> None:
    host = host_of(plugin("a", slim_register_models=lambda register: register("same/net", dict)))
    path = project("""
        import slim_core

        @slim_core.register.model("my/net")
        def mine(): ...

        @slim_core.register.model("same/net")
        def same(): ...
        """)
    with pytest.raises(PluginError, match=r"is registered twice: by plugin 'a' and by plugin 'my_project\.py'"):
        host.load_file(path)
    assert host.registry.names("models") == ("same/net",)
    path.write_text(path.read_text().replace("same/net", "mine/too"))
    assert host.load_file(path).registered == {"models": ("my/net", "mine/too")}  # mended: it loads in the same host


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="there is no file"):
        host_of().load_file(tmp_path / "absent.py")


def test_a_decorator_refuses_what_cannot_carry_a_mark() -> None:
    with pytest.raises(PluginError, match="decorate a function or a class"):
        slim_core.register.model("x")(3)


def test_lazy_references_are_imported_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_target.py").write_text("def net(): return 'built'\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = plugin("mine", slim_register_models=lambda register: register("my/net", Lazy("lazy_target", "net")))
    host = host_of(module)
    assert "lazy_target" not in sys.modules
    assert host.registry.get("models", "my/net")() == "built"


@pytest.mark.parametrize("target", [Lazy("a_module_that_is_not_there", "net"), Lazy("json", "net")])
def test_a_lazy_reference_to_nothing_names_the_plugin(target: Lazy) -> None:
    host = host_of(plugin("mine", slim_register_models=lambda register: register("my/net", target)))
    with pytest.raises(PluginError, match="model 'my/net' of plugin 'mine' cannot be imported"):
        host.registry.get("models", "my/net")


def test_every_hook_is_named_in_some_test() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    hooks = [name for name in vars(hookspecs) if name.startswith("slim_")]
    assert [hook for hook in hooks if hook not in text] == []


# --- any mixture ----------------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., None]:
    def hook(register: Callable[[str, Any], None]) -> None:
        register("evil/before", dict)
        raise error

    return hook


def evil(position: int, kind: str) -> ModuleType:
    name = f"evil{position}"
    if kind == "raises":
        return plugin(name, slim_register_losses=_raise(ValueError("evil")))
    if kind == "exits":
        return plugin(name, slim_register_models=_raise(SystemExit(1)))
    if kind == "clashes":
        return plugin(name, slim_register_models=lambda register: [register("evil/own", 1), register("core.taken", 1)])
    if kind == "unknown":
        return plugin(name, slim_register_nothing=lambda register: None)
    return plugin(name, slim_register_models=lambda register, extra: None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["good", "raises", "exits", "clashes", "unknown", "signature"]), max_size=8))
def test_in_any_mixture_the_sound_load_and_the_others_leave_nothing(kinds: list[str]) -> None:
    modules = [plugin("owner", slim_register_models=lambda register: register("core.taken", dict))]
    for position, kind in enumerate(kinds):
        if kind == "good":
            name = f"good{position}"
            modules.append(plugin(name, slim_register_models=lambda register, name=name: register(f"{name}/net", dict)))
        else:
            modules.append(evil(position, kind))
    host = host_of(*modules)
    assert {o.name for o in host.failures} == {f"evil{i}" for i, kind in enumerate(kinds) if kind != "good"}
    good = {f"good{i}/net" for i, kind in enumerate(kinds) if kind == "good"}
    assert set(host.registry.names("models")) == good | {"core.taken"}
    assert host.registry.names("losses") == ()
    assert {host.manager.get_name(module) for module in host.manager.get_plugins()} == {
        o.name for o in host.outcomes if o.status == "ok"
    }
