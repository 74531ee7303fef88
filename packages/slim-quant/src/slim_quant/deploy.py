"""Is the deployed model what was simulated? Runs the file on onnxruntime, compares, and lists what runs in integers."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slim_core.export.parity import measure
from slim_core.extras import require
from slim_core.modes import evaluating
from slim_core.workload import call, tensors_of


@dataclass(frozen=True, slots=True)
class Deployment:
    """Simulated against deployed.

    Args:
        samples: how many samples were compared.
        agreement: share of samples with the same top-1 class, in percent.
        sqnr_db: power of the simulated outputs over the power of the difference, in dB.
        max_diff: largest absolute difference of an output.
    """

    samples: int
    agreement: float
    sqnr_db: float
    max_diff: float


def compare(model: nn.Module, path: str | os.PathLike[str], batches: Iterable[Any]) -> Deployment:
    """Run ``model`` in PyTorch and the file at ``path`` on onnxruntime on the same batches, and compare.

    The first output is taken as class scores, in its last dimension.

    Args:
        model: the simulated model.
        path: its exported file.
        batches: batches of what the forward takes.
    """
    ort = require("onnxruntime", "slim-quant[onnxruntime]")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    pairs = []
    for batch in batches:
        with evaluating(model), torch.no_grad():
            simulated = tensors_of(call(model, batch))[0].cpu().numpy()
        named = isinstance(batch, Mapping) and all(name in batch for name in names)
        tensors = [batch[name] for name in names] if named else tensors_of(batch)
        deployed = session.run(None, {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)})
        pairs.append((simulated, deployed[0]))
    same = [np.argmax(one, -1) == np.argmax(other, -1) for one, other in pairs]
    agreement = 100 * float(np.concatenate([item.reshape(-1) for item in same]).mean())
    parity = measure(pairs, tuple(len(one) for one, _ in pairs))
    return Deployment(sum(len(one) for one, _ in pairs), agreement, parity.sqnr_db, parity.max_diff)


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
