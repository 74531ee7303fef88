"""What the quantization benchmarks share: rows that survive a stop, pictures, judging files, jobs in other processes.

Jobs of the peers, and whatever must not share a process with other work, run through ``jobs.py`` beside this; its
docstring says how to make an environment for NNCF and torchao.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bases
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.data import generator
from slim_core.export import to_onnx
from slim_core.files import atomic_path, write_json
from slim_core.measure import this_device
from slim_core.measure.device import versions

HERE = Path(__file__).parent.parent
RESULTS = HERE / "results"
FOLDER = bases.FOLDER.parent / "quant"
JOBS = HERE / "quantizing" / "jobs.py"
LIBRARIES = ("slim-core", "slim-quant", "slim-zoo", "torch", "onnxruntime", "openvino", "onnx", "numpy")
#: pictures that every side calibrates on; NNCF's own default
CALIBRATION = 300
RUNTIMES = ("onnxruntime", "openvino")


def parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    """Return a parser with what every script of this group understands."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help="little of everything, into a file of its own: a trial")
    found.add_argument("--threads", type=int, default=1, help="threads of every side")
    peers = os.environ.get("SLIM_PEERS_PYTHON", sys.executable)
    help = "the interpreter that has NNCF and torchao; $SLIM_PEERS_PYTHON, or else this one"
    found.add_argument("--peers", default=peers, metavar="PYTHON", help=help)
    found.add_argument("--fresh", action="store_true", help="forget the rows of earlier runs")
    found.add_argument("--output", type=Path, default=output)
    return found


def start(arguments: argparse.Namespace) -> None:
    """Set the threads, and let a trial write beside the results, not into them."""
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.quick and arguments.output.parent == RESULTS:
        arguments.output = FOLDER / "quick" / arguments.output.name
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        arguments.output.unlink(missing_ok=True)


class Rows:
    """The rows of a result file, written after each: what an earlier run with the same settings measured stays.

    Args:
        arguments: of the script: ``output`` and ``threads``.
        settings: what decides the figures; rows of other settings are not taken over.
        key: the fields that tell rows apart.
        libraries: whose versions are recorded; peers report their own.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        settings: Mapping[str, Any],
        key: Sequence[str],
        libraries: Sequence[str] = LIBRARIES,
    ) -> None:
        self.path, self.key = Path(arguments.output), tuple(key)
        self.head = {"settings": dict(settings), "threads": arguments.threads}
        self.device = this_device().to_json()
        self.versions = dict(versions(libraries))
        self.rows: list[dict[str, Any]] = []
        self.more: dict[str, Any] = {}
        if self.path.is_file():
            earlier = json.loads(self.path.read_text())
            if all(earlier.get(name) == json.loads(json.dumps(value)) for name, value in self.head.items()):
                self.rows = [row for row in earlier["rows"] if "error" not in row]  # what failed is tried again
                self.more = earlier.get("more", {})
                self.versions |= {k: v for k, v in earlier["versions"].items() if k not in self.versions}

    def has(self, *values: Any) -> bool:
        return any(tuple(row[name] for name in self.key) == values for row in self.rows)

    def find(self, *values: Any) -> dict[str, Any]:
        return next(row for row in self.rows if tuple(row[name] for name in self.key) == values)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row in; one that is not measured now but failed carries ``error``."""
        self.versions |= row.pop("versions", {})
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        write_json(
            self.path,
            {**self.head, "device": self.device, "versions": self.versions, "rows": self.rows, "more": self.more},
        )


# --- pictures -----------------------------------------------------------------------------------------------------


def calibration(pictures: Any, samples: int, seed: int) -> Tensor:
    """Return training pictures without augmentation, ``(samples, C, H, W)``: the same for every side."""
    source = pictures.train.plain()
    chosen = torch.randperm(len(source.inputs), generator=generator(seed, samples))[:samples]
    prepared: Tensor = source.prepare(source.inputs[chosen])
    return prepared.contiguous()


def held_out(pictures: Any, limit: int | None = None) -> tuple[Tensor, NDArray[Any]]:
    """Return all test pictures, normalized, and their labels."""
    source = pictures.val
    return source.prepare(source.inputs[:limit]).contiguous(), source.targets[:limit].numpy()


def batches(pictures: Tensor, size: int) -> list[Tensor]:
    return list(pictures.split(size))


def saved(pictures: Tensor, name: str) -> Path:
    """Write pictures where jobs in other processes find them."""
    path = FOLDER / "data" / f"{name}-{hashlib.sha256(pictures.numpy().tobytes()).hexdigest()[:12]}.npy"
    if not path.is_file():
        with atomic_path(path) as staging, open(staging, "wb") as handle:
            np.save(handle, pictures.numpy())
    return path


# --- files and runtimes -------------------------------------------------------------------------------------------


