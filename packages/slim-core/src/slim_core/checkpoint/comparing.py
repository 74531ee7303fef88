"""``diff``: what differs between two checkpoints, from their headers alone: tensors are compared by hash. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slim_core.checkpoint.container import PathLike
from slim_core.checkpoint.header import STATE_ROLES, Header, TensorRecord, read_header


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that both files have and that differs.

    Args:
        name: its stored name.
        what: what differs: ``shape``, ``dtype``, ``packing``, ``values`` and the like.
        before, after: the header's records.
    """

    name: str
    what: tuple[str, ...]
    before: TensorRecord
    after: TensorRecord

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "what": list(self.what),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two checkpoints.

    Args:
        added, removed, changed: the model's tensors and the transforms', by stored name; examples are left out.
        same: how many tensors are equal bit for bit.
        transforms: ``(index, before, after)`` where the transforms differ, as JSON; ``None`` where there is none.
        metrics: name -> (before, after) where they differ.
        fields: other parts of the header that differ: name -> (before, after), as JSON.
        file_bytes: sizes of the two files.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[TensorChange, ...]
    same: int
    transforms: tuple[tuple[int, Any, Any], ...]
    metrics: Mapping[str, tuple[Any, Any]]
    fields: Mapping[str, tuple[Any, Any]]
    file_bytes: tuple[int, int]

    @property
    def identical(self) -> bool:
        return not (self.added or self.removed or self.changed or self.transforms or self.metrics or self.fields)

    def to_json(self) -> dict[str, Any]:
        return {
            "identical": self.identical,
            "tensors": {
                "added": list(self.added),
                "removed": list(self.removed),
                "changed": [change.to_json() for change in self.changed],
                "same": self.same,
            },
            "transforms": [{"index": i, "before": a, "after": b} for i, a, b in self.transforms],
            "metrics": {name: {"before": a, "after": b} for name, (a, b) in self.metrics.items()},
            "fields": {name: {"before": a, "after": b} for name, (a, b) in self.fields.items()},
            "file_bytes": {"before": self.file_bytes[0], "after": self.file_bytes[1]},
        }


def diff(before: PathLike | Header, after: PathLike | Header) -> Difference:
    """Compare two checkpoints by their headers.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    a = before if isinstance(before, Header) else read_header(before)
    b = after if isinstance(after, Header) else read_header(after)
    mine, other = _compared(a), _compared(b)
    both = sorted(mine.keys() & other.keys())
    changed = [TensorChange(name, what, mine[name], other[name]) for name in both
               if (what := _what(mine[name], other[name]))]  # fmt: skip
    left, right = a.to_json(), b.to_json()
    before_metrics, after_metrics = left["metrics"] or {}, right["metrics"] or {}
    count = max(len(a.transforms), len(b.transforms))
    pairs = [(i, _at(left["transforms"], i), _at(right["transforms"], i)) for i in range(count)]
    return Difference(
        added=tuple(sorted(other.keys() - mine.keys())),
        removed=tuple(sorted(mine.keys() - other.keys())),
        changed=tuple(changed),
        same=len(both) - len(changed),
        transforms=tuple(pair for pair in pairs if pair[1] != pair[2]),
        metrics={
            name: (before_metrics.get(name), after_metrics.get(name))
            for name in sorted(before_metrics.keys() | after_metrics.keys())
            if before_metrics.get(name) != after_metrics.get(name)
        },
        fields={
            name: (left[name], right[name])
            for name in ("format_version", "producers", "builder", "inputs", "ties", "parity", "recipe")
            if left[name] != right[name]
        },
        file_bytes=(a.file_bytes, b.file_bytes),
    )


def _compared(header: Header) -> dict[str, TensorRecord]:
    return {name: record for name, record in header.tensors.items() if record.role in (*STATE_ROLES, "transform")}


def _what(before: TensorRecord, after: TensorRecord) -> tuple[str, ...]:
    names = ("role", "dtype", "shape", "frozen", "layout", "packing", "sparse")
    found = [name for name in names if getattr(before, name) != getattr(after, name)]
    if before.sha256 != after.sha256:
        found.append("values")
    return tuple(found)


def _at(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else None
