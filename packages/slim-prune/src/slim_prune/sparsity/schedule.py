"""The cubic schedule of gradual magnitude pruning (Zhu and Gupta, 2017, arXiv 1710.01878), as plain functions."""

from __future__ import annotations

from dataclasses import dataclass

from slim_prune.sparsity.errors import SparsityError


def cubic(step: float, begin: float, end: float, initial: float, final: float) -> float:
    """Return the sparsity at ``step``: from ``initial`` at ``begin`` to ``final`` at ``end``, fast first, then slow.

        s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** 3

    Before ``begin`` it is ``initial``, after ``end`` it is ``final``.
    """
    if step >= end:
        return final
    if step <= begin:
        return initial
    left = 1 - (step - begin) / (end - begin)
    return final + (initial - final) * left**3


@dataclass(frozen=True, slots=True)
class CubicSchedule:
    """When sparsity is raised, and to what.

    Args:
        begin: first optimizer step at which weights are masked.
        end: step at which the final sparsity is reached.
        every: steps between two raises.
        initial: sparsity at ``begin``.
    """

    begin: int
    end: int
    every: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end or self.every < 1:
            raise SparsityError(
                f"a schedule wants 0 <= begin <= end and every >= 1, not {self.begin}, {self.end}, {self.every}"
            )
        if not 0 <= self.initial < 1:
            raise SparsityError(f"the initial sparsity is a share in [0, 1), not {self.initial!r}")

    def due(self, step: int) -> bool:
        """Return whether the masks change at this step: at ``begin``, every ``every`` steps, and at ``end``."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.every == 0

    def sparsity(self, step: int, final: float) -> float:
        """Return the sparsity that holds at this step, which moves with the raises only; 0 before ``begin``."""
        if step < self.begin:
            return 0.0
        if step < self.end:
            step -= (step - self.begin) % self.every
        return cubic(step, self.begin, self.end, self.initial, final)
