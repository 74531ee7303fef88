"""Which members of a masked unit stay as they are, because the model divides by them."""

from __future__ import annotations

#: the dimension of a weight-normed tensor whose rows have a length each; only that one is supported
DIRECTION_DIM = 0
_DIRECTIONS = (".parametrizations.weight.original1", "weight_v")


def divides(name: str, dim: int) -> bool:
    """Return whether zeroing these indices would divide by zero: a running variance, the direction of a weight norm.

    Such a unit is silent all the same, since the scale beside it (the norm's weight, the length) is zero.

    Args:
        name: state-dict name of the member.
        dim: its dimension.
    """
    if name.rsplit(".", 1)[-1] == "running_var":
        return True
    return dim == DIRECTION_DIM and (f".{name}".endswith(_DIRECTIONS))
