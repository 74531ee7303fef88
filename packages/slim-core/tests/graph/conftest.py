"""What the tests of the graph share: groups as plain data, and the masked-original oracle over random plans."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.graph import Coupling, analyse, record, resize_graph, shrink
from slim_core.testing.oracle import assert_equals_masked_original


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def units() -> Callable[[Coupling], dict[str, int]]:
    """Return units by group name."""
    return lambda coupling: {group.name: group.units for group in coupling.groups}


@pytest.fixture
def members() -> Callable[[Coupling, str], dict[tuple[str, int], list[list[int]]]]:
    """Return the indices of each unit, by parameter and dimension."""
    return lambda coupling, name: {
        (member.name, member.dim): member.indices.tolist() for member in coupling.group(name).members
    }


@pytest.fixture
def reasons() -> Callable[[Coupling, str], set[str]]:
    """Return the reasons for which a parameter is frozen."""
    return lambda coupling, name: {entry.reason for entry in coupling.frozen if entry.name == name}


@pytest.fixture
def proves() -> Callable[..., Coupling]:
    """Analyse a model, remove random units and compare with the masked original; return the coupling."""

    def prove(model: nn.Module, inputs: Any, *, plans: int = 3, least_groups: int = 1) -> Coupling:
        model.eval()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    module.running_mean.normal_(0, 0.5)
                    module.running_var.uniform_(0.5, 1.5)
        coupling = analyse(model, inputs)
        assert len(coupling.groups) >= least_groups, [str(entry) for entry in coupling.frozen]
        for seed in range(plans):
            rng = np.random.default_rng(seed)
            kept = {
                group.name: np.sort(rng.permutation(group.units)[: rng.integers(1, group.units + 1)])
                for group in coupling.groups
            }
            smaller = shrink(copy.deepcopy(model), coupling, kept)
            assert_equals_masked_original(model, smaller, coupling, kept, inputs, rtol=1e-10)
            predicted = [value.shape for value in resize_graph(coupling, kept).values]
            assert [value.shape for value in record(smaller, inputs).values] == predicted
        return coupling

    return prove
