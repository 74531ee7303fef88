"""Bytes of quantized files as a share of the float file: int8 for the zoo's networks, int8 and int4 weights for a GPT.

Networks have 1,000 classes at 224x224 and random weights, which changes no size. Every figure is that of a file on
disk: the ONNX file (with its second file for large weights) and Slim's checkpoint.

    python benchmarks/quant_size.py [--models resnet50 …] [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from models.gpt import Gpt
from quantizing.common import (
    FOLDER,
    RESULTS,
    JobError,
    Rows,
    batches,
    float_file,
    job,
    ours,
    parser,
    saved,
    say,
    size_of,
)
from quantizing.common import start as begin
from torch import nn

from slim_core import Workload
from slim_core.checkpoint import save
from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_zoo import create_model

MODELS = ("resnet50", "mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18")
#: bits and group size of weight-only quantization
WEIGHT_ONLY = ((8, "auto"), (4, 128), (4, 64), (4, 32))
PEERS = {"quantize_static": ("onnxruntime", ".onnx"), "nncf, onnx": ("nncf-onnx", ".onnx")}


def written(model: nn.Module, workload: Workload, transform: Any, path: Path) -> dict[str, int]:
    """Write file and checkpoint; return their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_onnx(model, workload.example_inputs, path, check=False)
    checkpoint = path.with_suffix(".safetensors")
    save(workload.with_model(model, transform) if transform else workload, checkpoint, parity=False)
    return {"onnx_bytes": size_of(path), "checkpoint_bytes": checkpoint.stat().st_size}


def networks(name: str, arguments: Any) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    side = 64 if arguments.quick else 224
    model = create_model(name, num_classes=1000, input_size=side).eval()
    pictures = torch.randn(4, 3, side, side)
    workload, folder = Workload(model, (pictures[:1],)), FOLDER / "size" / name
    found = [{"model": name, "what": "float32", **written(model, workload, None, folder / "float.onnx")}]
    result = ours(model, batches(pictures, 4), samples=4)
    found.append(
        {"model": name, "what": "int8", **written(result.model, workload, result.transform, folder / "int8.onnx")}
    )
    whole = float_file(model, (pictures[:1],), folder / "prepared.onnx")
    data = str(saved(pictures, f"size-{side}"))
    for what, (kind, suffix) in PEERS.items():
        output = folder / f"{kind}{suffix}"
        task = {"do": "quantize", "side": kind, "model": {"float": str(whole)}, "data": data, "output": str(output)}
        try:
            done = job(arguments.peers, task, threads=arguments.threads)
            found.append({"model": name, "what": what, "onnx_bytes": size_of(output), "checkpoint_bytes": None,
                          "versions": done["versions"]})  # fmt: skip
        except JobError as error:
            found.append({"model": name, "what": what, "error": str(error)})
    return found


def transformer(arguments: Any) -> list[dict[str, Any]]:
    from slim_quant import quantize_weights

    torch.manual_seed(0)
    model = Gpt(width=128, depth=2, heads=4) if arguments.quick else Gpt()
    model.eval()
    ids = torch.randint(0, 8192, (1, 64))
    workload, folder = Workload(model, (ids,)), FOLDER / "size" / "gpt"
    found = [{"model": "gpt", "what": "float32", **written(model, workload, None, folder / "float.onnx")}]
    for bits, group in WEIGHT_ONLY:
        what = f"int{bits} weights" + (f", groups of {group}" if group != "auto" else "")
        try:
            result = quantize_weights(model, (ids,), bits=bits, group_size=group)
            at = folder / f"int{bits}-{group}.onnx"
            found.append({"model": "gpt", "what": what, **written(result.model, workload, result.transform, at)})
        except SlimError as error:
            found.append({"model": "gpt", "what": what, "error": str(error)})
    return found


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_size.json")
    words.add_argument("--models", nargs="+", default=[*MODELS, "gpt"], choices=[*MODELS, "gpt"])
    arguments = words.parse_args()
    begin(arguments)
    rows = Rows(arguments, {"quick": arguments.quick}, ("model", "what"))
    for name in arguments.models:
        if rows.has(name, "float32"):
            continue
        whole: dict[str, Any] = {}
        for row in transformer(arguments) if name == "gpt" else networks(name, arguments):
            whole = whole or row
            if "error" not in row:
                row["onnx_share"] = row["onnx_bytes"] / whole["onnx_bytes"]
                if row["checkpoint_bytes"]:
                    row["checkpoint_share"] = row["checkpoint_bytes"] / whole["checkpoint_bytes"]
            rows.add(row)
            say(name, row["what"], f"{row['onnx_share']:.1%}" if "onnx_share" in row else row["error"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
