"""Tables with a known truth, for all tests of slim-latency."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from slim_latency.kernels import parse_key
from slim_latency.table import DeviceTable, KernelRow, NetworkRow

OVERHEAD = 1.5
Law = Callable[[str], float]


def law(key: str) -> float:
    """What a kernel truly takes, in microseconds: a call, arithmetic and memory."""
    kernel = parse_key(key)
    read, written = kernel._activations
    return 0.5 + kernel.macs * 2e-5 + (read + written) * 1e-4 + kernel.weight_bytes * 5e-5


def conv(channels: int, made: int, size: int, window: int = 3, groups: int = 1) -> str:
    """Return the key of a packed convolution."""
    held = channels // groups
    group = f" {{group={groups}}}" if groups > 1 else ""
    return (
        f"Conv.nchwc f32[1,{channels},{size},{size}] f32[{made},{held},{window},{window}] "
        f"-> f32[1,{made},{size},{size}]{group}"
    )


def random_network(draw: random.Random) -> tuple[str, ...]:
    """Return the kernels of a random stack of convolutions."""
    keys, channels, size = [], 16 * draw.randint(1, 3), 32
    for _ in range(draw.randint(4, 10)):
        made = 16 * draw.randint(1, 8)
        kind = draw.choice(("dense", "point", "depth"))
        if kind == "depth":
            keys.append(conv(channels, channels, size, 3, channels))
            continue
        keys.append(conv(channels, made, size, 3 if kind == "dense" else 1))
        channels = made
        size = max(size // draw.choice((1, 2)), 4)
    return tuple(keys)


def synthetic_table(count: int = 40, *, factor: float = 1.1, noise: float = 0.0, seed: int = 0) -> DeviceTable:
    """Return a table whose kernels obey :func:`law` and whose networks take ``factor`` times their sum."""
    draw = random.Random(seed)
    kernels: dict[str, KernelRow] = {}
    networks: dict[str, NetworkRow] = {}
    for number in range(count):
        keys = random_network(draw)
        for key in keys:
            told = law(key) + OVERHEAD
            kernels[key] = KernelRow(key, 7, told, 0.98 * told, 1.02 * told)
        truth = factor * sum(map(law, keys)) / 1e3 * (1 + noise * draw.gauss(0, 1))
        macs = sum(parse_key(key).macs for key in keys)
        networks[f"net-{number:03d}"] = NetworkRow(
            f"net-{number:03d}", truth, 0.99 * truth, 1.01 * truth, 7, 0.01, 0.0, macs, keys
        )
    return DeviceTable("synthetic", header(), kernels, networks)


def header(**changes: Any) -> dict[str, Any]:
    return {
        "device": {"cpu": "none", "architecture": "x86_64", "flags": ["avx512f"]},
        "runtime": {"name": "onnxruntime", "version": "1.0", "provider": "CPUExecutionProvider"},
        "settings": {"threads": 1, "level": "all"}, "precision": "fp32", "layout_block": 16,
        "profiler_overhead_us": OVERHEAD, "protocol": {"rounds": 7}, "notes": [],
        "created": "2026-01-01T00:00:00+00:00", **changes,
    }  # fmt: skip


@pytest.fixture(scope="session")
def make_table() -> Callable[..., DeviceTable]:
    return synthetic_table


@pytest.fixture(scope="session")
def true_us() -> Law:
    return law


@pytest.fixture(scope="session")
def networks_of() -> Callable[[random.Random], Sequence[str]]:
    return random_network
