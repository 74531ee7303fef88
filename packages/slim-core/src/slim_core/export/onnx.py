"""``to_onnx``: a model as one clean ONNX file. Folding and comparing are in the modules beside this one."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim_core.errors import ExportError
from slim_core.export import folding, parity
from slim_core.export.compressed import BLOCKED_OPSET
from slim_core.export.mode import as_onnx
from slim_core.export.quantizers import has_fake_quantizers, with_onnx_quantizers
from slim_core.extras import require
from slim_core.files import atomic_path, require_folder
from slim_core.graph.export import export_program, quiet, user_line
from slim_core.graph.isolate import require_ready
from slim_core.workload import Inputs

#: A protobuf message holds 2 GiB; above this many bytes of tensors the weights go to a second file.
SINGLE_FILE_LIMIT = 1_900_000_000
#: What packed weights can be written for.
RUNTIMES = ("onnxruntime", "openvino", "generic")
_DIGITS = 16  # of the content's hash, in the name of that second file


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An exported file.

    Args:
        path: the file.
        bytes: its size, with its ``.data`` file where there is one.
        opset: the ONNX operator set.
        inputs: input names, in order.
        outputs: output names, in order.
        parity: agreement with PyTorch on onnxruntime, or ``None`` when it was not checked.
        notes: one line for everything that a reader should know.
    """

    path: Path
    bytes: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parity: parity.Parity | None
    notes: tuple[str, ...] = ()

    @property
    def max_diff(self) -> float | None:
        """Largest absolute difference between the file's outputs and PyTorch's, or ``None`` when not checked."""
        return None if self.parity is None else self.parity.max_diff


def to_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
    runtime: str = "onnxruntime",
) -> ExportResult:
    """Write ``model``, in eval mode, as an ONNX file.

    Fake-quantized weights become int8 initialisers; no tracing metadata stays in the file; the same model gives the
    same bytes. The file is written atomically. Weights above 1.9 GB go to a second file beside it,
    ``<path>.<hash of its content>.data``; those of earlier exports to ``path`` are removed.

    Args:
        model: any model that ``torch.export`` accepts.
        example_inputs: positional inputs (batch first) or keyword inputs.
        path: where to write; the folder must be there.
        dynamic_batch: accept any batch size; otherwise only that of ``example_inputs``.
        opset: ONNX operator set; ``None`` takes the exporter's.
        check: run the file on onnxruntime, where that is installed, and compare with PyTorch.
        runtime: what packed weights are written for: ``"onnxruntime"``, ``"openvino"``, or ``"generic"``, which is ONNX
            without operators of one runtime. Files of models without packed weights are the same for all.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ModelError: the forward fails, or ``torch.export`` refuses the model.
        ExportError: the folder of ``path`` is not there, an operator has no ONNX translation, or the file does not
            agree with the model.
    """
    onnx = require("onnx", "slim-core[onnx]")
    require("onnxscript", "slim-core[onnx]")
    target = Path(path)
    require_folder(target, ExportError)
    require_ready(model)
    if runtime not in RUNTIMES:
        raise ExportError(f"unknown runtime '{runtime}'", hint=f"known: {', '.join(RUNTIMES)}")
    with as_onnx() as mode:
        program = export_program(with_onnx_quantizers(model), example_inputs, dynamic_batch=dynamic_batch)
    quantized = has_fake_quantizers(model) or mode.integer_arithmetic
    if mode.packed_weights and opset is None:
        opset = BLOCKED_OPSET
    proto = _translate(program, type(model).__name__, opset)
    notes = list(folding.clean(proto, runtime))
    size = _write(onnx, proto, target)
    compared = None
    if check:
        compared, note = parity.compare(model, example_inputs, target, dynamic_batch=dynamic_batch)
        notes.extend([note] if note else [])
        if compared is not None and not compared.acceptable(quantized=quantized):
            raise ExportError(
                f"the exported file does not agree with {type(model).__name__}: largest difference "
                f"{compared.max_diff:.3g} where the outputs reach {compared.largest:.3g}",
                where=str(target),
                hint="the file was left for inspection; to_onnx(..., check=False) skips the comparison",
            )
    return ExportResult(
        path=target,
        bytes=size,
        opset=next(item.version for item in proto.opset_import if item.domain == ""),
        inputs=tuple(value.name for value in proto.graph.input),
        outputs=tuple(value.name for value in proto.graph.output),
        parity=compared,
        notes=tuple(notes),
    )


def _translate(program: torch.export.ExportedProgram, name: str, opset: int | None) -> Any:
    try:
        with quiet("torch.onnx"):
            translated = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset, optimize=True)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ExportError(
            f"{name} cannot be written as ONNX: {lines[0]}",
            where=user_line(cause),
            hint="replace the operator, or export the part of the model that does not need it",
        ) from error
    if translated is None:
        raise ExportError(f"{name} cannot be written as ONNX: the exporter returned nothing")
    return translated.model_proto


def _write(onnx: Any, proto: Any, target: Path) -> int:
    """Check ``proto`` and write it; return the bytes written."""
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights > SINGLE_FILE_LIMIT:
        return _write_external(onnx, proto, target)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter made an invalid file: {error}", where=str(target)) from error
    with atomic_path(target) as staging:
        staging.write_bytes(proto.SerializeToString(deterministic=True))
    _remove_stale(target, None)
    return target.stat().st_size


def _write_external(onnx: Any, proto: Any, target: Path) -> int:
    """Write the large tensors to a file that is named by its content, then ``target``, then remove older such files.

    So ``target`` names the data that it was written with at every moment, whenever the process is killed.
    """
    large = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) >= 1024]
    digest = hashlib.sha256()
    for tensor in large:
        digest.update(tensor.raw_data)
    data = target.with_name(f"{target.name}.{digest.hexdigest()[:_DIGITS]}.data")
    with atomic_path(data) as staging:
        offset = 0
        with open(staging, "wb") as handle:
            for tensor in large:
                raw = tensor.raw_data
                handle.write(raw)
                onnx.external_data_helper.set_external_data(tensor, data.name, offset=offset, length=len(raw))
                tensor.ClearField("raw_data")
                offset += len(raw)
    with atomic_path(target) as staging:
        staging.write_bytes(proto.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(staging))
        except onnx.checker.ValidationError as error:
            raise ExportError(f"the exporter made an invalid file: {error}", where=str(target)) from error
    _remove_stale(target, data)
    return target.stat().st_size + data.stat().st_size


def _remove_stale(target: Path, current: Path | None) -> None:
    """Remove the data files of earlier exports to ``target``."""
    name = re.compile(rf"{re.escape(target.name)}\.[0-9a-f]{{{_DIGITS}}}\.data")
    for other in target.parent.iterdir():
        if other != current and name.fullmatch(other.name):
            other.unlink(missing_ok=True)


#: what has to be installed to export: module and the extra that brings it
to_onnx.requires = (("onnx", "slim-core[onnx]"), ("onnxscript", "slim-core[onnx]"))  # type: ignore[attr-defined]
