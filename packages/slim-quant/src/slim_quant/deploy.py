"""From a quantized model to the file that runs, and whether the file computes what was simulated."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from slim_core.errors import DataError, ExportError
from slim_core.export import to_onnx
from slim_core.export.parity import measure
from slim_core.extras import require
from slim_core.graph.export import ExportedModel
from slim_core.modes import evaluating
from slim_core.workload import Inputs, call, tensors_of
from slim_quant.calibration import batch_size
from slim_quant.result import QuantResult
from slim_quant.runtimes import open_file
from slim_quant.weight_only.result import PackedResult

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Deployment:
    """Simulated against deployed.

    Args:
        samples: how many samples were compared.
        agreement: share of samples with the same top-1 class, in percent.
        sqnr_db: power of the simulated outputs over the power of the difference, in dB.
        max_diff: largest absolute difference of an output.
        runtime: what ran the file: name and version.
        path: the file.
    """

    samples: int
    agreement: float
    sqnr_db: float
    max_diff: float
    runtime: str = ""
    path: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; equal outputs have an SQNR of 200 dB."""
        return {**asdict(self), "sqnr_db": min(self.sqnr_db, 200.0)}


@dataclass(frozen=True, slots=True)
class Exported:
    """A file of a quantized model.

    Args:
        path: the file.
        bytes: its size.
        weight_bytes: of that, weights as integers.
        opset: ONNX operator set.
        target: the runtime that it is for.
        operators: how often each operator occurs in what onnxruntime makes of the file; empty for other targets.
        deployment: simulated against deployed on the target's runtime, or ``None`` where it was not compared.
        notes: what the reader should know.
    """

    path: Path
    bytes: int
    weight_bytes: int
    opset: int
    target: str
    operators: Mapping[str, int] = field(default_factory=dict)
    deployment: Deployment | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self), "path": str(self.path), "operators": dict(self.operators), "notes": list(self.notes),
            "deployment": None if self.deployment is None else self.deployment.to_json(),
        }  # fmt: skip


def export(
    result: QuantResult | PackedResult | nn.Module,
    path: str | os.PathLike[str],
    target: str | None = None,
    *,
    example_inputs: Inputs | None = None,
    batches: Iterable[Any] | None = None,
    dynamic_batch: bool = True,
) -> Exported:
    """Write a quantized model as an ONNX file with integer weights, for a runtime.

    Both runtimes read the same operators (QuantizeLinear and DequantizeLinear; scales per output channel of weights);
    what differs between targets is where quantizers are, which was decided when the model was quantized.

    Args:
        result: the result of a quantization, or its model.
        path: where to write; the folder must be there.
        target: the runtime: ``"onnxruntime"``, ``"openvino"`` or ``"generic"``; ``None``: the one it was quantized for.
        example_inputs: inputs to export with; ``None``: zeros of the shapes that the model was quantized with.
        batches: batches of what the forward takes, to compare simulated and deployed outputs on; ``None``: leave it.
        dynamic_batch: accept any batch size.

    Raises:
        MissingExtraError: onnx, onnxscript or the runtime is not installed.
        ExportError: the model cannot be written, or its inputs are not known.
    """
    model = result if isinstance(result, nn.Module) else result.model
    made_for = str(result.transform.data.get("target", "")) if isinstance(result, QuantResult) else ""
    chosen = target or made_for or "onnxruntime"
    runtime = chosen if chosen in ("onnxruntime", "openvino") else "generic"
    inputs = example_inputs if example_inputs is not None else zeros_for(model)
    written = to_onnx(model, inputs, path, dynamic_batch=dynamic_batch, runtime=runtime)
    notes = list(written.notes)
    if made_for and target and made_for != target:
        notes.append(
            f"quantizers are placed for {made_for}: on {target} the file is right, but may be slower than it could"
        )
    deployed = None
    if batches is not None and runtime != "generic":
        deployed = compare(model, written.path, batches, runtime)
    operators = runtime_operators(written.path) if runtime == "onnxruntime" else {}
    return Exported(
        written.path, written.bytes, integer_bytes(written.path), written.opset, chosen, operators, deployed,
        tuple(notes),
    )  # fmt: skip


