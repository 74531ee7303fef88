"""The plugin: what slim-latency registers. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slim_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slim_core.registry import Register


@hookimpl
def slim_register_backends(register: Register) -> None:
    register("onnxruntime", Lazy("slim_latency.onnx_runtime", "OnnxRuntimeBackend"))
    register("openvino", Lazy("slim_latency.openvino_runtime", "OpenVinoBackend"))
    register("ncnn", Lazy("slim_latency.ncnn_runtime", "NcnnBackend"))


@hookimpl
def slim_register_cost_models(register: Register) -> None:
    from slim_latency.devices import find_devices

    for name, file in find_devices().items():
        register(f"latency:{name}", file)


@hookimpl
def slim_register_commands(cli: Any) -> None:
    cli.add_lazy(
        "latency", Lazy("slim_latency.cli", "latency"), "Measure models on real runtimes, and predict latency."
    )
