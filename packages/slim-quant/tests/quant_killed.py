"""A measurement in a process of its own, for tests that kill it: ``python quant_killed.py FOLDER OUTPUT``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from quant_nets import Residual, pictures, settle

import slim_quant

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = pictures(16, 3)[0]
    model = settle(Residual(), x)
    slim_quant.sensitivity(model, [x], example_inputs=(x[:1],), folder=sys.argv[1]).save(sys.argv[2])
