"""The plugin: what slim-quant registers. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slim_core import Lazy, hookimpl

if TYPE_CHECKING:
    import pluggy

    from slim_core.registry import Register, Registry

#: slim-quant's own targets; ``slim_quant.targets`` reads the same table.
TARGETS = {
    "generic": Lazy("slim_quant.targets", "GENERIC"),
    "onnxruntime": Lazy("slim_quant.targets", "ONNXRUNTIME"),
    "openvino": Lazy("slim_quant.targets", "OPENVINO"),
}

#: slim-quant's own corrections; ``slim_quant.ptq.corrections`` reads the same table.
CORRECTIONS = {
    "adaround": Lazy("slim_quant.ptq.corrections.adaround", "AdaRound"),
    "bias_absorption": Lazy("slim_quant.ptq.corrections.absorption", "BiasAbsorption"),
    "bias_correction": Lazy("slim_quant.ptq.corrections.bias", "BiasCorrection"),
    "bias_correction_analytic": Lazy("slim_quant.ptq.corrections.bias_analytic", "AnalyticBiasCorrection"),
    "brecq": Lazy("slim_quant.ptq.corrections.brecq", "BRECQ"),
    "equalization": Lazy("slim_quant.ptq.corrections.equalization", "Equalization"),
    "gptq": Lazy("slim_quant.ptq.corrections.gptq", "GPTQ"),
    "qdrop": Lazy("slim_quant.ptq.corrections.brecq", "QDrop"),
    "smoothquant": Lazy("slim_quant.ptq.corrections.smoothquant", "SmoothQuant"),
}


@hookimpl
def slim_add_hookspecs(pluginmanager: pluggy.PluginManager, registry: Registry) -> None:
    from slim_quant import hookspecs

    pluginmanager.add_hookspecs(hookspecs)
    registry.add_kind("quant_targets", "quantization target", {})
    registry.add_kind("corrections", "correction", {})


@hookimpl
def slim_register_techniques(register: Register) -> None:
    register("quant.ptq", Lazy("slim_quant.technique", "PTQTechnique"))
    register("quant.mixed", Lazy("slim_quant.mixed.technique", "MixedTechnique"))
    register("quant.qat", Lazy("slim_quant.qat.technique", "QATTechnique"))
    register("quant.weight_only", Lazy("slim_quant.weight_only.technique", "WeightOnlyTechnique"))
    register("quant.dynamic", Lazy("slim_quant.dynamic.technique", "DynamicTechnique"))


@hookimpl
def slim_register_transforms(register: Register) -> None:
    register("quant.qat", Lazy("slim_quant.qat.record", "QATReplayer"))
    register("quant.static", Lazy("slim_quant.record", "StaticReplayer"))
    register("quant.weight_only", Lazy("slim_quant.weight_only.record", "WeightOnlyReplayer"))
    register("quant.dynamic", Lazy("slim_quant.dynamic.record", "DynamicReplayer"))


@hookimpl
def slim_register_quant_targets(register: Register) -> None:
    for name, value in TARGETS.items():
        register(name, value)


@hookimpl
def slim_register_corrections(register: Register) -> None:
    for name, value in CORRECTIONS.items():
        register(name, value)


@hookimpl
def slim_register_commands(cli: Any) -> None:
    cli.add_lazy("quant", Lazy("slim_quant.cli", "quant"), "Quantize a model, and write the file of its runtime.")
