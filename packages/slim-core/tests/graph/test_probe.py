"""The proof on the user's own forward: what it finds, and that it names the line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slim_core.graph import Frozen, analyse, check, couple, record


class Body(nn.Module):
    def __init__(self, forward, **attributes) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)
        self.other = nn.Linear(2, 2)
        for name, value in attributes.items():
            setattr(self, name, value)
        self._forward = (forward,)

    def forward(self, x):
        return self.other(self.two(self._forward[0](self, self.one(x))))


INPUTS = (torch.randn(3, 4),)


def frozen(coupling, name: str) -> list[Frozen]:
    return [entry for entry in coupling.frozen if entry.name == name]


def test_a_literal_in_a_view_freezes_with_its_line(units):
    coupling = analyse(Body(lambda m, x: x.view(-1, 8)), INPUTS)
    assert units(coupling) == {"two": 2}
    (entry,) = [e for e in frozen(coupling, "one.weight") if e.dim == 0]
    assert "fails with fewer channels" in entry.reason or "fixes a size" in entry.reason
    assert entry.source.text.endswith("x.view(-1, 8)), INPUTS)")
    assert entry.count == 8


def test_without_the_probe_the_literal_goes_unnoticed(units):
    model = Body(lambda m, x: x.view(-1, 8))
    assert units(analyse(model, INPUTS, probe=False)) == {"one": 8, "two": 2}
    assert units(couple(record(model, INPUTS))) == {"one": 8, "two": 2}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * x.shape[1] ** -0.5,
        lambda m, x: x / x.shape[1],
        lambda m, x: x * math.sqrt(x.shape[-1]),
        lambda m, x: x / torch.sqrt(torch.tensor(x.shape[-1])),
        lambda m, x: x + torch.full((x.shape[1],), 1.0 / x.shape[1]),
    ],
)
def test_a_number_taken_from_the_size_freezes(units, forward):
    coupling = analyse(Body(forward), INPUTS)
    assert units(coupling) == {"two": 2}
    assert any("depends on the size" in entry.reason for entry in frozen(coupling, "one.weight"))


def test_another_way_with_fewer_channels_freezes(units):
    coupling = analyse(Body(lambda m, x: torch.relu(x) if x.shape[1] >= 8 else x), INPUTS)
    assert units(coupling) == {"two": 2}
    assert any("another way" in entry.reason for entry in frozen(coupling, "one.weight"))


def test_an_assertion_in_the_forward_freezes(units):
    def forward(m, x):
        assert x.shape[1] == 8, "eight or nothing"
        return x

    coupling = analyse(Body(forward), INPUTS)
    assert units(coupling) == {"two": 2}
    assert any("eight or nothing" in entry.reason for entry in frozen(coupling, "one.weight"))


def test_an_attribute_with_a_speaking_name_follows(units):
    coupling = analyse(Body(lambda m, x: x.view(-1, m.hidden_dim), hidden_dim=8), INPUTS)
    assert units(coupling) == {"one": 8, "two": 2}


def test_an_attribute_with_another_name_does_not(units):
    coupling = analyse(Body(lambda m, x: x.view(-1, m.magic), magic=8), INPUTS)
    assert units(coupling) == {"two": 2}


def test_attributes_are_restored_after_the_probe():
    model = Body(lambda m, x: x.view(-1, m.hidden_dim), hidden_dim=8)
    analyse(model, INPUTS)
    assert model.hidden_dim == 8
    assert model.one.out_features == 8


def test_two_groups_of_equal_size_do_not_hide_each_other(units):
    """Removing the same number from both would work; the forward allows nothing else."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)
            self.tail = nn.Linear(8, 2)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.head(a.view(-1, b.shape[1])) + self.tail(b)

    coupling = analyse(Pair(), INPUTS)
    assert units(coupling) == {}


@pytest.mark.parametrize("scale", ["fixed", "size"])
def test_a_scale_from_the_size_of_a_head_takes_whole_heads(units, members, scale):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 12)
            self.num_heads, self.out = 3, nn.Linear(12, 2)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = (f(x).view(b, n, self.num_heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            factor = 0.5 if scale == "fixed" else q.shape[-1] ** -0.5
            y = F.softmax(q @ k.transpose(-2, -1) * factor, -1) @ v
            return self.out(y.transpose(1, 2).reshape(b, n, -1))

    coupling = analyse(Attention(), (torch.randn(2, 5, 4),))
    assert units(coupling) == {"q": 3}
    assert members(coupling, "q")["out.weight", 1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_positions_where_the_number_of_heads_is_fixed(units, members):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(4, 12)
            self.out = nn.Linear(12, 2)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = (f(x).view(b, n, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
            return self.out(y.transpose(1, 2).reshape(b, n, -1))

    coupling = analyse(Attention(), (torch.randn(2, 5, 4),))
    assert units(coupling) == {"q": 4, "v": 4}
    assert members(coupling, "q")["q.weight", 0] == [[n, n + 4, n + 8] for n in range(4)]


def test_check_says_whether_one_choice_works():
    model = Body(lambda m, x: x.view(-1, 8))
    coupling = analyse(model, INPUTS, probe=False)
    assert check(model, INPUTS, coupling, {"two": np.array([1])}) is None
    failure = check(model, INPUTS, coupling, {"one": np.arange(5)})
    assert failure is not None
    assert failure.source is not None
    assert "x.view(-1, 8)" in failure.source.text


def test_the_probe_runs_with_real_tensors_where_it_must(units):
    def forward(m, x):
        return x.view(-1, 8) if x.sum().item() > -1e9 else x

    coupling = analyse(Body(forward), INPUTS)
    assert coupling.graph.device_kind == "real"
    assert units(coupling) == {"two": 2}
