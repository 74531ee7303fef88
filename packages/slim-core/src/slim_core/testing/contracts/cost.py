"""What every cost model promises: a figure in a unit, which does not rise when a model gets smaller."""
# ruff: noqa: S101

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.graph import Graph, analyse, record, resize_graph
from slim_core.testing.workloads import TinyNet, tiny_workload
from slim_core.workload import Inputs


class CostModelContract:
    """Inherit this, and give the fixture ``cost_model``: an object with ``unit`` and ``total(graph)``."""

    @pytest.fixture
    def cost_model(self) -> Any:
        raise NotImplementedError("give a fixture `cost_model` that returns the cost model")

    def test_it_names_its_unit(self, cost_model: Any) -> None:
        assert isinstance(cost_model.unit, str)
        assert cost_model.unit.strip()

    def test_the_total_is_a_positive_number(self, cost_model: Any) -> None:
        total = cost_model.total(_graph(TinyNet()))
        assert isinstance(total, int | float)
        assert math.isfinite(total)
        assert total > 0

    def test_the_same_graph_costs_the_same(self, cost_model: Any) -> None:
        graph = _graph(TinyNet())
        assert cost_model.total(graph) == cost_model.total(graph) == cost_model.total(_graph(TinyNet()))

    def test_a_wider_model_costs_no_less(self, cost_model: Any) -> None:
        assert cost_model.total(_graph(TinyNet(8))) <= cost_model.total(_graph(TinyNet(32)))

    def test_a_pruned_graph_costs_no_more_and_needs_no_new_recording(self, cost_model: Any) -> None:
        coupling = analyse(TinyNet(), _inputs())
        kept = {group.name: np.arange(group.units // 2) for group in coupling.groups}
        assert kept
        smaller = resize_graph(coupling, kept)
        assert cost_model.total(smaller) <= cost_model.total(coupling.graph)

    def test_a_model_without_layers_is_no_accident(self, cost_model: Any) -> None:
        total = cost_model.total(record(nn.Identity(), (torch.zeros(1, 3),)))
        assert math.isfinite(total)
        assert total >= 0


def _inputs() -> Inputs:
    return tiny_workload().example_inputs


def _graph(model: nn.Module) -> Graph:
    return record(model, _inputs())
