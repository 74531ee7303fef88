"""Ctrl-C says how to go on; what commands build is the same in every process."""

import sys

import pytest
import torch
from torch import nn

from slim_core.cli.resuming import resumable
from slim_core.cli.subject import built
from slim_core.errors import Interrupted


def test_ctrl_c_says_what_is_kept_and_the_command_without_what_begins_anew(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slim", "prune", "search", "--fresh", "--data", "my data"])
    with pytest.raises(Interrupted) as error, resumable("points are in here"):
        raise KeyboardInterrupt
    assert error.value.what == "stopped; points are in here"
    assert error.value.hint == "to resume: slim prune search --data 'my data'"


def test_random_weights_are_the_same_each_time_and_the_generator_is_left_alone():
    state = torch.get_rng_state()
    first, second = (built(lambda: nn.Linear(4, 4), "m", {}) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(torch.get_rng_state(), state)
