"""The oracle zeroes what it should, and tells right from wrong prunings that were cut by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.graph.types import ChannelGroup, Coupling, Graph, Member
from slim_core.testing.oracle import assert_equals_masked_original, mask_removed, relative_error


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        return self.b(torch.sigmoid(self.norm(self.a(x))))


def one_per_unit(name: str, dim: int, kind: str, units: int = 4) -> Member:
    return Member(name, dim, np.arange(units)[:, None], kind, name.rsplit(".", 1)[0])


MEMBERS = (
    one_per_unit("a.weight", 0, "out"),
    *(
        one_per_unit(f"{name}", 0, "per_channel")
        for name in ("a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    ),
    one_per_unit("b.weight", 1, "in"),
)
COUPLING = Coupling(Graph((), (), (), (), "meta", "Net"), (ChannelGroup("a", 4, MEMBERS),), (), (), {})
KEPT = {"a": np.array([0, 2])}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 1.5)
        net.norm.weight.normal_()
        net.norm.bias.normal_()
    return net


def cut_by_hand(net: Net) -> Net:
    pruned = copy.deepcopy(net)
    for tensor_name in ("weight", "bias"):
        getattr(pruned.a, tensor_name).data = getattr(net.a, tensor_name).data[[0, 2]]
        getattr(pruned.norm, tensor_name).data = getattr(net.norm, tensor_name).data[[0, 2]]
    pruned.norm.running_mean = net.norm.running_mean[[0, 2]]
    pruned.norm.running_var = net.norm.running_var[[0, 2]]
    pruned.b.weight.data = net.b.weight.data[:, [0, 2]]
    return pruned


def test_masking_zeroes_every_member_but_running_variances(net: Net) -> None:
    masked = mask_removed(net, COUPLING, KEPT)
    for name in ("a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean"):
        tensor, original = masked.state_dict()[name], net.state_dict()[name]
        assert not tensor[[1, 3]].any(), name
        assert torch.equal(tensor[[0, 2]], original[[0, 2]]), name
    assert not masked.b.weight[:, [1, 3]].any()
    assert torch.equal(masked.b.bias, net.b.bias)
    assert torch.equal(masked.norm.running_var, net.norm.running_var)
    assert net.a.weight.all()


def test_units_of_several_indices_are_zeroed_together(net: Net) -> None:
    pairs = Member("a.weight", 0, np.array([[0, 2], [1, 3]]), "out", "a")
    coupling = Coupling(COUPLING.graph, (ChannelGroup("a", 2, (pairs,)),), (), (), {})
    masked = mask_removed(net, coupling, {"a": np.array([1])})
    assert not masked.a.weight[[0, 2]].any()
    assert masked.a.weight[[1, 3]].all()


def test_a_right_pruning_passes_and_leaves_modes_and_weights_alone(net: Net) -> None:
    pruned = cut_by_hand(net).train()
    before = copy.deepcopy(net.state_dict())
    error = assert_equals_masked_original(net, pruned, COUPLING, KEPT, (torch.randn(2, 3, 5, 5),))
    assert error < 1e-12
    assert pruned.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.a.weight.dtype == torch.float32


def test_a_wrong_index_is_found(net: Net) -> None:
    pruned = cut_by_hand(net)
    pruned.norm.bias.data = net.norm.bias.data[[0, 3]]
    with pytest.raises(AssertionError, match=r"output 0 of shape \(2, 5, 3, 3\): the pruned model differs"):
        assert_equals_masked_original(net, pruned, COUPLING, KEPT, (torch.randn(2, 3, 5, 5),))


def test_another_shape_is_found(net: Net) -> None:
    pruned = cut_by_hand(net)
    pruned.b = nn.Conv2d(2, 4, 1)
    with pytest.raises(AssertionError, match="gives shape"):
        assert_equals_masked_original(net, pruned, COUPLING, KEPT, (torch.randn(2, 3, 5, 5),))


def test_relative_error_is_the_difference_over_the_largest_value() -> None:
    assert relative_error(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.5, 4.0])) == 0.125


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_odd_values_must_stand_in_the_same_places(odd: float) -> None:
    assert relative_error(torch.tensor([1.0, odd]), torch.tensor([1.0, odd])) == 0.0
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, odd])) == float("inf")


def test_integers_are_equal_or_not() -> None:
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0.0
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == float("inf")
