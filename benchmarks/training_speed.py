"""How many images per second ``fit`` trains, by memory layout and precision, beside a bare loop and the data alone.

The variants take turns in every round, so that a busy machine slows all of them alike; the figure is the median
over the rounds, with the quartiles. Writes ``benchmarks/results/training_speed.json``.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

import slim_zoo
from slim_core.data import TensorSource
from slim_core.files import write_json
from slim_core.tasks import ClassificationTask
from slim_core.training import FitConfig, fit
from slim_core.workload import Workload
from slim_zoo.data import CropFlip, Normalize

RESULTS = Path(__file__).parent / "results" / "training_speed.json"


def source(images: int, batch: int, size: int) -> TensorSource:
    """Random bytes as pictures, with the augmentation of Fashion-MNIST."""
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (images, 1, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    augment = CropFlip(size // 8, flip=True)
    return TensorSource(pictures, labels, batch, shuffle=True, prepare=Normalize(127.5, 74), augment=augment)


def bare_loop(workload: Workload, layout: torch.memory_format) -> float:
    """Images per second of the shortest loop that trains."""
    model = copy.deepcopy(workload.model).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, began = 0, time.perf_counter()
    for inputs, targets in workload.train:
        loss = functional.cross_entropy(model(inputs.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(inputs)
    return images / (time.perf_counter() - began)


def data_alone(workload: Workload) -> float:
    images, began = 0, time.perf_counter()
    for inputs, _ in workload.train:
        images += len(inputs)
    return images / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--model", default="mobilenet_v1")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=1024, help="images per round and variant")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = slim_zoo.create_model(
        arguments.model, width=arguments.width, num_classes=10, in_channels=1, input_size=arguments.size
    )
    train = source(arguments.images, arguments.batch, arguments.size)
    workload = Workload(model, (torch.zeros(1, 1, arguments.size, arguments.size),), ClassificationTask(), train)

    def fitted(**options: object) -> Callable[[], float]:
        config = FitConfig(epochs=1, device="cpu", **options)
        return lambda: float(fit(workload, config).history[-1]["images_per_s"])

    variants: dict[str, Callable[[], float]] = {
        "fit, channels_last": fitted(channels_last=True),
        "fit, contiguous": fitted(channels_last=False),
        "fit, channels_last, bfloat16": fitted(channels_last=True, amp=True),
        "fit, channels_last, ema and clipping": fitted(channels_last=True, ema=0.99, clip_norm=5.0),
        "bare loop, channels_last": lambda: bare_loop(workload, torch.channels_last),
        "bare loop, contiguous": lambda: bare_loop(workload, torch.contiguous_format),
        "data alone": lambda: data_alone(workload),
    }
    for run in variants.values():
        run()  # warm-up
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, run in variants.items():
            speeds[name].append(run())
    rows = []
    for name, found in speeds.items():
        low, middle, high = statistics.quantiles(found, n=4)
        rows.append({"variant": name, "images_per_s": middle, "quartiles": [low, high]})
        print(f"{name:40s} {middle:9.0f} images/s   ({low:.0f} to {high:.0f})")
    write_json(
        arguments.output,
        {
            "model": arguments.model, "width": arguments.width, "size": arguments.size, "batch": arguments.batch,
            "images": arguments.images, "rounds": arguments.rounds, "rows": rows, "torch": torch.__version__,
            "threads": torch.get_num_threads(), "cores": os.cpu_count(), "platform": platform.platform(),
            "python": platform.python_version(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
