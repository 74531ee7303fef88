"""Rules that plugins register, and rules that fail."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slim_core.errors import PluginError
from slim_core.graph import analyse
from slim_core.graph.rules import builtin_rules, find_rule
from slim_core.graph.rules.base import UnsupportedError
from slim_core.registry import Registry

INPUTS = (torch.zeros(2, 4),)


def passing(node, ctx) -> None:
    ctx.set(ctx.dims(node.args["x"]), ctx.zero(node.args["x"]))


def unsupported(node, ctx) -> None:
    raise UnsupportedError("not today")


def broken(node, ctx) -> None:
    raise KeyError("oops")


def wrong_size(node, ctx) -> None:
    ctx.set((None, ctx.fresh(3)))


@pytest.fixture(scope="module")
def operator():
    library = torch.library.Library("slim_test_rules", "FRAGMENT")
    library.define("same(Tensor x) -> Tensor")
    library.impl("same", lambda x: x * 1, "CompositeExplicitAutograd")
    yield torch.ops.slim_test_rules.same
    del library


@pytest.fixture
def model(operator):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.two(operator(self.one(x)))

    return Model()


def registry(rule) -> Registry:
    filled = Registry()
    filled.register("op_rules", "slim_test_rules.same", rule, plugin="test")
    return filled


def test_a_registered_rule_frees_its_operator(model, units):
    assert units(analyse(model, INPUTS)) == {}
    assert units(analyse(model, INPUTS, registry=registry(passing))) == {"one": 6}


def test_a_rule_may_give_up(model, reasons, units):
    coupling = analyse(model, INPUTS, registry=registry(unsupported))
    assert units(coupling) == {}
    assert "not today" in reasons(coupling, "one.weight")


def test_a_rule_that_gives_wrong_sizes_freezes(model, reasons):
    found = reasons(analyse(model, INPUTS, registry=registry(wrong_size)), "one.weight")
    assert any("gives sizes [None, 3] to an output of shape [2, 6]" in text for text in found)


def test_a_broken_rule_is_named(model):
    with pytest.raises(PluginError, match=r"rule of slim_test_rules.same.default fails: KeyError: 'oops'") as caught:
        analyse(model, INPUTS, registry=registry(broken))
    assert "broken" in caught.value.hint
    assert "operator(self.one(x))" in caught.value.where


def test_rules_are_found_by_overload_then_by_operator_then_by_the_functional_form():
    rules = {"aten.max.other": passing, "aten.max": broken, "aten.add": unsupported}
    assert find_rule(rules, "aten.max.other") is passing
    assert find_rule(rules, "aten.max.dim") is broken
    assert find_rule(rules, "aten.add_.Tensor") is unsupported
    assert find_rule(rules, "aten.sub.Tensor") is None


def test_every_rule_of_the_core_names_an_operator_of_torch_or_is_a_known_alias():
    missing = [
        name for name in builtin_rules()
        if not hasattr(torch.ops.aten, name.split(".")[1]) and not hasattr(torch.ops.aten, name.split(".")[1] + "_")
    ]  # fmt: skip
    assert missing == []
