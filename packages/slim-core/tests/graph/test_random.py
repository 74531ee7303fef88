"""Random networks and random choices of what stays: shapes as predicted, outputs as the masked original's."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_core.graph import analyse, record, resize_graph, shrink
from slim_core.testing.oracle import assert_equals_masked_original
from slim_core.testing.strategies import kept_plans, networks

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


def agree(network, data) -> None:
    coupling = analyse(network.module, network.example_inputs)
    kept = data.draw(kept_plans(coupling))
    smaller = shrink(copy.deepcopy(network.module), coupling, kept)
    assert_equals_masked_original(network.module, smaller, coupling, kept, network.example_inputs, rtol=1e-9)
    predicted = [value.shape for value in resize_graph(coupling, kept).values]
    assert [value.shape for value in record(smaller, network.example_inputs).values] == predicted


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(network=networks(), data=st.data())
def test_a_random_network_agrees(network, data):
    agree(network, data)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
@given(network=networks(max_blocks=6), data=st.data())
def test_many_random_networks_agree(network, data):
    agree(network, data)


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET)
@given(network=networks(), data=st.data())
def test_analysis_is_deterministic(network, data):
    first, second = (analyse(network.module, network.example_inputs) for _ in range(2))
    assert [g.name for g in first.groups] == [g.name for g in second.groups]
    for left, right in zip(first.groups, second.groups, strict=True):
        assert [(m.name, m.dim, m.kind, m.indices.tolist()) for m in left.members] == [
            (m.name, m.dim, m.kind, m.indices.tolist()) for m in right.members
        ]


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(network=networks())
def test_every_index_is_either_in_one_group_or_frozen(network):
    coupling = analyse(network.module, network.example_inputs)
    counted: dict[tuple[str, int], list[int]] = {}
    for group in coupling.groups:
        for member in group.members:
            counted.setdefault((member.name, member.dim), []).extend(member.indices.ravel().tolist())
    frozen: dict[tuple[str, int], int] = {}
    for entry in coupling.frozen:
        frozen[entry.name, entry.dim] = frozen.get((entry.name, entry.dim), 0) + entry.count
    shapes = {v.names[0]: v.shape for v in coupling.graph.values if v.kind == "parameter"}
    for name, shape in shapes.items():
        for dim, size in enumerate(shape):
            free = counted.get((name, dim), [])
            assert len(set(free)) == len(free)
            is_kernel = dim >= 2 and len(shape) > 2
            if size > 1 and not is_kernel:
                assert len(free) + frozen.get((name, dim), 0) == size, (name, dim)
