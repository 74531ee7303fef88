"""The zoo's data sets, one module each, and the augmentation that they share."""

from __future__ import annotations

from slim_zoo.data.augment import CropFlip, Normalize
from slim_zoo.data.digits import digits
from slim_zoo.data.fashion_mnist import fashion_mnist

__all__ = ["CropFlip", "Normalize", "digits", "fashion_mnist"]
