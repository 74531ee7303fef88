"""Which weights of a model may become sparse, by globs over module paths and parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slim_core.errors import PatternError, close_match
from slim_core.graph.isolate import unwrap, walk
from slim_prune.selection import matches

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NEVER = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A weight that may become sparse.

    Args:
        name: state-dict name, the first where it is tied.
        tensor: the parameter.
        axis: its input dimension: 1, or 0 for transposed convolutions.
        names: all of its names.
    """

    name: str
    tensor: Tensor
    axis: int
    names: tuple[str, ...]


def find_targets(model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Target]:
    """Return the weights that may become sparse, in the order of the model.

    These are the parameters with two or more dimensions whose name contains ``weight``, but for those of norms and
    embeddings. What ``include`` matches by the parameter's own full name is taken whatever it is called. A tied
    parameter stands once, and not at all where one of its uses is an embedding or is excluded.

    Args:
        model: the model.
        include: globs over module paths or parameter names; empty: everything.
        exclude: globs; they win.

    Raises:
        PatternError: a pattern matches no weight; lists close names.
    """
    found: dict[int, tuple[Tensor, int, list[str]]] = {}
    never: set[int] = set()
    for path, module in walk(unwrap(model), every_path=True):
        for own, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2:
                continue
            name = f"{path}.{own}" if path else own
            named = any(matches(pattern, name) and not _inside(pattern, path) for pattern in include)
            if not named and (isinstance(module, _NEVER) or "weight" not in own):
                never.add(id(parameter))
                continue
            axis = 0 if isinstance(module, _TRANSPOSED) else 1
            found.setdefault(id(parameter), (parameter, axis, []))[2].append(name)
    weights = {name: names for _, _, names in found.values() for name in names}
    for pattern in (*include, *exclude):
        if not any(matches(pattern, name) for name in weights):
            raise PatternError(
                f"pattern '{pattern}' matches no weight that may become sparse",
                hint=close_match(
                    pattern.replace("*", "").strip("."), [*weights, *(n.rpartition(".")[0] for n in weights)]
                )
                or f"the model has for example: {', '.join(list(weights)[:5]) or 'none'}",
            )
    return [
        Target(names[0], tensor, axis, tuple(names))
        for key, (tensor, axis, names) in found.items()
        if key not in never
        and (not include or any(matches(pattern, name) for pattern in include for name in names))
        and not any(matches(pattern, name) for pattern in exclude for name in names)
    ]


def value_for(target: Target, values: Mapping[str, float]) -> float | None:
    """Return the value of the first pattern that matches a name of the weight, or ``None``."""
    for pattern, value in values.items():
        if any(matches(pattern, name) for name in target.names):
            return value
    return None


def _inside(pattern: str, path: str) -> bool:
    """Return whether the pattern means the module, and not this very parameter."""
    return bool(path) and matches(pattern, path)
