"""What is learned from a device table: a cost per kind of kernel, the scale from kernels to networks, and how far off
all of that is.

The scale and the interval come from the whole networks of the table. The interval is a conformal one: each network is
predicted by what is learned from the others (in folds), and the errors say how wide it has to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slim_core.errors import MissingExtraError
from slim_core.progress import Progress, SilentProgress
from slim_latency.kernels import FEATURES, RISING, parse_key
from slim_latency.predict.boost import Array, boost
from slim_latency.predict.lines import nonnegative
from slim_latency.table import DeviceTable, KernelRow, NetworkRow

SCHEMA_VERSION = 1
#: a kind with fewer kernels than this has no regressor of its own
LEAST_KERNELS = 6
#: with fewer kernels than this a line says all that the data can tell
LEAST_FOR_TREES = 25
#: the profiler's reading is never corrected below this share of itself
_LEAST_SHARE = 0.15
_FOLDS = 10
_TREES = 60


def fit(
    table: DeviceTable, *, folds: int = _FOLDS, trees: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """Learn from a table; the result is JSON, and belongs into ``DeviceTable.model``.

    Args:
        table: kernels, and the networks that tell their scale.
        folds: parts that the networks are divided into for the errors of the interval.
        trees: refine the lines with boosted trees, for which scikit-learn must be there; without it lines are used.
        progress: where to report to.
    """
    if trees:
        try:
            boost(np.zeros((2, 1)), np.zeros(2), np.ones(2), rising=(), trees=1, leaf=1)
        except MissingExtraError:
            trees = False
    rows, networks = dict(table.kernels), list(table.networks.values())
    overhead = float(table.header.get("profiler_overhead_us", 0.0))
    whole = _learn(rows, networks, overhead, trees)
    errors: list[tuple[float, float]] = []
    kernel_errors: list[float] = []
    roof_errors: list[float] = []
    known = [row for row in networks if row.kernels]
    count = min(folds, len(known))
    if count >= 2:
        from slim_latency.predict.estimate import Predictor

        order = np.random.default_rng(0).permutation(len(known))
        with (progress or SilentProgress()).track("cross-validate", count) as track:
            for part in range(count):
                held = [known[number] for number in order[part::count]]
                rest = [row for row in known if row not in held]
                seen = {key for row in rest for key in row.kernels}
                left = {key: row for key, row in rows.items() if key in seen}
                model = _learn(left, rest, overhead, trees)
                judge = Predictor(left, model, {})
                for row in held:
                    errors.append((float(np.log(row.median_ms / judge.total_ms(row.kernels))), row.median_ms))
                    new = [key for key in dict.fromkeys(row.kernels) if key not in left]
                    for key in new:
                        truth = corrected(rows[key].median_us, overhead)
                        kernel_errors.append(abs(float(np.log(truth / judge.micros([key])[0]))))
                        roof_errors.append(abs(float(np.log(truth / judge.roofline([key])[0]))))
                track.advance(1)
    whole["conformal"] = {
        "residuals": sorted(round(abs(error), 6) for error, _ in errors),
        "kernel_error": _upper(kernel_errors),
        "roofline_error": _upper(roof_errors) or 1.0,
    }
    whole["flops"] = flops_line(networks)
    whole["flops_residuals"] = _flops_residuals(networks)
    return whole


def corrected(micros: float, overhead: float) -> float:
    """Return a kernel's time without what the profiler adds to it."""
    return max(micros - overhead, _LEAST_SHARE * micros, 1e-3)


def flops_line(networks: Sequence[NetworkRow]) -> dict[str, float]:
    """Return the baseline: latency as a fixed part and a part per multiply-accumulate."""
    rows = [row for row in networks if row.macs > 0 and row.median_ms > 0]
    if not rows:
        return {"fixed_ms": 0.0, "ms_per_mac": 0.0}
    times = np.array([row.median_ms for row in rows])
    matrix = np.array([[1.0, row.macs] for row in rows])
    fixed, slope = nonnegative(matrix / times[:, None], np.ones(len(rows)))
    return {"fixed_ms": float(fixed), "ms_per_mac": float(slope)}


