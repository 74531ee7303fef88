"""Finding channel orders under which N:M keeps more magnitude (Pool and Yu, 2021, NeurIPS 34).

Channels that the core's coupling lets live and die together may also change places together: a permutation of a
group's units, applied to every member, leaves what the model computes as it is, up to the order of float sums. That is
checked on random inputs before an order is offered; a group where it does not hold is left alone with a note.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.checkpoint.sparse import to_matrix
from slim_core.graph import analyse
from slim_core.graph.types import ChannelGroup, Coupling
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs, call, tensors_of
from slim_prune.sparsity.orders import Order, reorder_
from slim_prune.sparsity.schemes import NM
from slim_prune.sparsity.selecting import Array

_WORK = 2**27  # multiply-adds of one search's first table: rows are sampled to stay below
_WIDEST = 4096  # columns that are searched together: bounds the tables' memory
_TOLERANCE = 1e-4
_GAIN = 1e-6  # relative: smaller gains are rounding


def find_orders(
    model: nn.Module,
    example_inputs: Inputs,
    scheme: NM,
    scores: Mapping[str, Array],
    axes: Mapping[str, int],
    *,
    coupling: Coupling | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Order, ...], list[str]]:
    """Return orders of the model's channels under which ``scheme`` keeps more of the scores, and notes.

    Args:
        model: the model; it is not changed.
        example_inputs: inputs of one call; the proof replaces floating-point ones by random numbers.
        scheme: the scheme.
        scores: one score per element of each weight.
        axes: the input dimension of each weight.
        coupling: the analysis of this very model, when it has been made already.
        progress: where to report.
    """
    coupling = coupling if coupling is not None else analyse(model, example_inputs)
    found: dict[str, list[Order]] = {}
    gains: list[str] = []
    groups = coupling.groups
    with (progress or SilentProgress()).track("permute", len(groups)) as track:
        for group in groups:
            columns = _columns(group, scheme, scores, axes)
            if columns is not None:
                units, before, after = search(columns, scheme)
                if after > before * (1 + _GAIN):
                    found[group.name] = _orders(group, units, coupling)
                    gains.append(f"{group.name} {after / before - 1:+.2%}")
            track.advance(1)
    proved, failed = _prove(model, example_inputs, found)
    notes = [f"order of channels changed, kept magnitude: {', '.join(gains)}"] if proved and not failed else []
    if proved and failed:
        notes.append(f"the order of channels of {len(proved)} groups was changed")
    if failed:
        notes.append(f"the order of channels of {', '.join(failed)} stays: the model computes something else with it")
    if not found:
        notes.append("no order of channels keeps more magnitude")
    return tuple(order for name in proved for order in found[name]), notes


def reordered(orders: Iterable[Order], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays by tensor name with their dimensions in the new order."""
    found = dict(arrays)
    for order in orders:
        if order.name in found:
            found[order.name] = np.take(found[order.name], order.order, axis=order.dim)
    return found


