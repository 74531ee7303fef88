"""MACs and parameters of the zoo's models at 224x224, beside the figures that were published.

Writes ``benchmarks/results/zoo_costs.json``. Counting needs no weights' values, so it takes seconds.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from slim_core.files import write_json
from slim_core.graph import record
from slim_core.graph.cost import cost, count_macs
from slim_core.plugins import load_plugins

RESULTS = Path(__file__).parent / "results" / "zoo_costs.json"
TORCHVISION = "torchvision's table of weights"
#: name -> billions of multiply-accumulates, and where the figure is from
PUBLISHED = {
    "zoo/vgg11": (7.61, TORCHVISION),
    "zoo/vgg13": (11.31, TORCHVISION),
    "zoo/vgg16": (15.47, TORCHVISION),
    "zoo/vgg19": (19.63, TORCHVISION),
    "zoo/resnet18": (1.81, TORCHVISION),
    "zoo/resnet34": (3.66, TORCHVISION),
    "zoo/resnet50": (4.09, TORCHVISION),
    "zoo/mobilenet_v1": (0.569, "arXiv:1704.04861"),
    "zoo/mobilenet_v2": (0.300, "arXiv:1801.04381"),
    "zoo/mobilenet_v3_large": (0.219, "arXiv:1905.02244"),
    "zoo/mobilenet_v3_small": (0.056, "arXiv:1905.02244"),
}


def main() -> None:
    registry, picture, rows = load_plugins().registry, (torch.zeros(1, 3, 224, 224),), []
    for name, (published, source) in PUBLISHED.items():
        with torch.device("meta"):
            model = registry.get("models", name)()
        graph = record(model, picture)
        report = cost(graph)
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            count_macs(graph)
            seconds.append(time.perf_counter() - began)
        rows.append({
            "model": name,
            "macs": report.macs,
            "params": report.params,
            "peak_activation_bytes": report.peak_activation_bytes,
            "published_gmacs": published,
            "source": source,
            "operators": len(graph.nodes),
            "count_macs_ms": statistics.median(seconds) * 1e3,
        })  # fmt: skip
    write_json(RESULTS, {"size": 224, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
