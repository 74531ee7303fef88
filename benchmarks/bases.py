"""The trained models that the accuracy benchmarks start from: zoo models on Fashion-MNIST, 60,000 pictures of 32x32.

Each is trained once into ``out/bases/NAME.safetensors``; a stopped training resumes after its last epoch. The script
trains those that are named::

    python benchmarks/bases.py mobilenet_v1 resnet20

``BRIEF`` are the zoo's other models, narrow and trained for a few minutes: good enough to ask whether a file computes
what was simulated, not to speak of accuracy.
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


def _brief(name: str, width: float, lr: float = 0.05, **more: Any) -> Base:
    return Base(
        f"zoo/{name}", {"width": width},
        FitConfig(epochs=2, lr=lr, weight_decay=5e-4, warmup_epochs=0.3, eval_every=2, amp=True, **more),
    )  # fmt: skip


#: pictures that the brief trainings see in an epoch
BRIEF_PICTURES = 16_000
BRIEF = {
    "mobilenet_v3_large": _brief("mobilenet_v3_large", 0.5),
    "resnet18": _brief("resnet18", 0.25),
    "resnet34": _brief("resnet34", 0.25),
    "resnet50": _brief("resnet50", 0.25),
    "vgg13_bn": _brief("vgg13_bn", 0.25),
    "vgg16_bn": _brief("vgg16_bn", 0.25),
    "vgg19_bn": _brief("vgg19_bn", 0.25),
    # deep networks without norms
    "vgg11": _brief("vgg11", 0.25, 0.01, clip_norm=1.0),
    "vgg13": _brief("vgg13", 0.25, 0.01, clip_norm=1.0),
    "vgg16": _brief("vgg16", 0.25, 0.01, clip_norm=1.0),
    "vgg19": _brief("vgg19", 0.25, 0.01, clip_norm=1.0),
}


def data(registry: Registry, batch_size: int = 128, limit: int | None = None, seed: int = 0) -> Dataset:
    """Return Fashion-MNIST at 32x32 with the standard augmentation; ``seed`` decides it, and the order."""
    return registry.get("datasets", "fashion-mnist")(batch_size=batch_size, size=32, limit=limit, seed=seed)


def untrained(name: str, registry: Registry, pictures: Dataset) -> Workload:
    """Return the workload of a base before training."""
    base = BASES[name] if name in BASES else BRIEF[name]
    torch.manual_seed(0)
    channels, side, _ = pictures.input_shape
    kwargs = {**base.kwargs, "num_classes": pictures.num_classes, "in_channels": channels, "input_size": side}
    model = registry.get("models", base.model)(**kwargs)
    task = registry.get("tasks", pictures.task)(**pictures.task_kwargs)
    return Workload(model, pictures.example_inputs, task, pictures.train, pictures.val, BuilderRef(base.model, kwargs))


def where(name: str) -> Path:
    """Return where the trained model lies, or will."""
    return (FOLDER if name in BASES else FOLDER / "brief") / f"{name}.safetensors"


def judged(workload: Workload) -> dict[str, float]:
    """Return the metrics on the validation data."""
    if workload.task is None or workload.val is None:
        raise ValueError("a base has a task and validation data")
    return evaluate(workload.model, workload.task, workload.val)


def trained(name: str, registry: Registry, pictures: Dataset, progress: Progress | None = None) -> Workload:
    """Return a base, trained now or earlier."""
    path = where(name)
    start = untrained(name, registry, pictures)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = (BASES[name] if name in BASES else BRIEF[name]).config
        seen = start if name in BASES else replace(start, train=data(registry, limit=BRIEF_PICTURES).train)
        result = fit(seen, config, folder=path.with_suffix(""), progress=progress)
        metrics = judged(replace(start, model=result.workload.model))
        checkpoint.save(replace(start, model=result.workload.model), path, metrics=metrics)
        write_json(path.with_suffix(".json"), {"metrics": metrics, "history": [dict(row) for row in result.history]})
    loaded = checkpoint.load(path, registry=registry)
    return replace(start, model=loaded.model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*BASES, *BRIEF])
    arguments = parser.parse_args()
    registry = load_plugins().registry
    pictures = data(registry)
    for name in arguments.names:
        base = trained(name, registry, pictures)
        print(name, judged(base), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
