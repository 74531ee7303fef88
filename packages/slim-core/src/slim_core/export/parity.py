"""Does an exported file compute what the PyTorch model computes? Runs both and compares; exports nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.agreement import difference
from slim_core.errors import ExportError, MissingExtraError
from slim_core.extras import require
from slim_core.modes import evaluating
from slim_core.workload import Inputs, call, tensors_of

#: Runtimes order their sums differently: fp32 networks differ by at most this share of the largest output.
FLOAT_TOLERANCE = 1e-3
#: A value on a rounding boundary may fall to either side and moves what follows by a step; the whole must agree.
QUANTIZED_SQNR_DB = 15.0


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of two implementations.

    Args:
        max_diff: largest absolute difference over all outputs; not finite where NaN or infinity stand elsewhere.
        largest: largest finite absolute value of the reference.
        sqnr_db: power of the reference over power of the difference, in dB; ``inf`` when they are equal.
        batches: batch sizes that were run.
    """

    max_diff: float
    largest: float
    sqnr_db: float
    batches: tuple[int, ...]

    def acceptable(self, *, quantized: bool) -> bool:
        if not math.isfinite(self.max_diff):
            return False
        if quantized:
            return self.sqnr_db >= QUANTIZED_SQNR_DB or self.max_diff <= FLOAT_TOLERANCE * max(self.largest, 1.0)
        return self.max_diff <= FLOAT_TOLERANCE * max(self.largest, 1.0)


def compare(
    model: nn.Module, example_inputs: Inputs, path: Path, *, dynamic_batch: bool = True
) -> tuple[Parity | None, str | None]:
    """Run ``model`` and the file at ``path`` on the same inputs, at batch 1 and 3 where the batch is dynamic.

    Returns:
        The agreement and ``None``, or ``None`` and why it was not checked.
    """
    try:
        ort = require("onnxruntime", "slim-latency[onnxruntime]")
    except MissingExtraError:
        return None, "parity not checked: onnxruntime is not installed (pip install 'slim-latency[onnxruntime]')"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # products with packed weights in float: by default onnxruntime rounds their activations where a file leaves it open
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime does not load the exported file: {error}", where=str(path)) from error
    names = [item.name for item in session.get_inputs()]
    sizes = (1, 3) if dynamic_batch else (None,)
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for size in sizes:
        inputs = resize_batch(example_inputs, size)
        with evaluating(model), torch.no_grad():
            expected = [tensor.detach().cpu().numpy() for tensor in tensors_of(call(model, inputs))]
        feeds = _feeds(names, inputs)
        got = session.run(None, feeds)
        if len(got) != len(expected):
            raise ExportError(f"the file has {len(got)} outputs, the model {len(expected)}", where=str(path))
        pairs.extend(zip(expected, got, strict=True))
    return measure(pairs, tuple(size or _batch(example_inputs) for size in sizes)), None


def measure(pairs: list[tuple[NDArray[Any], NDArray[Any]]], batches: tuple[int, ...]) -> Parity:
    """Compare (reference, other) pairs of arrays.

    Raises:
        ExportError: shapes differ.
    """
    for reference, other in pairs:
        if reference.shape != other.shape:
            raise ExportError(f"an output has shape {other.shape} in the file and {reference.shape} in PyTorch")
    found = difference(pairs)
    return Parity(max_diff=found.max_diff, largest=found.largest, sqnr_db=found.sqnr_db, batches=batches)


def resize_batch(example_inputs: Inputs, size: int | None) -> Any:
    """Return the inputs with ``size`` samples, repeating or cutting what is there."""
    if size is None:
        return example_inputs
    batch = _batch(example_inputs)
    index = torch.arange(size) % batch

    def change(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
            return value[index.to(value.device)]
        return value

    if isinstance(example_inputs, Mapping):
        return {name: change(value) for name, value in example_inputs.items()}
    return tuple(change(value) for value in example_inputs)


def _feeds(names: list[str], inputs: Inputs) -> dict[str, NDArray[Any]]:
    if isinstance(inputs, Mapping) and all(name in inputs for name in names):
        return {name: inputs[name].cpu().numpy() for name in names}
    return dict(zip(names, (tensor.cpu().numpy() for tensor in tensors_of(inputs)), strict=False))


def _batch(example_inputs: Inputs) -> int:
    return next((tensor.shape[0] for tensor in tensors_of(example_inputs) if tensor.dim()), 1)
