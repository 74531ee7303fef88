"""Modes: what a block in evaluation mode leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from slim_core.checkpoint.parity import untouched
from slim_core.graph.export import export_graph
from slim_core.modes import evaluating

Context = Callable[[nn.Module], AbstractContextManager[None]]


class Merging(nn.Module):
    """Keeps its mode in something else than the flag."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x


def drops(model: nn.Module) -> bool:
    return bool((model(torch.ones(4, 100)) == 0).any())


@pytest.mark.parametrize("context", [evaluating, untouched])
@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_an_exported_graph_inside_a_model_gets_back_what_it_does(context: Context, outer: bool, inner: bool) -> None:
    graph = export_graph(nn.Sequential(nn.Dropout(0.5)), (torch.ones(2, 100),))
    model = nn.Sequential(graph, nn.Identity()).train(outer)
    graph.train(inner)
    with context(model):
        assert not drops(model)
    assert (model.training, graph.training, model[1].training) == (outer, inner, outer)
    assert drops(model) is inner


@pytest.mark.parametrize("context", [evaluating, untouched])
def test_flags_differ_from_module_to_module_and_come_back_after_an_error(context: Context) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), Merging()), Merging())
    model[1].eval()
    before = [module.training for module in model.modules()]
    with context(model):
        assert not any(module.training for module in model.modules())
        assert model[2].merged
    assert [module.training for module in model.modules()] == before
    with pytest.raises(TypeError), context(model):
        model(torch.ones(2, 2), "one argument too many")
    assert [module.training for module in model.modules()] == before
    assert (model[1][1].merged, model[2].merged) == (True, False)


@pytest.mark.parametrize("context", [evaluating, untouched])
def test_a_graph_that_refuses_modes_is_left_as_it_is(context: Context) -> None:
    refusing = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),)).module()
    model = nn.Sequential(refusing, nn.Dropout())
    with context(model):
        assert not model[1].training
    assert model[1].training
