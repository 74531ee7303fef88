"""The contract of a correction, and how configurations name one. What the corrections do lives in their own modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

from slim_core.errors import UnknownNameError
from slim_core.named import Named, split
from slim_core.progress import Progress, SilentProgress
from slim_quant.named import build

if TYPE_CHECKING:
    from slim_core.registry import Registry
    from slim_quant.preparation import Calibrated, CalibrationData, Prepared

Stage = Literal["float", "rounding", "bias"]
#: in the order in which they run
STAGES: tuple[Stage, ...] = ("float", "rounding", "bias")


@dataclass(slots=True)
class CorrectionContext:
    """What the corrections of one quantization share.

    Args:
        seed: the same seed gives the same result.
        progress: where to report to.
        notes: lines for the report; a correction appends what it did and what it left alone, with the reason.
    """

    seed: int = 0
    progress: Progress = field(default_factory=SilentProgress)
    notes: list[str] = field(default_factory=list)


class Correction(Protocol):
    """Changes a prepared model so that quantizing it costs less accuracy.

    ``stage`` says when it runs: ``"float"`` before the calibration, on float weights, the network's function kept;
    ``"rounding"`` after the calibration, leaving weights on their grid, so that inserting the quantizers moves
    nothing; ``"bias"`` after the rounding, on biases only.
    """

    stage: Stage

    def __call__(
        self, prepared: Prepared, calibrated: Calibrated | None, data: CalibrationData, context: CorrectionContext
    ) -> None:
        """Edit ``prepared.graph`` in place.

        Args:
            prepared: the graph and where its quantizers go.
            calibrated: scales and zero points, and the float parameters as they were calibrated; ``None`` at stage
                ``"float"``.
            data: the calibration samples.
            context: seed, progress, notes.
        """


def make_correction(named: Named | Correction, registry: Registry | None = None) -> Correction:
    """Return the correction that ``named`` means: a name, a name with options, or a correction.

    Args:
        named: ``"adaround"``, ``{"name": "adaround", "iterations": 500}``, or an object with a ``stage``.
        registry: where names are looked up; without one the built-in names are found at once, and others among all
            installed plugins.

    Raises:
        UnknownNameError: nobody registered the name.
        SlimError: the correction has no such option, or not with this value.
    """
    if not isinstance(named, str) and hasattr(named, "stage"):
        return cast(Correction, named)
    name, options = split(named, "a correction", '{"name": "adaround", "iterations": 500}')
    return build(name, _maker(name, registry), options, "correction")


def make_corrections(
    named: Sequence[Named | Correction], registry: Registry | None = None
) -> dict[Stage, list[Correction]]:
    """Return corrections by stage, within a stage in the order given.

    Raises:
        UnknownNameError: nobody registered a name.
        SlimError: an option does not fit.
    """
    made = [make_correction(item, registry) for item in named]
    return {stage: [item for item in made if item.stage == stage] for stage in STAGES}


def _maker(name: str, registry: Registry | None) -> type[Correction]:
    from slim_quant.plugin import CORRECTIONS

    if registry is None and name in CORRECTIONS:
        return cast(type[Correction], CORRECTIONS[name].resolve())
    if registry is None:
        from slim_core.plugins import load_plugins

        registry = load_plugins().registry
    try:
        return cast(type[Correction], registry.get("corrections", name))
    except UnknownNameError as error:
        raise UnknownNameError(f"unknown correction '{name}'", hint=error.hint) from error
