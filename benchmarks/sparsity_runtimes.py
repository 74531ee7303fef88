"""What zeros bring: bytes of checkpoints and ONNX files, and latency on each runtime, dense against sparse.

The same network, once dense and then with zeros in several patterns, on onnxruntime, openvino and PyTorch (its dense
kernels, and its sparse CSR and BSR kernels for linear layers). Beside them stand the same network with channels
removed, as the yardstick, and the dense one a second time, whose ratio shows the noise. Latencies are interleaved:
every round times every candidate, and what counts is the ratio to the dense network within a round. A runtime that
cannot run a pattern is recorded with its own words. Weights are random: zeros cost the same whatever the network has
learned.

Writes ``results/sparsity_runtimes.json``. It takes about ten minutes.

    python benchmarks/sparsity_runtimes.py [--rounds 20] [--threads 1] [--network "linear, batch 1" …]

With ``--network`` only these are measured; what the file holds of the others stays.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import slim_prune
from slim_core.checkpoint import save
from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_core.files import write_json
from slim_core.measure import Artifact, Measurement, Session, measure, this_device
from slim_core.measure.device import versions
from slim_core.measure.eager import TorchSession
from slim_core.workload import Workload
from slim_latency.onnx_runtime import OnnxRuntimeBackend
from slim_prune import sparsity
from slim_prune.sparsity import NM, Block, Unstructured
from slim_zoo.models import resnet20

LIBRARIES = ("slim-core", "slim-prune", "torch", "onnxruntime", "openvino", "onnx", "numpy")
RESULT = Path(__file__).parent / "results" / "sparsity_runtimes.json"

#: name -> arguments of ``sparsity.plan``
PATTERNS: dict[str, dict[str, Any]] = {
    "unstructured 50 %": {"scheme": Unstructured(), "sparsity": 0.5},
    "unstructured 90 %": {"scheme": Unstructured(), "sparsity": 0.9},
    "unstructured 99 %": {"scheme": Unstructured(), "sparsity": 0.99},
    "2:4": {"scheme": NM(2, 4)},
    "1:4": {"scheme": NM(1, 4)},
    "blocks 16x1 90 %": {"scheme": Block((16, 1)), "sparsity": 0.9},
    "blocks 8x8 90 %": {"scheme": Block((8, 8)), "sparsity": 0.9},
}
AGAIN = "dense, again"
CHANNELS = "channels, half of the MACs"


class Perceptron(nn.Module):
    """Four linear layers of 1024 x 1024: the shape that sparse matrix products like best."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1024, 1024) for _ in range(4))
        self.head = nn.Linear(1024, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class SparseLinear(nn.Module):
    """A linear layer on one of PyTorch's sparse layouts."""

    def __init__(self, layer: Any, convert: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = convert(layer.weight.detach())
        self.bias = layer.bias.detach()[:, None]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.weight @ x.T + self.bias).T
        return y


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "CSR": (
        lambda weight: weight.to_sparse_csr(),
        ("unstructured 50 %", "unstructured 90 %", "unstructured 99 %", "2:4"),
    ),
    "BSR": (lambda weight: weight.to_sparse_bsr((8, 8)), ("blocks 8x8 90 %",)),
    "semi-structured": (lambda weight: torch.sparse.to_sparse_semi_structured(weight), ("2:4",)),
}


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    linear, convolutions = Perceptron().eval(), resnet20().eval()
    return {
        "linear, batch 1": (linear, (torch.randn(1, 1024, generator=generator),)),
        "linear, batch 64": (linear, (torch.randn(64, 1024, generator=generator),)),
        "resnet20, batch 1": (convolutions, (torch.randn(1, 3, 32, 32, generator=generator),)),
    }


def variants(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Workload]:
    """Return the dense network, one for each pattern, and one with channels removed."""
    base = Workload(model, inputs)
    found = {"dense": base}
    for name, arguments in PATTERNS.items():
        plan = sparsity.plan(model, **arguments)
        found[name] = base.with_model(plan.apply(model), plan.transform())
    channels = slim_prune.plan(model, inputs, {"macs": 0.5})
    found[CHANNELS] = base.with_model(channels.apply(model), channels.transform())
    found[AGAIN] = base  # the last to be loaded: where its memory lies is part of the noise
    return found


def sizes(found: Mapping[str, Workload], folder: Path) -> dict[str, dict[str, Any]]:
    rows = {}
    for name, workload in found.items():
        checkpoint, onnx = folder / f"{name}.safetensors", folder / f"{name}.onnx"
        save(workload, checkpoint, parity=False)
        to_onnx(workload.model, workload.example_inputs, onnx, check=False)
        parameters = sum(int(p.numel()) for p in workload.model.parameters())
        rows[name] = {
            "parameters": parameters,
            "nonzero": sum(int((p != 0).sum()) for p in workload.model.parameters()),
            "checkpoint_bytes": checkpoint.stat().st_size,
            "checkpoint_zlib_bytes": len(zlib.compress(checkpoint.read_bytes(), 6)),
            "onnx_bytes": onnx.stat().st_size,
            "onnx_zlib_bytes": len(zlib.compress(onnx.read_bytes(), 6)),
        }
    return rows


