"""Random networks are deterministic, runnable, varied and small; random plans are valid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_core.graph.types import ChannelGroup, Coupling, Graph, Member
from slim_core.testing.networks import BLOCKS, HEADS, BlockSpec, NetworkSpec, build
from slim_core.testing.oracle import outputs_of
from slim_core.testing.strategies import kept_plans, network_specs, networks


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in BLOCKS.items() for kind in kinds])
@pytest.mark.parametrize("start", range(4))
def test_every_block_runs_for_every_choice_of_numbers(family: str, kind: str, start: int) -> None:
    for width in (4, 8, 12, 16):
        numbers = tuple((start + 5 * position + width // 4) % 12 for position in range(6))
        network = build(NetworkSpec(family, width, (BlockSpec(kind, numbers), BlockSpec(kind, numbers)), head=start))
        for output in outputs_of(network.module, network.example_inputs):
            assert torch.isfinite(output).all()
            assert output.std() > 0


@pytest.mark.parametrize(
    ("family", "head"), [(family, head) for family, heads in HEADS.items() for head in range(len(heads))]
)
def test_every_head_gives_outputs_for_each_sample(family: str, head: int) -> None:
    network = build(NetworkSpec(family, 8, (), head))
    batch = network.example_inputs[0].shape[0]
    assert all(output.shape[0] == batch for output in outputs_of(network.module, network.example_inputs))


@settings(max_examples=25, deadline=None)
@given(spec=network_specs())
def test_a_spec_rebuilds_the_same_bits_and_leaves_the_global_generator_alone(spec: NetworkSpec) -> None:
    before = torch.get_rng_state()
    first, second = build(spec), build(spec)
    assert torch.equal(torch.get_rng_state(), before)
    for left, right in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(first.example_inputs[0], second.example_inputs[0])
    assert repr(spec) in repr(first)


@settings(max_examples=25, deadline=None)
@given(network=networks(kinds=("conv", "residual")))
def test_kinds_restrict_what_is_drawn(network) -> None:
    assert {block.kind for block in network.spec.blocks} <= {"conv", "residual"}


@settings(max_examples=25, deadline=None)
@given(network=networks())
def test_networks_stay_tiny(network) -> None:
    assert sum(parameter.numel() for parameter in network.module.parameters()) < 200_000


@settings(max_examples=50, deadline=None)
@given(data=st.data(), units=st.lists(st.integers(1, 9), min_size=1, max_size=4), least=st.integers(1, 3))
def test_plans_keep_enough_sorted_unique_units(data, units: list[int], least: int) -> None:
    groups = tuple(
        ChannelGroup(f"g{n}", count, (Member(f"g{n}.weight", 0, np.arange(count)[:, None], "out", f"g{n}"),))
        for n, count in enumerate(units)
    )
    coupling = Coupling(Graph((), (), (), (), "meta", "Net"), groups, (), (), {})
    kept = data.draw(kept_plans(coupling, least=least))
    assert set(kept) == {group.name for group in groups}
    for group in groups:
        chosen = kept[group.name]
        assert min(least, group.units) <= len(chosen) <= group.units
        assert np.all(np.diff(chosen) > 0)
        assert chosen[0] >= 0
        assert chosen[-1] < group.units