def search(columns: NDArray[np.float32], scheme: NM) -> tuple[NDArray[np.int64], float, float]:
    """Return an order of columns that keeps more, and what is kept before and after it.

    Greedy: the best swap of two columns, until none gains. Each swap is found from a table of what every stripe of m
    columns would keep with any one of its columns replaced by any other.

    Args:
        columns: ``(rows, columns)``, not negative; neighbours of m columns are a stripe, the last one may be shorter.
        scheme: n and m.
    """
    n, m = scheme.n, scheme.m
    rows, width = columns.shape
    window = _WIDEST - _WIDEST % m
    if width > window:
        starts = range(0, width, window)
        parts = [search(columns[:, start : start + window], scheme) for start in starts]
        order = np.concatenate([start + part[0] for start, part in zip(starts, parts, strict=True)])
        return order, sum(part[1] for part in parts), sum(part[2] for part in parts)
    full = _kept(columns, n, m)
    step = max(1, -(-rows * width * width // _WORK))
    sample = np.ascontiguousarray(columns[::step])
    padded = np.concatenate([sample, np.zeros((len(sample), -width % m), sample.dtype)], 1)  # (rows, slots)
    slots = padded.shape[1]
    place = np.arange(slots)  # place[s]: which column stands in slot s; those beyond width are padding
    table = np.empty((slots, slots), np.float64)  # [s, c]: what the stripe of s keeps with column c in s instead
    for index in range(slots // m):
        _fill(table, padded, place, index, n, m)
    gains = _Gains(table, place, m, width)
    for _ in range(4 * slots):
        first, second, gain = gains.best()
        if gain <= _GAIN * max(1e-30, gains.kept / m):
            break
        place[first], place[second] = place[second], place[first]
        for index in {first // m, second // m}:
            _fill(table, padded, place, index, n, m)
        gains.refresh(np.concatenate([np.arange(index * m, index * m + m) for index in (first // m, second // m)]))
    order = place[:width]
    return order.astype(np.int64), full, _kept(columns[:, order], n, m)


class _Gains:
    """What each swap of two slots would gain, and the best of each row, kept up to date from swap to swap.

    Args:
        table: ``(slots, columns)``: what a slot's stripe keeps with a column in it; it is changed outside.
        place: which column stands in which slot; it is changed outside.
        m: slots of a stripe.
        width: slots that hold columns; those behind are padding.
    """

    def __init__(self, table: NDArray[np.float64], place: NDArray[np.int64], m: int, width: int) -> None:
        self._table, self._place, self._m, self._width = table, place, m, width
        slots = len(place)
        self._now = table[np.arange(slots), place]
        self._gain = np.empty((slots, slots))
        self._most = np.full(slots, -np.inf)
        self._where = np.zeros(slots, np.int64)
        for start in range(0, slots, m):
            self._work_out(np.arange(start, start + m))
        self._look_at(np.arange(slots))

    @property
    def kept(self) -> float:
        return float(self._now.sum())

    def best(self) -> tuple[int, int, float]:
        """Return the two slots to swap, and the gain."""
        first = int(np.argmax(self._most))
        return first, int(self._where[first]), float(self._most[first])

    def refresh(self, slots: NDArray[np.int64]) -> None:
        """Take in that the stripes of these slots changed."""
        self._now[slots] = self._table[slots, self._place[slots]]
        self._work_out(slots)
        self._gain[:, slots] = self._gain[slots].T
        part = self._gain[:, slots]
        number = part.argmax(1)
        most = part[np.arange(len(part)), number]
        stale = np.isin(self._where, slots)
        better = (most > self._most) & ~stale
        self._most[better], self._where[better] = most[better], slots[number[better]]
        stale[slots] = True
        self._look_at(np.flatnonzero(stale))

    def _work_out(self, slots: NDArray[np.int64]) -> None:
        there = self._table[np.ix_(slots, self._place)]  # the stripes of these slots with each other slot's column
        here = self._table[:, self._place[slots]].T  # the other stripes with the columns of these slots
        gain = there + here - self._now[slots][:, None] - self._now[None, :]
        gain[:, self._width :] = -np.inf
        gain[slots >= self._width] = -np.inf
        gain[slots[:, None] // self._m == np.arange(len(self._place))[None, :] // self._m] = -np.inf
        self._gain[slots] = gain

    def _look_at(self, slots: NDArray[np.int64]) -> None:
        for start in range(0, len(slots), 64):
            rows = slots[start : start + 64]
            part = self._gain[rows]
            self._where[rows] = part.argmax(1)
            self._most[rows] = part[np.arange(len(rows)), self._where[rows]]


def _fill(table: NDArray[np.float64], columns: Array, place: Array, index: int, n: int, m: int) -> None:
    """Work out a stripe's rows of the table: with column x in place of one, the n best of the others and x are kept."""
    for slot in range(index * m, (index + 1) * m):
        others = columns[:, [place[s] for s in range(index * m, (index + 1) * m) if s != slot]]  # (rows, m - 1)
        best = -np.sort(-others, axis=1)[:, :n]  # (rows, n), falling
        # the n best of n or more others are their sum, and x takes the place of the last where it is larger
        table[slot] = best.sum(dtype=np.float64)
        last = best[:, n - 1]
        for start in range(0, columns.shape[1], 64):
            part = columns[:, start : start + 64] - last[:, None]
            table[slot, start : start + 64] += np.maximum(part, 0, out=part).sum(0, dtype=np.float64)


def _kept(columns: Array, n: int, m: int) -> float:
    rows, width = columns.shape
    padded = np.concatenate([columns, np.zeros((rows, -width % m), columns.dtype)], 1).reshape(rows, -1, m)
    return float(np.sort(padded, axis=-1)[..., m - n :].sum(dtype=np.float64))


def _columns(
    group: ChannelGroup, scheme: NM, scores: Mapping[str, Array], axes: Mapping[str, int]
) -> NDArray[np.float32] | None:
    """Return what is consumed of a group's units, ``(rows, units)``, from all weights whose stripes are the group's."""
    found = []
    for member in group.members:
        values = scores.get(member.name)
        if values is None or member.dim != axes[member.name] or member.indices.shape[1] != 1:
            continue
        places = member.indices[:, 0]
        inside = places[0] % scheme.m == 0 and np.array_equal(places, places[0] + np.arange(group.units))
        ends = places[-1] + 1
        if not inside or (ends % scheme.m and ends != values.shape[member.dim]):
            continue  # stripes would hold channels of others too
        matrix = to_matrix(values, "channels", member.dim)  # (taps, out, in)
        found.append(matrix.reshape(-1, matrix.shape[-1])[:, places].astype(np.float32))
    if not found or group.units <= scheme.m:
        return None
    return np.concatenate(found)


def _orders(group: ChannelGroup, units: NDArray[np.int64], coupling: Coupling) -> list[Order]:
    """Return the order of every member's dimension that puts unit ``units[i]`` where unit i was."""
    sizes = {value.names[0]: value.shape for value in coupling.graph.values if value.kind in ("parameter", "buffer")}
    found = []
    for member in group.members:
        order = np.arange(sizes[member.name][member.dim], dtype=np.int64)
        order[member.indices] = member.indices[units]
        found.append(Order(group.name, member.name, member.dim, order))
    return found


def _prove(
    model: nn.Module, example_inputs: Inputs, found: Mapping[str, Sequence[Order]]
) -> tuple[list[str], list[str]]:
    """Return the groups whose orders leave what the model computes as it is, and those whose do not."""
    if not found:
        return [], []
    inputs = _random(example_inputs)
    expected = _outputs(model, inputs)
    if _agree(model, inputs, expected, [order for orders in found.values() for order in orders]):
        return list(found), []
    proved: list[str] = []
    failed: list[str] = []
    for name in found:
        chosen = [order for group in (*proved, name) for order in found[group]]
        (proved if _agree(model, inputs, expected, chosen) else failed).append(name)
    return proved, failed


def _agree(model: nn.Module, inputs: Any, expected: list[Tensor], orders: Sequence[Order]) -> bool:
    twin = copy.deepcopy(model)
    reorder_(orders, twin)
    return all(
        torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * max(1e-12, float(b.abs().max()) if b.numel() else 0.0))
        if b.dtype.is_floating_point
        else torch.equal(a, b)
        for a, b in zip(_outputs(twin, inputs), expected, strict=True)
    )


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    twin = copy.deepcopy(model).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tensors_of(call(twin, inputs))


def _random(inputs: Any) -> Any:
    """Return inputs of the same form with random numbers in place of floating-point ones: zeros would prove nothing."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(inputs, Tensor):
        if not inputs.dtype.is_floating_point:
            return inputs
        return torch.randn(inputs.shape, generator=generator).to(inputs)
    if isinstance(inputs, Mapping):
        return {key: _random(value) for key, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(_random(value) for value in inputs)
    return inputs