def compare(
    model: nn.Module,
    path: str | os.PathLike[str],
    batches: Iterable[Any],
    runtime: str = "onnxruntime",
    *,
    threads: int | None = None,
) -> Deployment:
    """Run ``model`` in PyTorch and the file at ``path`` on a runtime on the same batches, and compare.

    The first output is taken as class scores: in dimension 1 of pictures ``(N, C, H, W)``, otherwise in the last one.
    OpenVINO computes what stays in float in float32 for this, as PyTorch does.

    Args:
        model: the simulated model.
        path: its exported file.
        batches: batches of what the forward takes.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        threads: threads of the runtime.

    Raises:
        UnknownNameError: there is no such runtime here.
        MissingExtraError: the runtime is not installed.
        MeasureError: it does not load or run the file.
        DataError: ``batches`` gives no batch.
    """
    runner = open_file(path, runtime, threads)
    pairs, same, samples = [], [], 0
    for batch in batches:
        with evaluating(model), torch.no_grad():
            simulated = tensors_of(call(model, batch))[0].cpu().numpy()
        deployed = runner.run(batch)[0]
        pairs.append((simulated, deployed))
        axis = 1 if simulated.ndim == 4 else -1
        same.append((np.argmax(simulated, axis) == np.argmax(deployed, axis)).reshape(-1))
        samples += batch_size(batch)
    runner.close()
    if not pairs:
        raise DataError("there is nothing to compare on: the data gives no batch")
    parity = measure(pairs, tuple(len(one) for one, _ in pairs))
    agreement = 100 * float(np.concatenate(same).mean())
    return Deployment(samples, agreement, parity.sqnr_db, parity.max_diff, str(runner.info["runtime"]), os.fspath(path))


def table(deployments: Mapping[str, Deployment] | Sequence[Deployment]) -> RenderableType:
    """Return simulated against deployed as one table for a terminal, a row for each comparison."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    named = deployments if isinstance(deployments, Mapping) else {Path(item.path).name: item for item in deployments}
    rows = Table(box=box.SIMPLE_HEAD)
    rows.add_column("file", overflow="fold")
    rows.add_column("runtime")
    for head in ("samples", "top-1 agreement", "SQNR dB", "largest difference"):
        rows.add_column(head, justify="right")
    for name, item in named.items():
        sqnr = "equal" if item.sqnr_db >= 200 else f"{item.sqnr_db:.1f}"
        rows.add_row(
            Text(name), Text(item.runtime), str(item.samples), f"{item.agreement:.2f} %", sqnr, f"{item.max_diff:.3g}"
        )
    return rows


def runtime_operators(path: str | os.PathLike[str], *, threads: int = 1) -> dict[str, int]:
    """Return how often each operator occurs in the graph that onnxruntime makes of the file for this machine."""
    ort = require("onnxruntime", "slim-quant[onnxruntime]")
    onnx = require("onnx", "slim-core[onnx]")
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.optimized_model_filepath = str(optimized)
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(str(optimized), load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node))


def integer_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of the file's tensors of at least two dimensions that are integers of up to 8 bits."""
    onnx = require("onnx", "slim-core[onnx]")
    kinds = onnx.TensorProto
    whole, half = (kinds.INT8, kinds.UINT8), (kinds.INT4, kinds.UINT4)
    total = 0
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if len(tensor.dims) > 1:
            total += count if tensor.data_type in whole else (count + 1) // 2 if tensor.data_type in half else 0
    return total


def zeros_for(model: nn.Module) -> Inputs:
    """Return inputs of the shapes that an exported graph was made with, one sample each, filled with zeros.

    Raises:
        ExportError: the model is no exported graph, or does not tell the shapes of its inputs.
    """
    nodes = [node for node in model.graph.nodes if node.op == "placeholder"] if isinstance(model, ExportedModel) else []
    values = [node.meta.get("val") for node in nodes]
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise ExportError("the model does not tell what inputs it takes", hint="pass example_inputs to export(…)")
    shapes = [[size if isinstance(size, int) else 1 for size in value.shape] for value in values]
    tensors = [torch.zeros(shape, dtype=value.dtype) for shape, value in zip(shapes, values, strict=True)]
    assert isinstance(model, ExportedModel)  # noqa: S101 - it has nodes
    args, kwargs = torch.utils._pytree.tree_unflatten(tensors, model._in_spec)
    return kwargs if kwargs and not args else tuple(args)
