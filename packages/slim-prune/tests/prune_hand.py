"""A small network whose coupling, edits and pruned form are written by hand: the oracle of the surgery tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from slim_core.graph.types import ChannelGroup, Coupling, Graph, Member
from slim_prune.edits import AttributeEdit, Edits, TensorEdit, state_of
from slim_prune.prune_plan import GroupPlan, PrunePlan, ties_of
from slim_prune.signature import describe


class HandNet(nn.Module):
    """conv -> norm -> relu -> conv -> mean -> linear, where the second convolution's weight is used twice (tied)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 4, 1)
        self.c = nn.Conv2d(6, 4, 1)
        self.c.weight = self.b.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        return self.head((self.b(x) + self.c(x)).mean((2, 3)))


KEPT = np.array([0, 2, 5])
INPUTS = (torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4).sin(),)


def net(seed: int = 0) -> HandNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HandNet()
        with torch.no_grad():
            model.norm.running_mean.normal_()
            model.norm.running_var.uniform_(0.5, 1.5)
            model.norm.weight.normal_()
            model.norm.bias.normal_()
    return model


def edits() -> Edits:
    ones = ("a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    return Edits(
        (
            *(TensorEdit(name, 0, 6, KEPT) for name in ones),
            *(TensorEdit(name, 1, 6, KEPT) for name in ("b.weight", "c.weight")),
        ),
        (
            AttributeEdit("a", "out_channels", 6, 3),
            AttributeEdit("norm", "num_features", 6, 3),
            AttributeEdit("b", "in_channels", 6, 3),
            AttributeEdit("c", "in_channels", 6, 3),
        ),
    )


def plan(model: nn.Module | None = None) -> PrunePlan:
    model = model or net()
    return PrunePlan(
        model_class="HandNet",
        groups=(GroupPlan("a", 6, 1, KEPT),),
        edits=edits(),
        shapes={name: tuple(tensor.shape) for name, tensor in state_of(model).items()},
        ties=ties_of(state_of(model)),
        importance="l1",
        allocation="uniform",
        budget={"macs": 0.5},
        before={"macs": 100.0},
        after={"macs": 50.0},
        inputs=describe(INPUTS, model),
        outputs=((2, 3),),
        notes=("a note",),
    )


def coupling() -> Coupling:
    index = np.arange(6)[:, None]
    members = (
        Member("a.weight", 0, index, "out", "a"),
        Member("a.bias", 0, index, "per_channel", "a"),
        Member("norm.weight", 0, index, "per_channel", "norm"),
        Member("norm.running_var", 0, index, "per_channel", "norm"),
        Member("b.weight", 1, index, "in", "b"),
    )
    return Coupling(Graph((), (), (), (), "meta", "HandNet"), (ChannelGroup("a", 6, members),), (), (), {})


def pruned_by_hand(model: HandNet) -> dict[str, torch.Tensor]:
    """The state dict of the pruned model, cut without any of the code under test."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("a.weight", "a.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        state[name] = state[name][KEPT]
    for name in ("b.weight", "c.weight"):
        state[name] = state[name][:, KEPT]
    return state
