from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from quant_nets import Residual, settle


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net(x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return settle(Residual(), x)
