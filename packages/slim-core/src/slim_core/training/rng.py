"""Randomness of a run: torch's, numpy's and Python's global generators, seeded per epoch and given back at the end.

Seeding all of them at the start of every epoch makes an epoch a function of the seed and its number; so the state of
the generators need not be saved, and a resumed run draws what the uninterrupted one drew.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed the global generators for an epoch."""
    words = np.random.SeedSequence([seed & 0xFFFF_FFFF_FFFF_FFFF, epoch]).generate_state(4)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    np.random.seed(words[2])  # users' data sets draw from the global generator
    random.seed(int(words[3]))


@contextmanager
def kept_generators(*own: torch.Generator) -> Iterator[None]:
    """Give the global generators, and ``own``, their state (the initial seed with it) back at the end."""
    python, numpy_ = random.getstate(), np.random.get_state()
    states = [generator.get_state() for generator in own]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