def _flops_residuals(networks: Sequence[NetworkRow]) -> list[float]:
    """Return how far the baseline is off for each network, learned from the others."""
    rows = [row for row in networks if row.macs > 0]
    found = []
    for row in rows:
        line = flops_line([other for other in rows if other is not row])
        guess = line["fixed_ms"] + line["ms_per_mac"] * row.macs
        if guess > 0:
            found.append(round(abs(float(np.log(row.median_ms / guess))), 6))
    return sorted(found)


def _learn(
    rows: Mapping[str, KernelRow], networks: Sequence[NetworkRow], overhead: float, trees: bool
) -> dict[str, Any]:
    kinds: dict[str, list[str]] = {}
    for key in sorted(rows):
        kinds.setdefault(parse_key(key).family, []).append(key)
    times = {key: corrected(row.median_us, overhead) for key, row in rows.items()}
    families = {kind: _family(keys, times, rows, trees) for kind, keys in kinds.items() if len(keys) >= LEAST_KERNELS}
    return {
        "schema_version": SCHEMA_VERSION,
        "overhead_us": overhead,
        "features": list(FEATURES),
        "families": families,
        "roofline": _line(sorted(rows), times),
        "scale": _scale(networks, times),
    }


def _family(
    keys: Sequence[str], times: Mapping[str, float], rows: Mapping[str, KernelRow], trees: bool
) -> dict[str, Any]:
    work, features = (
        np.array([parse_key(key).work() for key in keys]), np.array([parse_key(key).features() for key in keys])
    )  # fmt: skip
    target = np.array([times[key] for key in keys])
    line = _line(keys, times)
    found: dict[str, Any] = {
        "line": line,
        "low": features.min(axis=0).round(6).tolist(),
        "high": features.max(axis=0).round(6).tolist(),
        "kernels": len(keys),
        "trees": None,
    }
    if trees and len(keys) >= LEAST_FOR_TREES:
        weights = np.sqrt(np.array([rows[key].count for key in keys], dtype=np.float64))
        rising = [FEATURES.index(name) for name in RISING]
        residual = np.log(target / np.maximum(work @ np.array(line), 1e-9))
        found["trees"] = boost(
            features, residual, weights, rising=rising, trees=_TREES, leaf=max(3, len(keys) // 50)
        ).to_json()  # fmt: skip
    return found


def _line(keys: Sequence[str], times: Mapping[str, float]) -> list[float]:
    """Return microseconds per unit of work, by relative least squares."""
    if not keys:
        return []
    work = np.array([parse_key(key).work() for key in keys])
    target = np.array([times[key] for key in keys])
    return [float(value) for value in nonnegative(work / target[:, None], np.ones(len(target)))]


def _scale(networks: Sequence[NetworkRow], times: Mapping[str, float]) -> dict[str, float]:
    """Return what makes a network's latency of its kernels': the anchors' scale, and a fixed part per call."""
    rows = [row for row in networks if row.kernels and all(key in times for key in row.kernels)]
    if not rows:
        return {"factor": 1.0, "fixed_us": 0.0, "per_kernel_us": 0.0}
    truth = np.array([row.median_ms * 1e3 for row in rows])
    sums = np.array([[sum(times[key] for key in row.kernels), 1.0, len(row.kernels)] for row in rows])
    toward = np.array([1.0, 0.0, 0.0])
    factor, fixed, each = nonnegative(sums / truth[:, None], np.ones(len(rows)), ridge=1e-3, toward=toward)
    return {"factor": float(factor), "fixed_us": float(fixed), "per_kernel_us": float(each)}


def _upper(errors: Sequence[float], share: float = 0.9) -> float:
    return float(np.quantile(errors, share)) if errors else 0.0


__all__ = ["Array", "corrected", "fit", "flops_line"]
