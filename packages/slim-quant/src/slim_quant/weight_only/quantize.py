"""``quantize_weights``: the weights of linear layers and embeddings as integers; activations stay in float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from slim_core.errors import ModelError, SlimError
from slim_core.graph.isolate import unwrap
from slim_core.named import Named
from slim_core.progress import Progress, SilentProgress
from slim_core.registry import Registry
from slim_core.workload import Inputs
from slim_quant.insert import is_quantized
from slim_quant.observers.weights import WEIGHT_OBSERVERS
from slim_quant.overrides import Override, no_layer
from slim_quant.result import QuantReport
from slim_quant.schemes import Scheme, sqnr_db
from slim_quant.weight_only.comparing import compare_modules
from slim_quant.weight_only.copying import copy_without
from slim_quant.weight_only.corrected import corrected_weights
from slim_quant.weight_only.find import Site, chosen, find, matches
from slim_quant.weight_only.packed import PackedWeight, install
from slim_quant.weight_only.record import describe
from slim_quant.weight_only.result import PackedResult, state_bytes
from slim_quant.weight_only.rounding import packed

Group = int | Literal["auto"] | None

#: Neighbours that share a scale where the caller leaves it open, for few bits. 64 costs half a bit per float32 scale.
GROUP = 64
#: From these bits on one scale per output channel is enough, unless the caller says otherwise.
PER_CHANNEL_BITS = 8
_MOST_DB = 200.0


def quantize_weights(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    bits: int = 8,
    group_size: Group = "auto",
    symmetric: bool | None = None,
    clip: str = "abs_max",
    include: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    correction: Named | None = None,
    calibration: Iterable[Any] | None = None,
    samples: int = 128,
    sample: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> PackedResult:
    """Store the weights of linear layers and embeddings as integers, and dequantize them as they are used.

    The result is a copy of ``model`` of the same class. Its quantized weights are packed integers in memory; a layer's
    weight is in float only while the layer runs, and an embedding's only in the rows that it looks up. Tied weights
    stay tied. Everything else trains and works as before; no gradients reach the quantized weights.

    Args:
        model: any model whose forward runs; it is not changed.
        example_inputs: inputs to run it with.
        bits: 2 to 8.
        group_size: how many neighbours along the input axis share a scale; ``None``: all of an output channel (of a
            row, for an embedding); ``"auto"``: 64 below 8 bits, and all at 8. The last group may be shorter.
        symmetric: a zero point of 0, or one for each scale. ``None``: symmetric at 8 bits, zero points below.
        clip: ``"abs_max"``: every weight is in range; ``"mse"``: the range of least squared error is searched.
        include: globs over layer names (state-dict names without ``.weight``); only these are quantized.
        skip: globs over layer names; these stay in float.
        overrides: other schemes for single layers, by ``match``, ``op="linear"``, ``op="embedding"``, or both; a weight
            that is looked up and multiplied with is a linear one. The last that matches wins.
        correction: name of a rounding that looks at data, ``"gptq"``, with options as ``{"name": …, …}``; it needs
            ``calibration``, and ``torch.export`` must accept the model.
        calibration: batches of what the forward takes.
        samples: how many samples of it the correction sees.
        sample: inputs on which float and quantized outputs are compared; ``None``: the example inputs.
        seed: of the correction.
        progress: where to report to.
        registry: where the correction's name is looked up.

    Raises:
        ModelError: the forward fails, the model is quantized already, or nothing in it can be quantized.
        PatternError: a pattern matches no layer.
        SlimError: bits, group size or a scheme that there is not, or a weight that is not finite.
        UnknownNameError: an unknown ``clip`` or correction.
    """
    progress = progress or SilentProgress()
    scheme = default_scheme(bits, group_size, symmetric)
    if clip not in WEIGHT_OBSERVERS:
        raise SlimError(f"unknown clip '{clip}'", hint=f"known: {', '.join(WEIGHT_OBSERVERS)}")
    model = unwrap(model)
    require_float(model)
    plan, notes = plan_of(model, example_inputs, scheme, include=include, skip=skip, overrides=overrides)
    searched = [(site, item, observer or clip) for site, item, observer in plan]
    corrected: Mapping[tuple[str, ...], PackedWeight] = {}
    if correction is not None:
        corrected, more = corrected_weights(
            model, example_inputs, searched, correction, calibration, samples=samples, seed=seed, progress=progress,
            registry=registry,
        )  # fmt: skip
        notes.extend(more)
    result = copy_without(model, [name for site, _, _ in plan for name in site.names])
    rows = []
    with progress.track("quantizing weights", len(plan)) as track:
        for site, item, search in searched:
            weight = _parameter(model, site.names[0])
            done = corrected.get(site.names) or packed(weight, site.axis, item, search)
            install(result, site.names, done)
            rows.append(_row(site, item, weight, done))
            track.advance(1)
    record = describe(result, {name: (site.kind, item) for site, item, _ in plan for name in site.names})
    used = example_inputs if sample is None else sample
    found = compare_modules(model, result, used, {path for site, _, _ in plan for path in site.modules})
    for row, (site, _, _) in zip(rows, plan, strict=True):
        row["sqnr_db"] = found.get(site.modules[0])
    report = QuantReport(tuple(rows), tuple(notes), 0 if calibration is None else samples, found[""])
    return PackedResult(result, record, report, {"float": state_bytes(model), "quantized": state_bytes(result)})


def default_scheme(bits: int, group_size: Group = "auto", symmetric: bool | None = None) -> Scheme:
    """Return the scheme that :func:`quantize_weights` makes of its arguments.

    Raises:
        SlimError: there is no such scheme.
    """
    if group_size == "auto":
        group_size = None if bits >= PER_CHANNEL_BITS else GROUP
    even = bits >= PER_CHANNEL_BITS if symmetric is None else symmetric
    return Scheme(bits, even, "per_channel" if group_size is None else "per_group", group_size)


def require_float(model: nn.Module) -> None:
    """Check that nothing in ``model`` is quantized.

    Raises:
        ModelError: something is.
    """
    if is_quantized(model):
        raise ModelError("the model is quantized already", hint="quantize the float model")


def plan_of(
    model: nn.Module,
    example_inputs: Inputs,
    scheme: Scheme,
    *,
    include: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    overrides: Sequence[Override] = (),
) -> tuple[list[tuple[Site, Scheme, str | None]], list[str]]:
    """Return which weights are quantized, how, and with which range search where an override names one; and notes.

    Raises:
        ModelError: the forward fails, or nothing can be quantized.
        PatternError: a pattern matches no layer.
    """
    sites, notes = find(model, example_inputs)
    if not sites:
        raise ModelError(
            f"{type(model).__name__} has no linear layer or embedding whose weight could be quantized",
            where="; ".join(notes) or None,
            hint="slim_quant.quantize works on convolutions",
        )
    kept, more = chosen(sites, include, skip)
    notes.extend(more)
    hits = _hits(overrides, sites)
    plan = []
    for site in kept:
        mine = [item for item, names in zip(overrides, hits, strict=True) if site.names in names]
        if mine and mine[-1].skip:
            notes.append(f"{site.layers[0]} stays in float: it is skipped")
            continue
        scales = [item.weight for item in mine if item.weight is not None]
        searches = [item.weight_observer for item in mine if item.weight_observer is not None]
        plan.append((site, scales[-1] if scales else scheme, searches[-1] if searches else None))
    if not plan:
        raise ModelError("every layer is skipped or not included: nothing is left to quantize")
    return plan, notes


def _hits(overrides: Sequence[Override], sites: Sequence[Site]) -> list[set[tuple[str, ...]]]:
    found = []
    for item in overrides:
        hits = {
            site.names
            for site in sites
            if item.op in (None, site.kind) and (item.match is None or matches(site, [item.match]))
        }
        if not hits:
            layers = [layer for site in sites for layer in site.layers]
            raise no_layer(f"override {item}", item.match, layers)
        found.append(hits)
    return found


def _parameter(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _row(site: Site, scheme: Scheme, weight: torch.Tensor, done: PackedWeight) -> dict[str, Any]:
    noise = sqnr_db(weight.detach().float(), done.floats().float())
    return {
        "name": site.layers[0],
        "op": site.kind,
        "bits": scheme.bits,
        "group": done.layout.group if scheme.granularity == "per_group" else scheme.granularity,
        "weight_sqnr_db": round(min(noise, _MOST_DB), 2),
        "sqnr_db": None,
    }
