"""The checkpoint transform: replay equals apply, and hostile records are refused with CheckpointError."""

from __future__ import annotations

import copy

import prune_hand as hand
import pytest
import torch

from slim_core.errors import CheckpointError
from slim_core.workload import Transform
from slim_prune.record import ChannelsReplayer, from_transform, may_be_set


def replay(model, transform):
    return ChannelsReplayer().replay(model, transform, hand.INPUTS)


def test_replay_on_the_meta_device_gives_the_shapes_attributes_and_ties_of_apply(net, plan) -> None:
    pruned = plan.apply(net)
    with torch.device("meta"):
        fresh = hand.HandNet()
    replayed = replay(fresh, plan.transform())
    state, expected = replayed.state_dict(), pruned.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].shape == tensor.shape and state[name].is_meta for name, tensor in expected.items())
    assert replayed.b.weight is replayed.c.weight
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in replayed.parameters())
    for path, module in pruned.named_modules():
        now = vars(replayed.get_submodule(path))
        assert {k: v for k, v in vars(module).items() if isinstance(v, int | tuple)} == {
            k: v for k, v in now.items() if isinstance(v, int | tuple)
        }, path
    replayed.load_state_dict(expected, assign=True)
    assert torch.equal(replayed.eval()(*hand.INPUTS), pruned.eval()(*hand.INPUTS))


def test_index_arrays_are_shared_and_int32(plan) -> None:
    tensors = plan.transform().tensors
    assert len(tensors) == 1
    (kept,) = tensors.values()
    assert kept.dtype == torch.int32
    assert kept.tolist() == hand.KEPT.tolist()


def test_the_record_round_trips(plan) -> None:
    assert from_transform(plan.transform()) == plan.edits


def changed(plan, change) -> Transform:
    transform = plan.transform()
    data, tensors = copy.deepcopy(dict(transform.data)), dict(transform.tensors)
    change(data, tensors)
    return Transform(transform.kind, transform.schema, data, tensors)


HOSTILE = {
    "unknown key": lambda d, t: d.update(extra=1),
    "no edits": lambda d, t: d.pop("edits"),
    "unknown tensor": lambda d, t: d["edits"]["tensors"][0].update(names=["../../etc"]),
    "negative dimension": lambda d, t: d["edits"]["tensors"][0].update(dim=-1),
    "dimension too large": lambda d, t: d["edits"]["tensors"][0].update(dim=9),
    "wrong total": lambda d, t: d["edits"]["tensors"][0].update(total=2**60),
    "text for a number": lambda d, t: d["edits"]["tensors"][0].update(dim="0"),
    "no such array": lambda d, t: d["edits"]["tensors"][0].update(kept="nope"),
    "cut twice": lambda d, t: d["edits"]["tensors"].append(d["edits"]["tensors"][0]),
    "index out of range": lambda d, t: t.update(kept0=torch.tensor([0, 6], dtype=torch.int32)),
    "negative index": lambda d, t: t.update(kept0=torch.tensor([-1, 2], dtype=torch.int32)),
    "not sorted": lambda d, t: t.update(kept0=torch.tensor([2, 0], dtype=torch.int32)),
    "duplicate": lambda d, t: t.update(kept0=torch.tensor([2, 2], dtype=torch.int32)),
    "empty": lambda d, t: t.update(kept0=torch.tensor([], dtype=torch.int32)),
    "float indices": lambda d, t: t.update(kept0=torch.tensor([0.0, 2.0])),
    "two-dimensional": lambda d, t: t.update(kept0=torch.zeros(1, 1, dtype=torch.int32)),
    "attribute not allowed": lambda d, t: d["edits"]["attributes"][0].update(names=["a.stride"]),
    "dunder attribute": lambda d, t: d["edits"]["attributes"][0].update(names=["a.__class__"]),
    "private attribute": lambda d, t: d["edits"]["attributes"][0].update(names=["a._modules"]),
    "unknown module": lambda d, t: d["edits"]["attributes"][0].update(names=["nope.out_channels"]),
    "no module at all": lambda d, t: d["edits"]["attributes"][0].update(names=["out_channels"]),
    "no names": lambda d, t: d["edits"]["tensors"][0].update(names=[]),
    "no attributes": lambda d, t: d["edits"]["attributes"][0].update(names=[]),
    "names as text": lambda d, t: d["edits"]["tensors"][0].update(names="a.weight"),
    "a name twice": lambda d, t: d["edits"]["tensors"][0]["names"].append(d["edits"]["tensors"][0]["names"][0]),
    "attribute grows": lambda d, t: d["edits"]["attributes"][0].update(after=10**9),
    "attribute negative": lambda d, t: d["edits"]["attributes"][0].update(after=-3),
    "attribute zero": lambda d, t: d["edits"]["attributes"][0].update(after=0),
    "attribute text": lambda d, t: d["edits"]["attributes"][0].update(after="3"),
    "attribute of another kind": lambda d, t: d["edits"]["attributes"][0].update(after=[3]),
    "attribute boolean": lambda d, t: d["edits"]["attributes"][0].update(after=True),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_records_are_refused_and_change_nothing(net, plan, change) -> None:
    before, attributes = copy.deepcopy(net.state_dict()), copy.deepcopy(vars(net.a))
    with pytest.raises(CheckpointError, match=r"transforms\.prune\.channels"):
        replay(net, changed(plan, change))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert vars(net.a)["out_channels"] == attributes["out_channels"]


@pytest.mark.parametrize("name", ["out_channels", "num_heads", "heads", "head_dim", "d_model", "normalized_shape"])
def test_sizes_may_be_set(name) -> None:
    assert may_be_set(name)


@pytest.mark.parametrize("name", ["stride", "padding", "training", "forward", "_modules", "__class__", "p", "eps", ""])
def test_nothing_else_may_be_set(name) -> None:
    assert not may_be_set(name)


def test_another_schema_is_refused(net, plan) -> None:
    transform = plan.transform()
    with pytest.raises(CheckpointError, match="schema 2"):
        replay(net, Transform(transform.kind, 2, transform.data, transform.tensors))
