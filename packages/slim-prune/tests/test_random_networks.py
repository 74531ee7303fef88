"""Random networks and random plans: pruned equals masked, in place equals copy equals replay, rollback restores."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_core.graph import analyse, shrink
from slim_core.testing.networks import Network, build
from slim_core.testing.oracle import assert_equals_masked_original, assert_outputs_close, outputs_of
from slim_core.testing.strategies import kept_plans, networks
from slim_prune.edits import Edits, edits_of, state_of
from slim_prune.masking import masked_copy
from slim_prune.prune_plan import PrunePlan, ties_of
from slim_prune.record import ChannelsReplayer, to_transform
from slim_prune.rollback import Rollback
from slim_prune.surgery import copy_and_operate, operate

relaxed = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def drawn(data: st.DataObject, network: Network) -> tuple[dict, Edits]:
    coupling = analyse(network.module, network.example_inputs)
    kept = data.draw(kept_plans(coupling))
    return kept, edits_of(network.module, coupling, kept)


@pytest.mark.slow
@settings(relaxed, max_examples=200)
@given(network=networks(), data=st.data())
def test_the_pruned_network_equals_the_masked_original(network: Network, data: st.DataObject) -> None:
    coupling = analyse(network.module, network.example_inputs)
    kept = data.draw(kept_plans(coupling))
    pruned = copy_and_operate(network.module, edits_of(network.module, coupling, kept))
    assert_equals_masked_original(network.module, pruned, coupling, kept, network.example_inputs, rtol=1e-5)


@settings(relaxed, max_examples=40)
@given(network=networks(max_blocks=3), data=st.data())
def test_all_ways_of_cutting_agree(network: Network, data: st.DataObject) -> None:
    """A copy, in place, the core's ``shrink``, and the replay of the record on the meta device."""
    kept, edits = drawn(data, network)
    expected = copy_and_operate(network.module, edits)
    in_place = copy.deepcopy(network.module)
    operate(in_place, edits)
    shrunk = copy.deepcopy(network.module)
    shrink(shrunk, analyse(network.module, network.example_inputs), kept)
    with torch.device("meta"):
        fresh = build(network.spec).module
    replayed = ChannelsReplayer().replay(fresh, to_transform(edits), network.example_inputs)
    replayed.load_state_dict(expected.state_dict(), assign=True)
    for other in (in_place, shrunk, replayed):
        assert ties_of(state_of(other)) == ties_of(state_of(expected)) or other is replayed
        for (name, tensor), (again, same) in zip(
            expected.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert name == again
            assert torch.equal(tensor, same), name
    first = outputs_of(expected, network.example_inputs)
    assert_outputs_close(outputs_of(replayed, network.example_inputs), first, rtol=0)


@settings(relaxed, max_examples=25)
@given(network=networks(families=("tokens",), kinds=("attention", "torch_attention"), max_blocks=2), data=st.data())
def test_attributes_of_attention_are_replayed(network: Network, data: st.DataObject) -> None:
    """Head counts and widths that the user's own modules remember go through the record too."""
    _, edits = drawn(data, network)
    pruned = copy_and_operate(network.module, edits)
    replayed = ChannelsReplayer().replay(build(network.spec).module, to_transform(edits), network.example_inputs)
    replayed.load_state_dict(pruned.state_dict())
    first = outputs_of(pruned, network.example_inputs)
    assert_outputs_close(outputs_of(replayed, network.example_inputs), first, rtol=0)


@settings(relaxed, max_examples=40)
@given(network=networks(max_blocks=3), data=st.data())
def test_the_mask_of_the_edits_is_the_mask_of_the_coupling(network: Network, data: st.DataObject) -> None:
    _, edits = drawn(data, network)
    masked = outputs_of(masked_copy(network.module, edits), network.example_inputs, double=True)
    pruned = outputs_of(copy_and_operate(network.module, edits), network.example_inputs, double=True)
    assert_outputs_close(pruned, masked, rtol=1e-5)


@settings(relaxed, max_examples=40)
@given(network=networks(max_blocks=3), data=st.data(), adam=st.booleans())
def test_rollback_restores_every_bit(network: Network, data: st.DataObject, adam: bool) -> None:
    _, edits = drawn(data, network)
    model = network.module
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters) if adam else torch.optim.SGD(parameters, 0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        sum(output.square().mean() for output in training_outputs(model, network)).backward()
        optimizer.step()

    step()
    before, optimizer_before = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    attributes = {
        path: {k: v for k, v in vars(m).items() if type(v) in (int, tuple)} for path, m in model.named_modules()
    }
    undo = Rollback(model, edits, optimizer=optimizer)
    step()
    undo.rollback()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    after = optimizer.state_dict()
    assert after["param_groups"] == optimizer_before["param_groups"]
    for number, entries in optimizer_before["state"].items():
        for key, value in entries.items():
            same = after["state"][number][key]
            assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
    assert attributes == {
        path: {k: v for k, v in vars(m).items() if type(v) in (int, tuple)} for path, m in model.named_modules()
    }


def training_outputs(model, network):
    from slim_core.workload import call, tensors_of

    return tensors_of(call(model.train(), network.example_inputs))


@settings(relaxed, max_examples=25)
@given(network=networks(max_blocks=3), share=st.sampled_from([0.4, 0.6, 0.8]), cost=st.sampled_from(["macs", "params"]))
def test_plans_under_a_budget_hold_it_and_survive_json(network: Network, share: float, cost: str) -> None:
    import slim_prune
    from slim_core.errors import BudgetError
    from slim_core.graph import record
    from slim_core.graph.cost import cost as count

    try:
        plan = slim_prune.plan(network.module, network.example_inputs, {cost: share}, round_to=2)
    except BudgetError:  # only when even the smallest permitted choice is too large
        least = slim_prune.plan(network.module, network.example_inputs, ratios={"*": 1e-9}, round_to=2).after[cost]
        original = count(record(network.module, network.example_inputs))
        assert least > share * getattr(original, cost)
        return
    again = PrunePlan.from_json(plan.to_json())
    pruned = again.apply(network.module)
    now = count(record(pruned, network.example_inputs))
    assert getattr(now, cost) == plan.after[cost]
    assert getattr(now, cost) <= share * plan.before[cost] * (1 + 1e-9)
