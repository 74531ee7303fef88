"""``digits``: 1,797 pictures of handwritten digits, 8x8 pixels, which ship inside scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from slim_core.data import Dataset, TensorSource
from slim_core.errors import DataError
from slim_zoo.data.augment import CropFlip, Normalize

#: share of the pictures that validate, per class
VALIDATION_SHARE = 0.2


def digits(
    *, batch_size: int = 64, size: int = 32, limit: int | None = None, seed: int = 0, augment: bool = True
) -> Dataset:
    """Return the digits, upsampled to ``size``, split into training and validation with equal class shares.

    The split is always the same. Training shuffles and shifts by up to half of an original pixel: the digits
    fill their frames, so a larger shift cuts them. They are not mirrored.

    Args:
        batch_size: samples per batch.
        size: height and width after bilinear upsampling.
        limit: keep only so many training pictures, and at most as many for validation (for tests).
        seed: of the order and the augmentation.
        augment: shift the training pictures.

    Raises:
        DataError: ``limit`` is below 1.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pictures = torch.from_numpy(bunch.images.astype(np.float32) / 16.0)[:, None]  # (1797, 1, 8, 8)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, val = stratified_split(bunch.target)
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit must be at least 1, not {limit}")
        train, val = train[:limit], val[:limit]
    if size != pictures.shape[-1]:
        pictures = functional.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    normalize = Normalize(float(pictures[train].mean()), float(pictures[train].std()))
    pictures = normalize(pictures)
    shift = CropFlip(size // 16, flip=False, fill=-normalize.mean / normalize.std)
    return Dataset(
        train=TensorSource(
            pictures[train], labels[train], batch_size, shuffle=True, seed=seed, augment=shift if augment else None
        ),
        val=TensorSource(pictures[val], labels[val], batch_size),
        example_inputs=(pictures[val[:1]].clone(),),
        num_classes=10,
        input_shape=(1, size, size),
        task_kwargs={"num_classes": 10},
        name="digits",
        class_names=tuple("0123456789"),
    )


def stratified_split(labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return shuffled sample numbers for training and validation; each class gives the same share to both."""
    rng = np.random.default_rng(0)
    train: list[np.ndarray] = []
    val: list[np.ndarray] = []
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        cut = round(len(members) * VALIDATION_SHARE)
        val.append(members[:cut])
        train.append(members[cut:])
    return torch.from_numpy(rng.permutation(np.concatenate(train))), torch.from_numpy(
        rng.permutation(np.concatenate(val))
    )
