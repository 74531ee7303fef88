from __future__ import annotations

import numpy as np
import torch

from slim_core.data import generator
from slim_zoo.data import CropFlip, Normalize

PICTURES = torch.arange(6 * 2 * 5 * 5, dtype=torch.float32).reshape(6, 2, 5, 5)


def crops(picture: np.ndarray, padding: int, fill: float, mirror: bool) -> list[np.ndarray]:
    """Every picture that the augmentation may make of one."""
    padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    size, reach = picture.shape[-1], range(2 * padding + 1)
    found = [padded[:, y : y + size, x : x + size] for y in reach for x in reach]
    return found + [crop[:, :, ::-1] for crop in found] if mirror else found


def test_each_picture_becomes_one_of_its_crops_or_their_mirror_images():
    augment = CropFlip(2, flip=True, fill=-1.0)
    for step in range(5):
        for before, after in zip(PICTURES, augment(PICTURES, generator(step)), strict=True):
            assert any(np.array_equal(after.numpy(), crop) for crop in crops(before.numpy(), 2, -1.0, True))


def test_every_shift_and_both_mirror_images_occur_about_equally_often():
    pictures = PICTURES[:1].expand(6000, -1, -1, -1)
    out = CropFlip(1, flip=True)(pictures, generator(0)).reshape(6000, -1)
    _, counts = torch.unique(out, dim=0, return_counts=True)
    assert len(counts) == 18
    assert (counts - 6000 / 18).abs().max() < 5 * (6000 / 18) ** 0.5


def test_without_flip_nothing_is_mirrored():
    for before, after in zip(PICTURES, CropFlip(1, flip=False)(PICTURES, generator(3)), strict=True):
        assert any(np.array_equal(after.numpy(), crop) for crop in crops(before.numpy(), 1, 0.0, False))


def test_the_augmentation_is_a_function_of_the_generator():
    augment = CropFlip(2, flip=True)
    assert torch.equal(augment(PICTURES, generator(1)), augment(PICTURES, generator(1)))
    assert not torch.equal(augment(PICTURES, generator(1)), augment(PICTURES, generator(2)))


def test_normalization_of_bytes():
    out = Normalize(10.0, 4.0)(torch.tensor([2, 10, 18], dtype=torch.uint8))
    assert out.tolist() == [-2.0, 0.0, 2.0]
    original = torch.tensor([1.0])
    Normalize(1.0, 1.0)(original)
    assert original.item() == 1.0, "the data set itself must not change"