def float_file(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> Path:
    """Export the float model, and prepare it as the peers ask: batch norms folded, shapes inferred."""
    if not path.is_file():
        from onnxruntime.quantization.shape_inference import quant_pre_process

        plain = path.with_name(f"{path.stem}.plain.onnx")
        plain.parent.mkdir(parents=True, exist_ok=True)
        to_onnx(model, example, plain, check=False)
        with atomic_path(path) as staging:
            quant_pre_process(str(plain), str(staging), skip_symbolic_shape=True)
    return path


def size_of(path: Path) -> int:
    """Return the bytes of a file and of what belongs to it: external weights, the weights of an IR."""
    parts = [path, *path.parent.glob(f"{path.name}.*.data")]
    if path.suffix == ".xml":
        parts.append(path.with_suffix(".bin"))
    return sum(part.stat().st_size for part in parts if part.is_file())


def runner(path: Path, runtime: str, threads: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from a batch of pictures to the file's first output; openvino computes floats in float32."""
    if runtime == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})[0]  # type: ignore[no-any-return]
    import openvino  # type: ignore[import-untyped]

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda batch: np.array(compiled(batch)[0])


def outputs(path: Path, pictures: Tensor, runtime: str, threads: int = 1, batch: int = 250) -> NDArray[Any]:
    """Run a file on all pictures."""
    run = runner(path, runtime, threads)
    return np.concatenate([run(part.numpy()) for part in pictures.split(batch)])


def simulated(model: nn.Module, pictures: Tensor, batch: int = 250) -> NDArray[Any]:
    """Run a model in PyTorch on all pictures."""
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(part).numpy() for part in pictures.split(batch)])


def accuracy(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    return float((scores.argmax(-1) == labels).mean())


# --- ours ---------------------------------------------------------------------------------------------------------


def scheme(bits: int) -> Any:
    from slim_quant import Scheme

    return Scheme(bits=bits, symmetric=True, granularity="per_channel")


def ours(
    model: nn.Module,
    data: Sequence[Tensor],
    *,
    target: str = "onnxruntime",
    weight_bits: int = 8,
    samples: int = CALIBRATION,
    **options: Any,
) -> Any:
    """Quantize with slim-quant; ``options`` are those of ``slim_quant.quantize``."""
    import slim_quant

    return slim_quant.quantize(
        model, data, example_inputs=(data[0][:1],), target=target, weight=scheme(weight_bits), samples=samples,
        **options,
    )  # fmt: skip


# --- other processes ----------------------------------------------------------------------------------------------


def job(python: str, task: Mapping[str, Any], *, threads: int, timeout: float = 7200) -> dict[str, Any]:
    """Run one job of ``jobs.py`` in a process of its own.

    Raises:
        JobError: it failed; carries its last words.
    """
    done = subprocess.run(
        [python, str(JOBS), json.dumps(task)],
        capture_output=True, text=True, timeout=timeout, env=environment(threads), check=False,
    )  # fmt: skip
    if done.returncode:
        raise JobError(f"{last_words(done.stderr or done.stdout)} (exit {done.returncode})")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def peer_file(python: str, task: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Run a job that writes a file, and see that the file runs.

    NNCF's ONNX backend may quantize activations of depthwise convolutions per channel, which onnxruntime refuses; such
    a model is quantized again with activations per tensor, and ``note`` says so.

    Raises:
        JobError: the job failed, or its file does not run either way.
    """
    sample = np.array(np.load(task["data"], mmap_mode="r")[:1])
    runtime = "openvino" if task["side"] == "nncf-openvino" else "onnxruntime"
    for more in ({}, {"per_tensor_activations": True}):
        done = job(python, {**task, "options": {**task.get("options", {}), **more}}, threads=threads)
        try:
            runner(Path(task["output"]), runtime, threads)(sample)
        except Exception as error:  # the runtimes have their own classes
            why = f"{runtime} does not run the file of {task['side']}: {last_words(str(error))}"
            if more or task["side"] != "nncf-onnx":
                Path(task["output"]).unlink(missing_ok=True)
                raise JobError(why) from error
        else:
            return {**done, "note": "activations per tensor: else onnxruntime does not run the file" if more else None}
    raise AssertionError("unreachable")


def environment(threads: int) -> dict[str, str]:
    """Return the variables of a job: as many threads as asked for, and this checkout's packages."""
    paths = [str(path) for path in sorted(HERE.parent.glob("packages/*/src"))]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",  # it compiles for longer than its own limit on small machines
        "PYTHONPATH": os.pathsep.join([*paths, str(HERE)]),
    }


def last_words(text: str) -> str:
    """Return the line that names the exception, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1][:300]


class JobError(RuntimeError):
    """A job in another process failed."""


@contextmanager
def timed() -> Iterator[list[float]]:
    """Yield a list that holds the seconds when the block is left."""
    found: list[float] = []
    began = time.perf_counter()
    yield found
    found.append(time.perf_counter() - began)


def say(*words: object) -> None:
    print(*words, flush=True)
