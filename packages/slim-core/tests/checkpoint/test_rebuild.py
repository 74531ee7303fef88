"""Building the uncompressed model on the meta device: no values, no random numbers, no compiler."""

from __future__ import annotations

import subprocess
import sys

import checkpoint_kit as kit
import pytest
import torch
from torch import nn

from slim_core.checkpoint import load, save
from slim_core.workload import Workload

SCRIPT = """
import sys
from torch import nn
from slim_core.checkpoint import load

def build():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    nn.init.kaiming_normal_(model[0].weight)
    nn.init.normal_(model[3].weight, std=0.01)
    return model

load(sys.argv[1], factory=build)
print(*sorted(name for name in sys.modules if name in ("torch._dynamo", "torch._inductor")))
"""


def test_loading_layers_that_draw_their_start_values_loads_no_compiler(tmp_path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    save(Workload(model.eval(), (torch.ones(1, 1, 4, 4),)), tmp_path / "a.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "a.safetensors")], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr[-2000:]


class Drawn(nn.Module):
    """Draws its start values in every way that PyTorch's layers and models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.kaiming_uniform_(tensor=self.conv.weight)
        nn.init.trunc_normal_(self.conv.weight)
        self.own = nn.Parameter(nn.init.normal_(torch.empty(2), std=0.1))
        self.other = nn.Parameter(torch.empty(2).uniform_(-1, 1))
        self.drawn = torch.empty(2).normal_()  # neither a parameter nor a buffer: drawn again, for real

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) * self.own + self.other


@pytest.mark.parametrize("check_parity", [True, False])
def test_a_model_that_draws_its_start_values_is_rebuilt_and_draws_nothing_from_the_callers_generator(
    tmp_path, check_parity
) -> None:
    model = Drawn().eval()
    save(Workload(model, (torch.ones(1, 1, 4, 4),)), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    again = load(tmp_path / "a.safetensors", factory=Drawn, check_parity=check_parity).model
    assert torch.equal(torch.get_rng_state(), before)
    kit.same_state(again, model)
    assert not again.drawn.is_meta
