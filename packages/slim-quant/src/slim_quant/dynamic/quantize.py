"""``quantize_dynamic``: int8 products whose activations get their scales from the batch at hand; no calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, get_args

import torch
from torch import nn

from slim_core.errors import ModelError, SlimError
from slim_core.graph.isolate import unwrap
from slim_core.modes import evaluating
from slim_core.progress import Progress, SilentProgress
from slim_core.workload import Inputs, call
from slim_quant.dynamic.install import install_products, install_recurrent, install_scopes, recurrent_weights
from slim_quant.dynamic.linear import seen_products
from slim_quant.dynamic.record import describe
from slim_quant.dynamic.recurrent import recurrent_obstacle
from slim_quant.dynamic.rounding import Activations
from slim_quant.overrides import Override, no_layer
from slim_quant.result import QuantReport
from slim_quant.schemes import WEIGHT, Scheme, sqnr_db
from slim_quant.weight_only.comparing import compare_modules
from slim_quant.weight_only.copying import copy_without
from slim_quant.weight_only.find import Site, find
from slim_quant.weight_only.packed import PackedWeight
from slim_quant.weight_only.quantize import require_float
from slim_quant.weight_only.result import PackedResult, state_bytes
from slim_quant.weight_only.rounding import packed

_MOST_DB = 200.0


@dataclass(slots=True)
class DynamicPlan:
    """Which layers become dynamic, and how: weights of products, recurrent layers by path, and notes."""

    sites: list[tuple[Site, Scheme]] = field(default_factory=list)
    recurrent: dict[str, Scheme] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def quantize_dynamic(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    activations: Activations = "per_tensor",
    weight: Scheme = WEIGHT,
    clip: str = "abs_max",
    include: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    sample: Any = None,
    progress: Progress | None = None,
) -> PackedResult:
    """Let linear and recurrent layers multiply in int8, with activations rounded by the range of each batch.

    The result is a copy of ``model`` of the same class whose weights are int8 in memory. It computes what the exported
    file does: products of integers, scaled to float. LSTM layers round their inputs once per sequence, and their hidden
    state at each step. GRU and plain RNN layers compute in float with int8 weights, since no runtime that is supported
    here has them in integers. No gradients pass the rounding: it is for inference.

    Args:
        model: any model whose forward runs; it is not changed.
        example_inputs: inputs to run it with.
        activations: ``"per_tensor"``: one scale and zero point for a layer's input, as ``DynamicQuantizeLinear``
            computes them; ``"per_token"``: a scale for each vector along the last dimension, more accurate where tokens
            differ, with operators of its own in the file. LSTM layers are ``"per_tensor"``.
        weight: scheme of the weights: 8 bits, symmetric, per channel or per tensor.
        clip: how ranges of weights are found: ``"abs_max"`` or ``"mse"``.
        include: globs over layer names; only these are quantized.
        skip: globs over layer names; these stay in float.
        overrides: other schemes of weights, or ``skip``, for single layers, by ``match`` or ``op="linear"``. The last
            that matches wins.
        sample: inputs on which float and quantized outputs are compared; ``None``: the example inputs.
        progress: where to report to.

    Raises:
        ModelError: the forward fails, the model is quantized already, or nothing in it can be quantized.
        PatternError: a pattern matches no layer.
        SlimError: another scheme of weights, or unknown ``activations``.
    """
    progress = progress or SilentProgress()
    if activations not in get_args(Activations):
        raise SlimError(f"unknown activations '{activations}'", hint=f"known: {', '.join(get_args(Activations))}")
    model = unwrap(model)
    require_float(model)
    plan = plan_dynamic(model, example_inputs, weight, include, skip, overrides)
    result = _installed(model, plan, activations, clip, progress)
    missed = _missed(result, plan, example_inputs)
    if missed:
        plan.notes.extend(
            f"{site.layers[0]} stays in float: its product is not found in the forward" for site in missed
        )
        plan.sites = [item for item in plan.sites if item[0] not in missed]
        _require_some(model, plan)
        result = _installed(model, plan, activations, clip, progress)
    names = {name: (site.kind, scheme, site.axis) for site, scheme in plan.sites for name in site.names}
    record = describe(result, names, plan.recurrent, _scopes(plan), activations)
    rows, whole = _rows(model, result, plan, example_inputs if sample is None else sample)
    sizes = {"float": state_bytes(model), "quantized": state_bytes(result)}
    return PackedResult(result, record, QuantReport(tuple(rows), tuple(plan.notes), 0, whole), sizes)


def plan_dynamic(
    model: nn.Module, example_inputs: Inputs, weight: Scheme, include: Sequence[str], skip: Sequence[str],
    overrides: Sequence[Override],
) -> DynamicPlan:  # fmt: skip
    """Return which layers become dynamic.

    Raises:
        ModelError: the forward fails, or nothing can be quantized.
        PatternError: a pattern matches no layer.
        SlimError: a scheme that integer products do not take.
    """
    found, notes = find(model, example_inputs)
    sites = {site.layers: site for site in found if site.kind == "linear"}
    layers: dict[tuple[str, ...], str] = dict.fromkeys(sites, "linear")
    plan = DynamicPlan(notes=[note for note in notes if "recurrent layer" not in note])
    modules = {path: module for path, module in model.named_modules() if isinstance(module, nn.RNNBase)}
    for path, module in modules.items():
        reason = recurrent_obstacle(module)
        if reason is None:
            layers[(path or type(module).__name__,)] = module.mode.lower().partition("_")[0]
        else:
            plan.notes.append(f"{path} stays in float: {reason}")
    _check_patterns(layers, include, skip, overrides)
    for names, op in layers.items():
        scheme = _scheme(names, op, weight, include, skip, overrides, plan.notes)
        if scheme is None:
            continue
        _require_int8(scheme, names[0])
        if names in sites:
            plan.sites.append((sites[names], scheme))
        else:
            path = names[0] if names[0] in modules else ""
            plan.recurrent[path] = scheme
            if modules[path].mode != "LSTM":
                plan.notes.append(
                    f"{names[0]} computes in float with int8 weights: onnxruntime has no integer {modules[path].mode}"
                )
    _require_some(model, plan)
    return plan


def _require_some(model: nn.Module, plan: DynamicPlan) -> None:
    if not plan.sites and not plan.recurrent:
        raise ModelError(
            f"{type(model).__name__} has no linear or recurrent layer left to quantize",
            where="; ".join(plan.notes) or None,
        )


def _check_patterns(
    layers: dict[tuple[str, ...], str], include: Sequence[str], skip: Sequence[str], overrides: Sequence[Override]
) -> None:
    names = [name for group in layers for name in group]
    wanted = [("include", item, None) for item in include if item != "*"] + [("skip", item, None) for item in skip]
    for option, pattern, op in [*wanted, *(("override", item.match or "*", item.op) for item in overrides)]:
        hits = [group for group, own in layers.items() if _hits(group, pattern) and op in (None, own)]
        if not hits:
            raise no_layer(f"{option} pattern '{pattern}'", pattern, names)


def _scheme(
    names: tuple[str, ...], op: str, weight: Scheme, include: Sequence[str], skip: Sequence[str],
    overrides: Sequence[Override], notes: list[str],
) -> Scheme | None:  # fmt: skip
    mine = [item for item in overrides if item.op in (None, op) and _hits(names, item.match or "*")]
    if any(_hits(names, pattern) for pattern in skip) or (mine and mine[-1].skip):
        notes.append(f"{names[0]} stays in float: it is skipped")
        return None
    if not any(_hits(names, pattern) for pattern in include):
        notes.append(f"{names[0]} stays in float: it is not included")
        return None
    return next((item.weight for item in reversed(mine) if item.weight is not None), weight)


def _hits(names: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _require_int8(scheme: Scheme, layer: str) -> None:
    if scheme.bits != 8 or not scheme.symmetric or scheme.granularity == "per_group":
        raise SlimError(
            f"{layer} cannot be quantized dynamically with {scheme.to_json()}",
            hint="integer products take weights of 8 bits, symmetric, per channel or per tensor; fewer bits and groups "
            "are for slim_quant.quantize_weights",
        )


def _installed(
    model: nn.Module, plan: DynamicPlan, activations: Activations, clip: str, progress: Progress
) -> nn.Module:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    recurrent = {path: recurrent_weights(_recurrent(model, path)) for path in plan.recurrent}
    full = [f"{path}.{name}" if path else name for path, names in recurrent.items() for name in names]
    result = copy_without(model, [*(name for site, _ in plan.sites for name in site.names), *full])
    with progress.track("quantizing weights", len(plan.sites) + len(plan.recurrent)) as track:
        for site, scheme in plan.sites:
            done = packed(parameters[site.names[0]], site.axis, scheme, clip)
            install_products(result, site.names, done, activations)
            track.advance(1)
        for path, scheme in plan.recurrent.items():
            source = _recurrent(model, path)
            weights: dict[str, PackedWeight] = {}
            for name in recurrent[path]:
                tensor = source._parameters[name]
                if tensor is not None:
                    weights[name] = packed(tensor, 1, scheme, clip)
            install_recurrent(_recurrent(result, path), weights)
            track.advance(1)
    install_scopes(result, _scopes(plan))
    return result


def _recurrent(model: nn.Module, path: str) -> nn.RNNBase:
    module = model.get_submodule(path)
    assert isinstance(module, nn.RNNBase)  # noqa: S101 - planned as one
    return module


def _scopes(plan: DynamicPlan) -> set[str]:
    """Return the modules that multiply with a weight of another module: their forwards must look for it."""
    return {path for site, _ in plan.sites for path in site.modules if path not in _owners(site)}


def _owners(site: Site) -> set[str]:
    return {name.rpartition(".")[0] for name in site.names}


def _missed(result: nn.Module, plan: DynamicPlan, example_inputs: Inputs) -> list[Site]:
    """Return the weights that no integer product read in a forward."""
    with evaluating(result), torch.no_grad(), seen_products() as seen:
        call(result, example_inputs)
    buffers = dict(result.named_buffers(remove_duplicate=False))
    return [site for site, _ in plan.sites if id(buffers[f"{site.names[0]}_packed"]) not in seen]


def _rows(
    model: nn.Module, result: nn.Module, plan: DynamicPlan, sample: Any
) -> tuple[list[dict[str, Any]], float | None]:
    paths = {site.modules[0] for site, _ in plan.sites} | set(plan.recurrent)
    found = compare_modules(model, result, sample, paths)
    buffers = dict(result.named_modules())
    rows: list[dict[str, Any]] = []
    for site, scheme in plan.sites:
        path, _, name = site.names[0].rpartition(".")
        weight = dict(model.named_parameters(remove_duplicate=False))[site.names[0]]
        noise = sqnr_db(weight.detach().float(), _packed_floats(buffers[path], name))
        rows.append({
            "name": site.layers[0], "op": "linear", "bits": scheme.bits,
            "weight_sqnr_db": round(min(noise, _MOST_DB), 2), "sqnr_db": found[site.modules[0]],
        })  # fmt: skip
    for path, scheme in plan.recurrent.items():
        mode = _recurrent(model, path).mode.lower()
        rows.append({"name": path or mode, "op": mode, "bits": scheme.bits, "sqnr_db": found[path]})
    return rows, found[""]


def _packed_floats(module: nn.Module, name: str) -> torch.Tensor:
    from slim_quant.weight_only.packed import packed_weight

    return packed_weight(module, name).floats().float()
