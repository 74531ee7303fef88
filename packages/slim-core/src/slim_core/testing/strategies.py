"""Hypothesis strategies: random small networks, and random valid choices of what to keep.

Needs ``hypothesis``, which is a test dependency and not one of slim-core. The networks themselves live in
``networks.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from slim_core.graph.types import Coupling
from slim_core.testing.networks import BLOCKS, HEADS, BlockSpec, Family, Network, NetworkSpec, build

_NUMBERS = 6  # integers per block: the most that any block asks for and that decide something


@st.composite
def network_specs(
    draw: st.DrawFn,
    *,
    families: Sequence[Family] = ("image", "tokens", "features"),
    kinds: Sequence[str] | None = None,
    max_blocks: int = 4,
) -> NetworkSpec:
    """Draw a network as data. It shrinks towards few blocks, the simplest kinds and zeros.

    Args:
        draw: what hypothesis passes in.
        families: what the network takes.
        kinds: the block kinds to choose from (default: all; see ``slim_core.testing.networks.BLOCKS``).
        max_blocks: the most blocks between stem and head.
    """
    weighted = [family for family in families for _ in range(3 if family == "image" else 1)]
    family = draw(st.sampled_from(weighted))
    allowed = [kind for kind in BLOCKS[family] if kinds is None or kind in kinds]
    numbers = st.lists(st.integers(0, 11), max_size=_NUMBERS).map(tuple)
    block = st.builds(BlockSpec, st.sampled_from(allowed), numbers)
    return NetworkSpec(
        family=family,
        width=4 * draw(st.integers(1, 4)),
        blocks=tuple(draw(st.lists(block, max_size=max_blocks))) if allowed else (),
        head=draw(st.integers(0, len(HEADS[family]) - 1)),
        seed=draw(st.integers(0, 999)),
    )


def networks(
    *,
    families: Sequence[Family] = ("image", "tokens", "features"),
    kinds: Sequence[str] | None = None,
    max_blocks: int = 4,
) -> st.SearchStrategy[Network]:
    """Draw a built network with example inputs; a failing one is printed as the call that builds it again."""
    return network_specs(families=families, kinds=kinds, max_blocks=max_blocks).map(build)


@st.composite
def kept_plans(draw: st.DrawFn, coupling: Coupling, *, least: int = 1) -> dict[str, NDArray[np.int64]]:
    """Draw what to keep: for each group at least ``least`` of its units, sorted.

    It shrinks towards removing nothing.
    """
    kept: dict[str, NDArray[np.int64]] = {}
    for group in coupling.groups:
        removed = draw(st.integers(0, max(group.units - least, 0)), label=f"removed from {group.name}")
        seed = draw(st.integers(0, 999)) if removed else 0
        order = np.random.default_rng(seed).permutation(group.units)
        kept[group.name] = np.sort(order[removed:]).astype(np.int64)
    return kept
