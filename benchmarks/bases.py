"""The trained models that the accuracy benchmarks start from: zoo models on Fashion-MNIST, 60,000 pictures of 32x32.

Each is trained once into ``out/bases/NAME.safetensors``; a stopped training resumes after its last epoch. The script
trains those that are named::

    python benchmarks/bases.py mobilenet_v1 resnet20
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slim_core import BuilderRef, Workload, checkpoint
from slim_core.data import Dataset
from slim_core.files import write_json
from slim_core.plugins import load_plugins
from slim_core.progress import Progress
from slim_core.registry import Registry
from slim_core.training import FitConfig, evaluate, fit

FOLDER = Path(__file__).parent.parent / "out" / "bases"


@dataclass(frozen=True, slots=True)
class Base:
    """A model of the zoo and how it is trained."""

    model: str
    kwargs: dict[str, Any]
    config: FitConfig


def _sgd(epochs: int, lr: float = 0.1, *, amp: bool = False) -> FitConfig:
    return FitConfig(epochs=epochs, lr=lr, weight_decay=5e-4, warmup_epochs=0.5, eval_every=epochs, amp=amp)


#: Epochs fit an afternoon on one core; bfloat16 where it is faster there (not for the depthwise networks).
BASES = {
    "mobilenet_v1": Base("zoo/mobilenet_v1", {"width": 0.5}, _sgd(10)),
    "mobilenet_v2": Base("zoo/mobilenet_v2", {"width": 0.5}, _sgd(5)),
    "mobilenet_v3": Base("zoo/mobilenet_v3_small", {}, _sgd(5)),
    "resnet20": Base("zoo/resnet20", {}, _sgd(10)),
    "resnet56": Base("zoo/resnet56", {}, _sgd(4, amp=True)),
    "vgg11": Base("zoo/vgg11_bn", {"width": 0.25}, _sgd(5, 0.05, amp=True)),
}


def data(registry: Registry, batch_size: int = 128) -> Dataset:
    """Return Fashion-MNIST at 32x32 with the standard augmentation."""
    return registry.get("datasets", "fashion-mnist")(batch_size=batch_size, size=32)


def untrained(name: str, registry: Registry, pictures: Dataset) -> Workload:
    """Return the workload of a base before training."""
    base = BASES[name]
    torch.manual_seed(0)
    channels, side, _ = pictures.input_shape
    kwargs = {**base.kwargs, "num_classes": pictures.num_classes, "in_channels": channels, "input_size": side}
    model = registry.get("models", base.model)(**kwargs)
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    return Workload(model, pictures.example_inputs, task, pictures.train, pictures.val, BuilderRef(base.model, kwargs))


def judged(workload: Workload) -> dict[str, float]:
    """Return the metrics on the validation data."""
    if workload.task is None or workload.val is None:
        raise ValueError("a base has a task and validation data")
    return evaluate(workload.model, workload.task, workload.val)


def trained(name: str, registry: Registry, pictures: Dataset, progress: Progress | None = None) -> Workload:
    """Return a base, trained now or earlier."""
    path = FOLDER / f"{name}.safetensors"
    start = untrained(name, registry, pictures)
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        result = fit(start, BASES[name].config, folder=FOLDER / name, progress=progress)
        metrics = judged(result.workload)
        checkpoint.save(result.workload, path, metrics=metrics)
        write_json(FOLDER / f"{name}.json", {"metrics": metrics, "history": [dict(row) for row in result.history]})
    loaded = checkpoint.load(path, registry=registry)
    return replace(start, model=loaded.model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(BASES))
    arguments = parser.parse_args()
    registry = load_plugins().registry
    pictures = data(registry)
    for name in arguments.names:
        base = trained(name, registry, pictures)
        print(name, judged(base), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
