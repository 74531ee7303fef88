"""The schemes of sparsity as data: unstructured, block, N:M. Not here: choosing what stays (``selecting.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from slim_core.checkpoint.sparse import LAYOUTS, MAX_BLOCK, MAX_GROUP
from slim_core.errors import close_match
from slim_prune.sparsity.errors import SparsityError

Scope = Literal["global", "layer", "erk"]
Layout = Literal["flat", "channels"]
SCOPES = ("global", "layer", "erk")


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Single weights (Han et al., 2015, arXiv 1506.02626).

    Args:
        scope: where weights compete. ``global``: all against all; ``layer``: every layer keeps the same share;
            ``erk``: every layer keeps a share that falls with its size (Erdős-Rényi kernel; Evci et al., 2019, arXiv
            1911.11134).
        floor: under ``global``, each layer keeps at least this part of the share that stays of all: 0.1 of 10 % is
            1 %. A layer without weights would cut the model in two.
    """

    name: ClassVar[str] = "unstructured"
    scope: Scope = "global"
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_scope(self.scope, self.floor)


@dataclass(frozen=True, slots=True)
class Block:
    """Rectangles of a weight's matrix, by the mean of their scores (Narang et al., 2017, arXiv 1711.02782).

    Args:
        shape: rows (outputs) and columns (inputs) of a block: ``(1, 4)``, ``(4, 1)``, ``(16, 1)``, ``(8, 8)``. Blocks
            at the edges are smaller where the sizes do not divide.
        layout: ``flat``: the matrix (out, in * kh * kw); ``channels``: one matrix (out, in) for each (kh, kw).
        scope: as for :class:`Unstructured`.
        floor: as for :class:`Unstructured`.
    """

    name: ClassVar[str] = "block"
    shape: tuple[int, int] = (1, 4)
    layout: Layout = "flat"
    scope: Scope = "global"
    floor: float = 0.1

    def __post_init__(self) -> None:
        _check_scope(self.scope, self.floor)
        _check_layout(self.layout)
        sizes = self.shape
        if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise SparsityError(
                f"a block has two sizes, rows and columns, not {sizes!r}", hint="for example (1, 4) or (8, 8)"
            )
        if sizes[0] * sizes[1] > MAX_BLOCK:
            raise SparsityError(f"a block has at most {MAX_BLOCK} weights, not {sizes[0]} x {sizes[1]}")


@dataclass(frozen=True, slots=True)
class NM:
    """At most ``n`` weights of each ``m`` neighbours along the inputs (Mishra et al., 2021, arXiv 2104.08378).

    Args:
        n: weights that stay.
        m: weights of a group. The last group of a row is filled with zeros where the sizes do not divide.
        layout: ``channels``: neighbours are input channels at the same (kh, kw), as GPUs want it; ``flat``: neighbours
            in (out, in * kh * kw).
        permute: order channels so that more magnitude stays (Pool and Yu, 2021, NeurIPS), without changing what the
            model computes. Needs ``layout="channels"`` and example inputs.
    """

    name: ClassVar[str] = "n_m"
    n: int = 2
    m: int = 4
    layout: Layout = "channels"
    permute: bool = False

    def __post_init__(self) -> None:
        _check_layout(self.layout)
        if not (type(self.n) is int and type(self.m) is int and 1 <= self.n < self.m <= MAX_GROUP):
            raise SparsityError(
                f"N:M wants 1 <= n < m <= {MAX_GROUP}, not {self.n}:{self.m}", hint="2:4 is what GPUs support"
            )
        if self.permute and self.layout != "channels":
            raise SparsityError("channels can be permuted where neighbours are channels only", hint='layout="channels"')


Scheme = Unstructured | Block | NM
SCHEMES: Mapping[str, type[Scheme]] = {cls.name: cls for cls in (Unstructured, Block, NM)}


def resolve(scheme: str | Mapping[str, Any] | Scheme) -> Scheme:
    """Return a scheme from its name (``"unstructured"``, ``"block"``, ``"2:4"``), a mapping with options, or itself.

    Raises:
        SparsityError: no such scheme or option, or an option has no meaning.
    """
    if isinstance(scheme, Unstructured | Block | NM):
        return scheme
    options: dict[str, Any] = {"name": scheme} if isinstance(scheme, str) else dict(scheme)
    name = options.pop("name", None)
    if isinstance(name, str):
        n, sign, m = name.partition(":")
        if sign and n.isdigit() and m.isdigit():
            name, options = NM.name, {"n": int(n), "m": int(m), **options}
    if name not in SCHEMES:
        raise SparsityError(
            f"unknown sparsity scheme {name!r}",
            hint=close_match(str(name), SCHEMES) or f"one of {', '.join(SCHEMES)}, or N:M such as '2:4'",
        )
    cls = SCHEMES[name]
    known = [item.name for item in fields(cls)]
    for key in options:
        if key not in known:
            raise SparsityError(
                f"the scheme '{name}' has no option '{key}'",
                hint=close_match(key, known) or f"it has {', '.join(known)}",
            )
    if isinstance(options.get("shape"), list):
        options["shape"] = tuple(options["shape"])
    return cls(**options)


def to_json(scheme: Scheme) -> dict[str, Any]:
    """Return the scheme as JSON values; :func:`resolve` takes them back."""
    data = asdict(scheme)
    return {"name": scheme.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}}


def label(scheme: Scheme) -> str:
    """Return the scheme in a few words."""
    if isinstance(scheme, NM):
        return f"{scheme.n}:{scheme.m}" + (" over the flat matrix" if scheme.layout == "flat" else "")
    if isinstance(scheme, Block):
        return f"blocks of {scheme.shape[0]} x {scheme.shape[1]} ({scheme.layout}), {scheme.scope}"
    return f"unstructured, {scheme.scope}"


def _check_scope(scope: object, floor: object) -> None:
    if scope not in SCOPES:
        raise SparsityError(
            f"unknown scope {scope!r}", hint=close_match(str(scope), SCOPES) or f"one of {', '.join(SCOPES)}"
        )
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 <= floor < 1:
        raise SparsityError(f"the floor is a part of the share that stays, in [0, 1), not {floor!r}")


def _check_layout(layout: object) -> None:
    if layout not in LAYOUTS:
        raise SparsityError(f"unknown layout {layout!r}", hint=f"one of {', '.join(LAYOUTS)}")
