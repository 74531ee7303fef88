"""Estimates: a value, an interval, and how much of it comes from where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from typing import Any, Literal

import numpy as np

from slim_core.errors import MeasureError
from slim_latency.kernels import FEATURES, parse_key
from slim_latency.predict.boost import Array, Trees
from slim_latency.table import DeviceTable, KernelRow

Source = Literal["table", "regressor", "roofline"]
_SOURCES: tuple[Source, ...] = ("table", "regressor", "roofline")
#: an interval from fewer calibration networks than this says nothing
_LEAST = 8
#: outside of what was measured an error cannot be known; it is taken for no smaller than this
_OUTSIDE = 0.1


@dataclass(frozen=True, slots=True)
class Share:
    """How much of an estimate comes from one source.

    Args:
        source: ``"table"``: this very kernel was measured; ``"regressor"``: learned from kernels of its kind;
            ``"roofline"``: arithmetic and memory alone.
        kernels: how many.
        ms: their part of the estimate.
        share: the same as a share of the whole.
    """

    source: Source
    kernels: int
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a network would take on a device.

    Args:
        value_ms: the estimate for what is known. Where ``partial`` names operators, they come on top.
        low_ms: lower end of the interval, or ``None`` where nothing tells how wide it is.
        high_ms: upper end.
        confidence: how often such an interval holds the truth.
        shares: where it comes from.
        extrapolated: share of the estimate that is outside of what the regressors saw.
        noise: the device's noise floor, relative: an error below this cannot be told from none.
        partial: operators that nothing is known about, with how often they run. Their time is not in the estimate.
        ranking_only: nothing was measured on the device: the figure can order networks, and says no more.
        flops_ms: the baseline, a line over multiply-accumulates; ``None`` without measured networks.
        notes: what the reader should know.
    """

    value_ms: float
    low_ms: float | None
    high_ms: float | None
    confidence: float
    shares: tuple[Share, ...]
    extrapolated: float
    noise: float | None
    partial: Mapping[str, int]
    ranking_only: bool
    flops_ms: float | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("value_ms", "low_ms", "high_ms", "confidence", "extrapolated",
                                                      "noise", "ranking_only", "flops_ms")},
            "shares": {share.source: {"kernels": share.kernels, "ms": share.ms, "share": share.share}
                       for share in self.shares},
            "partial": dict(self.partial),
            "notes": list(self.notes),
        }  # fmt: skip


