from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from slim_core.training import Ema


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_average_is_the_closed_form(decay: float):
    """After n updates: a_n = prod(d_k) * x_0 + sum_k (1 - d_k) * prod(d_j, j > k) * x_k."""
    model = nn.Linear(3, 2)
    values = np.random.default_rng(0).normal(size=(9, 2, 3))
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values[0]))
    ema = Ema(model, decay)
    for value in values[1:]:
        with torch.no_grad():
            model.weight.copy_(torch.tensor(value))
        ema.update(model)
    decays = np.minimum(decay, (1 + np.arange(8)) / (10 + np.arange(8)))
    weights = [decays.prod(), *((1 - decays[k]) * decays[k + 1 :].prod() for k in range(8))]
    assert sum(weights) == pytest.approx(1)
    expected = np.tensordot(weights, values, 1)
    np.testing.assert_allclose(ema.average["weight"].numpy(), expected, rtol=1e-5)


def test_running_statistics_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, 0.9)
    model(torch.randn(8, 2))
    ema.update(model)
    expected = 0.1 * torch.zeros(2) + 0.9 * model.running_mean  # the first decay is 1 / 10
    torch.testing.assert_close(ema.average["running_mean"], expected)
    assert ema.average["num_batches_tracked"] == 1


def test_tied_weights_are_averaged_once():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    ema = Ema(model, 0.9)
    assert list(ema.average) == ["0.weight"]
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update(model)
    ema.copy_to(model)
    assert model[1].weight is model[0].weight


def test_applied_lends_the_averages_and_gives_the_weights_back_also_after_an_error():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.9)
    averages = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.detach().clone()

    def fail() -> None:
        with ema.applied(model):
            assert torch.equal(model.weight, averages)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(model.weight, own)
