from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from slim_core.errors import DataError
from slim_zoo.data import digits
from slim_zoo.data.digits import stratified_split


def test_the_split_takes_everything_once_with_equal_shares_of_each_class():
    labels = load_digits().target
    train, val = stratified_split(labels)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(1797))
    for digit in range(10):
        share = (labels[val.numpy()] == digit).sum() / (labels == digit).sum()
        assert share == pytest.approx(0.2, abs=0.005)


def test_the_split_does_not_depend_on_the_seed():
    one, two = digits(seed=0), digits(seed=9)
    assert torch.equal(one.val.targets, two.val.targets)
    assert torch.equal(one.train.inputs, two.train.inputs)


def test_at_the_native_size_the_pixels_are_scikit_learns():
    data = digits(size=8)
    bunch = load_digits()
    train, _ = stratified_split(bunch.target)
    pixels = bunch.images[train.numpy()] / 16
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(data.train.inputs[:, 0].numpy(), expected, atol=2e-3)


def test_the_training_pictures_are_normalized_at_every_size():
    for size in (8, 16, 32):
        inputs = digits(size=size).train.inputs
        assert inputs.shape[1:] == (1, size, size)
        assert (inputs.mean().item(), inputs.std().item()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_the_description_fits_the_batches():
    data = digits(batch_size=32)
    inputs, targets = next(iter(data.train))
    assert inputs.shape == (32, *data.input_shape)
    assert data.example_inputs[0].shape == (1, *data.input_shape)
    assert (targets.dtype, data.num_classes, len(data.class_names)) == (torch.int64, 10, 10)
    assert (data.task, data.task_kwargs) == ("classification", {"num_classes": 10})


def test_augmentation_can_be_left_out_and_calibration_has_none():
    plain = digits(augment=False, batch_size=8)
    assert torch.equal(next(iter(plain.train))[0], digits(batch_size=8).calibration(8)[0][0])


def test_limit_keeps_so_many():
    data = digits(limit=20)
    assert (len(data.train.inputs), len(data.val.inputs)) == (20, 20)
    with pytest.raises(DataError, match="limit"):
        digits(limit=0)
