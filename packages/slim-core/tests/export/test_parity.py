"""The comparison of outputs, by hand-computed figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from slim_core.errors import ExportError
from slim_core.export.parity import Parity, measure, resize_batch


def test_figures_are_those_computed_by_hand() -> None:
    parity = measure([(np.array([3.0, 4.0]), np.array([3.0, 4.5])), (np.array([5.0]), np.array([5.0]))], (2,))
    assert parity.max_diff == 0.5
    assert parity.largest == 5.0
    assert parity.sqnr_db == pytest.approx(10 * math.log10((9 + 16 + 25) / 0.25))


def test_equal_outputs_have_infinite_sqnr() -> None:
    assert measure([(np.ones(3), np.ones(3))], (1,)).sqnr_db == math.inf


def test_other_shapes_are_an_error() -> None:
    with pytest.raises(ExportError, match=r"shape \(3,\) in the file and \(2,\)"):
        measure([(np.ones(2), np.ones(3))], (1,))


@pytest.mark.parametrize(
    ("difference", "sqnr", "quantized", "fine"),
    [
        (1e-4, 80, False, True),
        (0.1, 40, False, False),
        (0.1, 40, True, True),
        (5, 5, True, False),
        (math.nan, 40, True, False),
    ],
)
def test_what_is_acceptable(difference: float, sqnr: float, quantized: bool, fine: bool) -> None:
    assert Parity(difference, 10.0, sqnr, (1,)).acceptable(quantized=quantized) is fine


def test_batches_are_cut_and_repeated() -> None:
    x, mask = torch.arange(4).reshape(2, 2), torch.ones(5)
    assert resize_batch((x, mask), 1)[0].tolist() == [[0, 1]]
    assert resize_batch({"x": x, "mask": mask}, 3)["x"].tolist() == [[0, 1], [2, 3], [0, 1]]
    assert resize_batch((x, mask), 3)[1] is mask