class Predictor:
    """Predicts with what was learned from a table.

    Args:
        rows: measured kernels.
        model: what :func:`slim_latency.predict.fit` returned.
        header: the table's header.
        noise: the table's noise floor.
    """

    def __init__(
        self, rows: Mapping[str, KernelRow], model: Mapping[str, Any], header: Mapping[str, Any],
        noise: float | None = None,
    ) -> None:  # fmt: skip
        from slim_latency.predict.fit import SCHEMA_VERSION, corrected

        again = "fit it again: slim latency fit TABLE"
        if not isinstance(model, Mapping) or model.get("schema_version") != SCHEMA_VERSION:
            raise MeasureError("what was fitted to this table is of another version", hint=again)
        self.model, self.header, self.noise = model, header, noise
        try:
            if tuple(model["features"]) != FEATURES:
                raise MeasureError("what was fitted to this table is of another version", hint=again)
            self._read(rows, model, corrected)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MeasureError(f"what was fitted to this table cannot be read: {error}", hint=again) from None
        self._memo: dict[str, tuple[float, int, bool]] = {}

    def _read(
        self, rows: Mapping[str, KernelRow], model: Mapping[str, Any], corrected: Callable[[float, float], float]
    ) -> None:
        """Take what was fitted apart; sizes and kinds are checked here, before anything is predicted."""
        overhead = float(model["overhead_us"])
        self._measured = {key: corrected(row.median_us, overhead) for key, row in rows.items()}
        self._lines = {kind: _vector(found["line"]) for kind, found in model["families"].items()}
        self._trees = {
            kind: Trees.from_json(found["trees"], len(FEATURES)) if found["trees"] else None
            for kind, found in model["families"].items()
        }
        self._hulls = {
            kind: (_vector(found["low"], len(FEATURES)), _vector(found["high"], len(FEATURES)))
            for kind, found in model["families"].items()
        }
        scale = model["scale"]
        self.factor, self.fixed_us, self.each_us = (
            float(scale[name]) for name in ("factor", "fixed_us", "per_kernel_us")
        )
        self._roof = _vector(model["roofline"])

    @staticmethod
    def of(table: DeviceTable) -> Predictor:
        """Return a table's predictor; a table without a fitted model gets one of lines alone."""
        if table.model is None:
            from slim_latency.predict.fit import fit

            return Predictor(table.kernels, fit(table, trees=False), table.header, table.noise)
        return Predictor(table.kernels, table.model, table.header, table.noise)

    def micros(self, keys: Sequence[str]) -> Array:
        """Return the microseconds of kernels, before the scale to networks."""
        return np.array([found[0] for found in self._known(keys)])

    def total_ms(self, keys: Sequence[str]) -> float:
        """Return the latency of a network in milliseconds."""
        return self.scaled_ms(float(self.micros(keys).sum()), len(keys))

    def scaled_ms(self, micros: float, kernels: int) -> float:
        """Return milliseconds of a network whose ``kernels`` kernels take ``micros`` together."""
        if kernels == 0:
            return 0.0
        return float(self.factor * micros + self.fixed_us + self.each_us * kernels) / 1e3

    def roofline(self, keys: Sequence[str]) -> Array:
        """Return what arithmetic and memory alone say, in microseconds."""
        line = self._roof
        if not len(line) or not len(keys):
            return np.ones(len(keys))
        found: Array = np.maximum(np.array([parse_key(key).work() for key in keys]) @ line, 1e-3)
        return found

    def _known(self, keys: Sequence[str]) -> list[tuple[float, int, bool]]:
        new = [key for key in dict.fromkeys(keys) if key not in self._memo]
        waiting: dict[str, list[str]] = {}
        for key in new:
            if key in self._measured:
                self._memo[key] = (self._measured[key], 0, False)
                continue
            kind = parse_key(key).family
            waiting.setdefault(kind if kind in self._lines else "", []).append(key)
        for kind, members in waiting.items():
            if not kind:
                for key, value in zip(members, self.roofline(members), strict=True):
                    self._memo[key] = (float(value), 2, False)
                continue
            work = np.array([parse_key(key).work() for key in members])
            features = np.array([parse_key(key).features() for key in members])
            values = np.maximum(work @ self._lines[kind], 1e-3)
            trees = self._trees[kind]
            if trees is not None:
                values = values * np.exp(trees(features))
            low, high = self._hulls[kind]
            outside = np.any((features < low - 0.1) | (features > high + 0.1), axis=1).tolist()
            for key, value, out in zip(members, values, outside, strict=True):
                self._memo[key] = (float(value), 1, bool(out))
        return [self._memo[key] for key in keys]

    def estimate(
        self, keys: Sequence[str], macs: int | None = None, *, partial: Mapping[str, int] | None = None,
        confidence: float = 0.9,
    ) -> Estimate:  # fmt: skip
        """Predict a network.

        Args:
            keys: its kernels.
            macs: its multiply-accumulates, for the baseline.
            partial: operators that nothing is known about.
            confidence: of the interval.
        """
        found = self._known(keys)
        value = self.scaled_ms(sum(item[0] for item in found), len(found))
        total = sum(item[0] for item in found) or 1.0
        shares = tuple(
            Share(source, len(mine), value * sum(mine) / total, sum(mine) / total)
            for number, source in enumerate(_SOURCES)
            for mine in [[item[0] for item in found if item[1] == number]]
            if mine
        )
        extrapolated = sum(item[0] for item in found if item[2]) / total
        roof = sum(item[0] for item in found if item[1] == 2) / total
        spread, notes = self._spread(confidence, extrapolated, roof)
        ranking = not self._measured
        partial = dict(partial or {})
        if partial:
            names = ", ".join(f"{name} ({count})" for name, count in partial.items())
            notes.append(f"partial: nothing is known about {names}; the true latency is higher")
        if ranking:
            notes.append("nothing was measured on this device: good for ranking only")
        if extrapolated > 0.1:
            notes.append(f"{extrapolated:.0%} of it lies outside of what was measured")
        line = self.model.get("flops") or {}
        flops = line["fixed_ms"] + line["ms_per_mac"] * macs if macs is not None and line.get("ms_per_mac") else None
        return Estimate(
            value_ms=value,
            low_ms=None if spread is None or ranking else value * exp(-spread),
            high_ms=None if spread is None or ranking or partial else value * exp(spread),
            confidence=confidence,
            shares=shares,
            extrapolated=extrapolated,
            noise=self.noise,
            partial=partial,
            ranking_only=ranking,
            flops_ms=flops,
            notes=tuple(notes),
        )

    def _spread(self, confidence: float, extrapolated: float, roof: float) -> tuple[float | None, list[str]]:
        """Return half the interval's width as a logarithm."""
        conformal = self.model.get("conformal") or {}
        residuals = conformal.get("residuals") or []
        if len(residuals) < _LEAST:
            return None, [f"{len(residuals)} calibration networks give no interval; {_LEAST} would"]
        rank = ceil((len(residuals) + 1) * confidence)
        base = residuals[min(rank, len(residuals)) - 1]
        notes = (
            [] if rank <= len(residuals) else ["too few calibration networks for this confidence: the widest is shown"]
        )
        outside = extrapolated * max(conformal["kernel_error"], _OUTSIDE)
        wider = sqrt(base**2 + outside**2 + (roof * max(conformal["roofline_error"], _OUTSIDE)) ** 2)
        return max(wider, log(1 + (self.noise or 0.0))), notes


def _vector(values: Any, size: int | None = None) -> Array:
    """Return numbers that are all finite: ``(size,)``.

    Raises:
        ValueError: they are not.
    """
    found: Array = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all() or (size is not None and len(found) != size):
        raise ValueError(f"{size if size is not None else 'some'} finite numbers were expected")
    return found
