"""Weights rounded by a correction that looks at data (GPTQ, AdaRound), for the packed form.

The correction works on an exported graph in which weights alone are quantized: activations stay in float there, as they
do where the weights will be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from slim_core.errors import DataError, SlimError
from slim_core.graph.export import export_graph
from slim_core.named import Named
from slim_core.progress import Progress
from slim_core.registry import Registry
from slim_core.workload import Inputs
from slim_quant.calibration import CalibrationData
from slim_quant.graph import get_tensor
from slim_quant.placement import Placement, place
from slim_quant.preparation import Prepared, calibrate
from slim_quant.ptq.corrections.base import Correction, CorrectionContext, make_correction
from slim_quant.schemes import Scheme
from slim_quant.targets import LINEAR, Target
from slim_quant.weight_only.find import Site
from slim_quant.weight_only.packed import PackedWeight
from slim_quant.weight_only.rounding import onto

_NOTHING: frozenset[str] = frozenset()
#: linear layers, and nothing around them
WEIGHTS = Target("weights", LINEAR, _NOTHING, _NOTHING, _NOTHING, _NOTHING, outputs=False)


def corrected_weights(
    model: nn.Module,
    example_inputs: Inputs,
    plan: Sequence[tuple[Site, Scheme, str]],
    correction: Named | Correction,
    calibration: Iterable[Any] | None,
    *,
    samples: int = 128,
    seed: int = 0,
    progress: Progress,
    registry: Registry | None = None,
) -> tuple[dict[tuple[str, ...], PackedWeight], list[str]]:
    """Return the weights that the correction rounded, by their names, and notes.

    Args:
        model: the float model; it is not changed.
        example_inputs: inputs to export it with.
        plan: weights, schemes and how ranges are found.
        correction: a correction of the stage ``"rounding"``.
        calibration: batches of what the forward takes.
        samples: how many samples of it are used.
        seed: of the correction.
        progress: where it reports to.
        registry: where its name is looked up.

    Raises:
        DataError: there is no calibration data.
        ModelError: ``torch.export`` refuses the model.
        SlimError: the correction is of another stage, or takes no such option.
        UnknownNameError: there is no such correction.
    """
    made = make_correction(correction, registry)
    if made.stage != "rounding":
        raise SlimError(
            f"a correction of the stage '{made.stage}' cannot be used for weights alone",
            hint="gptq, adaround and brecq round weights",
        )
    if calibration is None:
        raise DataError("a correction needs calibration data", hint="pass calibration=[batches of inputs]")
    graph = export_graph(model, example_inputs)
    placement = place(graph, WEIGHTS)
    found = {name: (site, scheme, clip) for site, scheme, clip in plan if site.axis == 1 for name in site.names}
    items = tuple(item for item in placement.weights if item.name in found)
    schemes = {item.name: found[item.name][1] for item in items}
    prepared = Prepared(graph, Placement((), items), schemes, {}, WEIGHTS)
    prepared.weight_observers = {item.name: found[item.name][2] for item in items}
    data = CalibrationData(calibration, samples)
    calibrated = calibrate(prepared, data, progress=progress)
    context = CorrectionContext(seed=seed, progress=progress, notes=prepared.notes)
    made(prepared, calibrated, data, context)
    done = {}
    for item in items:
        site, scheme, _ = found[item.name]
        scale, zero_point = calibrated.weights[item.name]
        done[site.names] = onto(get_tensor(graph, item.name), 1, scheme, scale, zero_point)
    left = [site.layers[0] for site, _, _ in plan if site.names not in done]
    notes = [
        *prepared.notes,
        *(f"{layer} is rounded to nearest: the correction works on linear layers" for layer in left),
    ]
    return done, notes
