"""Resizing by counts equals the core's resizing by indices, whatever units stay."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_core.graph import analyse, resize_graph
from slim_core.testing.networks import Network
from slim_core.testing.strategies import kept_plans, networks
from slim_prune.allocation.resizing import Resizer


@settings(
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(network=networks(), data=st.data())
def test_it_equals_the_cores_for_any_units(network: Network, data: st.DataObject) -> None:
    coupling = analyse(network.module, network.example_inputs)
    resizer = Resizer(coupling, few=1)
    for _ in range(3):
        kept = data.draw(kept_plans(coupling))
        expected = resize_graph(coupling, kept)
        actual = resizer.graph({name: len(units) for name, units in kept.items()})
        assert actual.values == expected.values
        assert [dict(node.args) for node in actual.nodes] == [dict(node.args) for node in expected.nodes]


def test_groups_that_are_not_named_stay_whole() -> None:
    from slim_core.testing.workloads import tiny_workload

    workload = tiny_workload()
    coupling = analyse(workload.model, workload.example_inputs)
    resizer = Resizer(coupling, few=0)
    assert resizer.graph({}) is coupling.graph
    assert resizer.graph({"hidden": 5}).values == resize_graph(coupling, {"hidden": np.arange(5)}).values
    assert resizer.graph({group.name: group.units for group in coupling.groups}) is coupling.graph
