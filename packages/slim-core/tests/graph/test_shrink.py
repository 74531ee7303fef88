"""Shrinking: what is cut, what stays, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.errors import SlimError
from slim_core.graph import analyse, resize_graph, shrink
from slim_core.graph.cost import cost

IMAGE = (torch.randn(2, 3, 8, 8),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.group = nn.GroupNorm(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.group(self.up(self.act(self.depthwise(self.norm(self.conv(x))))))
        return self.head(x.mean((2, 3)))


KEPT = {"conv": np.array([1, 3]), "up": np.array([0, 2])}


def test_parameters_keep_the_chosen_indices():
    model = Net()
    coupling = analyse(model, IMAGE)
    weight, norm = model.conv.weight.detach().clone(), model.norm.running_var.clone()
    shrink(model, coupling, {"conv": np.array([3, 1])})
    assert torch.equal(model.conv.weight, weight[[1, 3, 5, 7]])
    assert torch.equal(model.norm.running_var, norm[[1, 3, 5, 7]])


def test_module_attributes_follow():
    model = Net()
    shrink(model, analyse(model, IMAGE), KEPT)
    assert (model.conv.in_channels, model.conv.out_channels) == (3, 4)
    assert model.norm.num_features == 4
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (4, 4, 4)
    assert model.act.num_parameters == 4
    assert (model.up.in_channels, model.up.out_channels, model.up.groups) == (4, 4, 2)
    assert (model.group.num_channels, model.group.num_groups) == (4, 4)
    assert (model.head.in_features, model.head.out_features) == (4, 2)
    assert model(*IMAGE).shape == (2, 2)


def test_attributes_of_linear_embedding_and_norm_follow():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.rms = nn.Embedding(11, 8), nn.LayerNorm(8), nn.RMSNorm(8)
            self.head = nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.rms(self.norm(self.embed(ids))))

    model = Text()
    inputs = (torch.randint(0, 11, (2, 5)),)
    shrink(model, analyse(model, inputs), {"embed": np.arange(5)})
    assert (model.embed.num_embeddings, model.embed.embedding_dim) == (11, 5)
    assert model.norm.normalized_shape == (5,)
    assert model.rms.normalized_shape == (5,)
    assert model.head.in_features == 5
    assert model(*inputs).shape == (2, 5, 3)


def test_attention_attributes_follow():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 4)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x)[0])

    model = Encoder()
    inputs = (torch.randn(5, 2, 3),)
    shrink(model, analyse(model, inputs), {"embed": np.array([0, 3])})
    attention = model.attention
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (4, 2, 2)
    assert (attention.kdim, attention.vdim) == (4, 4)
    assert attention.out_proj.in_features == 4


def test_ties_gradient_flags_and_gradients_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(11, 8), nn.Linear(8, 6), nn.Linear(8, 11, bias=False)
            self.back = nn.Linear(6, 8)
            self.head.weight = self.embed.weight
            self.mid.weight.requires_grad_(False)

        def forward(self, ids):
            return self.head(self.back(torch.relu(self.mid(self.embed(ids)))))

    model = Tied()
    inputs = (torch.randint(0, 11, (2, 5)),)
    coupling = analyse(model, inputs)
    model(*inputs).sum().backward()
    gradient = model.embed.weight.grad.clone()
    shrink(model, coupling, {"embed": np.array([0, 2, 5])})
    assert model.head.weight is model.embed.weight
    assert not model.mid.weight.requires_grad
    assert model.embed.weight.requires_grad
    assert isinstance(model.mid.weight, nn.Parameter)
    assert torch.equal(model.embed.weight.grad, gradient[:, [0, 2, 5]])
    model(*inputs).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_memory_format_and_parameter_class_stay(dtype):
    class Special(nn.Parameter):
        pass

    model = Net().to(dtype).to(memory_format=torch.channels_last)
    model.conv.weight = Special(model.conv.weight.detach())
    model.conv.weight.note = "kept"
    shrink(model, analyse(model, (IMAGE[0].to(dtype),)), KEPT)
    assert model.conv.weight.dtype == dtype
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert type(model.conv.weight) is Special
    assert model.conv.weight.note == "kept"


def test_a_model_on_meta_shrinks():
    with torch.device("meta"):
        model = Net()
    shrink(model, analyse(model, IMAGE), KEPT)
    assert model.conv.weight.shape == (4, 3, 3, 3)
    assert model.conv.weight.device.type == "meta"


def test_a_group_that_is_not_named_stays_whole():
    model = Net()
    shrink(model, analyse(model, IMAGE), {"up": np.array([1])})
    assert model.conv.out_channels == 8
    assert model.up.out_channels == 2


@pytest.mark.parametrize(
    ("kept", "what"),
    [
        ({"nothing": np.array([0])}, "no channel group 'nothing'"),
        ({"conv": np.array([], dtype=np.int64)}, "left without a unit"),
        ({"conv": np.array([0, 4])}, "distinct numbers below 4"),
        ({"conv": np.array([-1])}, "distinct numbers below 4"),
        ({"conv": np.array([1, 1])}, "distinct numbers below 4"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_changes(kept, what):
    model = Net()
    coupling = analyse(model, IMAGE)
    with pytest.raises(SlimError, match=what):
        shrink(model, coupling, kept)
    with pytest.raises(SlimError, match=what):
        resize_graph(coupling, kept)
    assert model.conv.weight.shape[0] == 8


def test_a_model_of_other_sizes_is_refused_before_anything_changes():
    coupling = analyse(Net(), IMAGE)
    other = Net()
    shrink(other, coupling, {"up": np.array([0])})
    conv = other.conv.weight
    with pytest.raises(SlimError, match="does not fit the coupling"):
        shrink(other, coupling, KEPT)
    assert other.conv.weight is conv


def test_the_resized_graph_costs_what_the_smaller_model_costs():
    model = Net()
    coupling = analyse(model, IMAGE)
    predicted = cost(resize_graph(coupling, KEPT))
    shrink(model, coupling, KEPT)
    actual = cost(analyse(model, IMAGE).graph)
    assert predicted.macs == actual.macs
    assert predicted.params == actual.params == sum(p.numel() for p in model.parameters())
    assert predicted.peak_activation_bytes == actual.peak_activation_bytes


def test_removing_nothing_gives_the_same_graph():
    coupling = analyse(Net(), IMAGE)
    assert resize_graph(coupling, {}) == coupling.graph
