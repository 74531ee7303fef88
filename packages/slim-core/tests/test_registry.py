"""Names, their owners, and the errors for names that nobody registered."""

from __future__ import annotations

from pathlib import Path

import pytest

from slim_core.errors import PluginError, SlimError, UnknownNameError
from slim_core.registry import KINDS, Lazy, Registry


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.register("models", "zoo/resnet18", dict, plugin="zoo")
    made.register("models", "zoo/vgg16", list, plugin="zoo")
    made.register("models", "mine/net", set, plugin="mine")
    made.register("losses", "mine.loss", sum, plugin="mine")
    return made


def test_what_was_registered_comes_back(registry: Registry) -> None:
    assert registry.get("models", "zoo/resnet18") is dict
    assert ("models", "zoo/resnet18") in registry
    assert ("models", "zoo/resnet19") not in registry


def test_names_are_sorted_and_entries_know_their_plugin(registry: Registry) -> None:
    assert registry.names("models") == ("mine/net", "zoo/resnet18", "zoo/vgg16")
    assert [(entry.name, entry.plugin) for entry in registry.entries("models")] == [
        ("mine/net", "mine"),
        ("zoo/resnet18", "zoo"),
        ("zoo/vgg16", "zoo"),
    ]


def test_registered_by_lists_a_plugins_names_by_kind(registry: Registry) -> None:
    assert registry.registered_by("mine") == {"models": ("mine/net",), "losses": ("mine.loss",)}
    assert registry.registered_by("nobody") == {}


def test_forgetting_a_plugin_takes_all_of_its_names_and_no_other(registry: Registry) -> None:
    registry.forget("mine")
    assert registry.names("models") == ("zoo/resnet18", "zoo/vgg16")
    assert registry.names("losses") == ()
    registry.register("models", "mine/net", frozenset, plugin="other")
    assert registry.get("models", "mine/net") is frozenset


def test_a_name_twice_is_an_error_that_names_both_plugins(registry: Registry) -> None:
    with pytest.raises(SlimError, match="model 'mine/net' is registered twice: by plugin 'mine' and by plugin 'zoo'"):
        registry.register("models", "mine/net", dict, plugin="zoo")
    assert registry.get("models", "mine/net") is set


@pytest.mark.parametrize("name", ["", "two words", "tab\there", "line\n", None, 3])
def test_impossible_names_are_refused(registry: Registry, name: object) -> None:
    with pytest.raises(SlimError, match="cannot be the name of a model"):
        registry.register("models", name, dict, plugin="mine")  # type: ignore[arg-type]


def test_none_is_refused(registry: Registry) -> None:
    with pytest.raises(SlimError, match="registered as None"):
        registry.register("models", "mine/none", None, plugin="mine")


def test_an_unknown_name_gets_the_close_match_and_what_is_known(registry: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.get("models", "zoo/resnet81")
    assert caught.value.what == "unknown model 'zoo/resnet81'"
    assert "did you mean 'zoo/resnet18'" in str(caught.value)
    assert "known: mine/net, zoo/resnet18, zoo/vgg16" in str(caught.value)


def test_a_long_list_of_names_does_not_hide_the_close_match(registry: Registry) -> None:
    for width in range(20):
        registry.register("models", f"wide/net{width}", dict, plugin="wide")
    registry.installed.add("slim-zoo")
    with pytest.raises(UnknownNameError) as caught:
        registry.get("models", "zoo/resnet81")
    assert caught.value.hint == "did you mean 'zoo/resnet18'?"
    with pytest.raises(UnknownNameError, match="known: mine/net, wide/net0"):
        registry.get("models", "????????")


@pytest.mark.parametrize(
    ("kind", "name", "package"),
    [
        ("techniques", "prune.uniform", "slim-prune"),
        ("techniques", "quant.ptq", "slim-quant"),
        ("techniques", "distill.soft", "slim-distill"),
        ("techniques", "nas.search", "slim-nas"),
        ("models", "zoo/alexnet", "slim-zoo"),
        ("datasets", "digits", "slim-zoo"),
        ("cost_models", "latency:my-phone", "slim-latency"),
        ("backends", "onnxruntime", "slim-latency"),
        ("transforms", "prune.channels", "slim-prune"),
    ],
)
def test_a_name_of_an_absent_package_says_what_to_install(kind: str, name: str, package: str) -> None:
    with pytest.raises(UnknownNameError, match=f"pip install {package} "):
        Registry().get(kind, name)


def test_nobody_is_told_to_install_what_is_installed(registry: Registry) -> None:
    registry.installed.add("slim-zoo")
    with pytest.raises(UnknownNameError) as caught:
        registry.get("models", "zoo/alexnet")
    assert "pip install" not in str(caught.value)


def test_an_empty_kind_says_so() -> None:
    with pytest.raises(UnknownNameError, match="none is registered; `slim plugins` lists what is installed"):
        Registry().get("tasks", "classification")


def test_a_plugins_own_kind_comes_and_goes() -> None:
    registry = Registry()
    registry.add_kind("importances", "importance criterion", {"prune.": "slim-prune"})
    registry.register("importances", "l1", abs, plugin="prune")
    registry.add_kind("importances", "something else")  # a second time changes nothing
    with pytest.raises(UnknownNameError, match="unknown importance criterion 'l7'"):
        registry.get("importances", "l7")
    registry.remove_kind("importances")
    with pytest.raises(SlimError, match="no kind 'importances'"):
        registry.names("importances")


def test_registries_share_no_kinds() -> None:
    Registry().add_kind("ghosts", "ghost")
    assert Registry().kinds() == tuple(KINDS)


def test_an_unknown_kind_lists_the_kinds() -> None:
    with pytest.raises(SlimError, match="no kind 'model'; it has: techniques, models"):
        Registry().get("model", "x")


def test_a_lazy_value_is_resolved_when_it_is_asked_for() -> None:
    registry = Registry()
    registry.register("losses", "mine.dumps", Lazy("json", "dumps"), plugin="mine")
    assert registry.entries("losses")[0].value == Lazy("json", "dumps")
    assert registry.get("losses", "mine.dumps")([1]) == "[1]"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("assert False", "AssertionError"),
        ("def (", "SyntaxError"),
        ("import a_module_that_is_not_there", "No module named"),
        ("other = 1", "has no attribute 'thing'"),
    ],
)
def test_whatever_the_module_of_a_lazy_value_raises_names_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    name = f"lazy_module_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    registry.register("losses", "mine.thing", Lazy(name, "thing"), plugin="mine")
    with pytest.raises(
        PluginError, match=f"loss 'mine.thing' of plugin 'mine' cannot be imported: .*{words}"
    ) as caught:
        registry.get("losses", "mine.thing")
    assert caught.value.where == f"{name}:thing"


def test_an_error_that_says_what_to_do_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "from slim_core.errors import SlimError\nraise SlimError('needs an extra', hint='install it')"
    (tmp_path / "lazy_module_slim.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    registry.register("losses", "mine.thing", Lazy("lazy_module_slim", "thing"), plugin="mine")
    with pytest.raises(SlimError, match="needs an extra"):
        registry.get("losses", "mine.thing")
