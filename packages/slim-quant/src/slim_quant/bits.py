"""Choices of bits by their short names: ``"w8a8"``, ``"w4a8"``, ``"float"``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from slim_core.errors import SlimError
from slim_quant.schemes import ACTIVATION, WEIGHT, Scheme

FLOAT = "float"
_NAME = re.compile(r"w([2-8])a([2-8])")


@dataclass(frozen=True, slots=True)
class Bits:
    """Schemes of weight and activations under one name."""

    name: str
    weight: Scheme
    activation: Scheme

    @property
    def key(self) -> tuple[int, int]:
        return self.weight.bits, self.activation.bits


def parse_bits(name: str | Bits, weight: Scheme = WEIGHT, activation: Scheme = ACTIVATION) -> Bits:
    """Return the choice that ``name`` means.

    Args:
        name: ``"w4a8"``: weights of 4 bits, activations of 8.
        weight: gives symmetry and granularity.
        activation: likewise.

    Raises:
        SlimError: the name means nothing.
    """
    if isinstance(name, Bits):
        return name
    match = _NAME.fullmatch(name)
    if match is None:
        raise SlimError(
            f"'{name}' is no choice of bits",
            hint="write w8a8 or w4a8: bits of weights and of activations, 2 to 8 each",
        )
    return Bits(name, replace(weight, bits=int(match[1])), replace(activation, bits=int(match[2])))