class OpenVinoSession(Session):
    """A compiled model of openvino."""

    def __init__(self, path: Path, threads: int, **settings: Any) -> None:
        import openvino  # type: ignore[import-untyped]

        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._request = core.compile_model(str(path), "CPU", {**options, **settings}).create_infer_request()
        self.info = {"runtime": f"openvino {openvino.__version__}", "device": "CPU", "threads": threads,
                     "settings": {**options, **settings}}  # fmt: skip

    def run(self, inputs: Any) -> list[NDArray[Any]]:
        result = self._request.infer([tensor.numpy() for tensor in inputs], share_inputs=True)
        return [np.array(value) for value in result.values()]

    def bind(self, inputs: Any) -> Callable[[], object]:
        arrays = [tensor.numpy() for tensor in inputs]
        return lambda: self._request.infer(arrays, share_inputs=True, share_outputs=True)


def timed(
    found: Mapping[str, Workload], folder: Path, rounds: int, threads: int
) -> tuple[dict[str, Measurement], list[str]]:
    """Return one measurement for each runtime, and what could not be run."""
    inputs = next(iter(found.values())).example_inputs
    references = {name: workload.model for name, workload in found.items()}
    options: dict[str, Any] = {"rounds": rounds, "threads": threads, "budget_s": 60, "tolerance": 1e-3}
    done, refused = {}, []
    backend = OnnxRuntimeBackend()
    done["onnxruntime"] = measure(
        {name: (backend, Artifact(w.model, folder / f"{name}.onnx", name)) for name, w in found.items()},
        inputs, **options,
    )  # fmt: skip
    for title, settings in (
        ("openvino", {}),
        ("openvino, sparse weights", {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.5}),
    ):
        try:
            sessions = {name: OpenVinoSession(folder / f"{name}.onnx", threads, **settings) for name in found}
            done[title] = measure(sessions, inputs, references=references, **options)
        except (ImportError, RuntimeError, SlimError) as error:
            refused.append(f"{title}: {str(error).strip().splitlines()[0]}")
    done["PyTorch, dense kernels"] = measure(
        {name: TorchSession(w.model, threads, "eager") for name, w in found.items()}, inputs,
        references=references, **options,
    )  # fmt: skip
    if isinstance(found["dense"].model, Perceptron):
        candidates: dict[str, Any] = {"dense": TorchSession(found["dense"].model, threads, "eager")}
        known: dict[str, nn.Module] = {"dense": found["dense"].model}
        for layout, (convert, names) in LAYOUTS.items():
            for name in names:
                try:
                    model = copy.deepcopy(found[name].model)
                    layers = [SparseLinear(layer, convert) for layer in model.get_submodule("layers").children()]
                    model.layers = nn.ModuleList(layers)
                    with torch.no_grad():
                        model(*inputs)
                except (RuntimeError, NotImplementedError) as error:
                    refused.append(f"PyTorch, {layout}, {name}: {str(error).strip().splitlines()[0]}")
                    continue
                candidates[f"{name}, {layout}"] = TorchSession(model, threads, "eager")
                known[f"{name}, {layout}"] = found[name].model
        done["PyTorch, sparse kernels"] = measure(candidates, inputs, references=known, **options)
    return done, refused


def row(measurement: Measurement) -> dict[str, Any]:
    return {
        "rounds": measurement.protocol["rounds"],
        "others_busy_cores": measurement.protocol["others_busy_cores"],
        "confidence": measurement.confidence,
        "timings": {
            timing.name: {
                key: round(getattr(timing, key), 5)
                for key in ("median_ms", "q1_ms", "q3_ms", "ratio", "ratio_low", "ratio_high")
            }
            | {"verdict": timing.verdict}
            for timing in measurement.timings
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--network", action="append", choices=["linear, batch 1", "linear, batch 64", "resnet20, batch 1"]
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data: dict[str, Any] = {"networks": {}}
    if arguments.network and arguments.output.exists():
        data = json.loads(arguments.output.read_text())
    data |= {
        "device": this_device().to_json(),
        "versions": dict(versions(LIBRARIES)),
        "threads": arguments.threads,
    }
    for name, (model, inputs) in networks().items():
        if arguments.network and name not in arguments.network:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = variants(model, inputs)
            table = sizes(made, Path(folder))
            timings, refused = timed(made, Path(folder), arguments.rounds, arguments.threads)
        data["networks"][name] = {
            "sizes": table,
            "runtimes": {runtime: row(measurement) for runtime, measurement in timings.items()},
            "refused": refused,
        }
        write_json(arguments.output, data)
        for runtime, measurement in timings.items():
            for timing in measurement.timings:
                print(f"{name:18} {runtime:26} {timing.name:34} {timing.median_ms:9.3f} ms  {timing.ratio:.3f}")
        print(*refused, sep="\n", flush=True)


if __name__ == "__main__":
    main()
