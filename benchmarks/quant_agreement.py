"""Does the int8 file compute what was simulated? Every zoo model, trained on real pictures, on both runtimes.

Each model is quantized for the runtime, exported, and run there on test pictures; the simulated model runs in PyTorch
on the same. What is said: how often both choose the same class, the SQNR of the outputs and their largest
difference; and the top-1 of float, simulated and deployed. The models of ``bases.py`` are judged on all 10,000 test
pictures, the briefly trained ones on 2,000. Where float and file differ in a class, the margin tells whether that was
a close call.

    python benchmarks/quant_agreement.py [--models resnet18 …] [--runtimes onnxruntime] [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

import bases
import numpy as np
from quantizing.common import (
    CALIBRATION,
    FOLDER,
    RESULTS,
    RUNTIMES,
    Rows,
    accuracy,
    batches,
    calibration,
    held_out,
    ours,
    outputs,
    parser,
    say,
    simulated,
)
from quantizing.common import start as begin

from slim_core.agreement import difference
from slim_core.errors import SlimError
from slim_core.export import to_onnx
from slim_core.plugins import load_plugins

#: largest distance of the two best simulated scores, as a share of the largest score, that counts as a close call
CLOSE = 0.02


def compared(name: str, runtime: str, registry: Any, arguments: Any) -> dict[str, Any]:
    pictures = bases.data(registry)
    model = bases.trained(name, registry, pictures).model.eval()
    limit = 500 if arguments.quick else None if name in bases.BASES else 2000
    tests, labels = held_out(pictures, limit)
    data = batches(calibration(pictures, 64 if arguments.quick else CALIBRATION, 0), 32)
    found = ours(model, data, target=runtime, samples=64 if arguments.quick else CALIBRATION)
    path = FOLDER / "agreement" / f"{name}-{runtime}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_onnx(found.model, (tests[:1],), path, check=False)
    expected, deployed, whole = (
        simulated(found.model, tests),
        outputs(path, tests, runtime, arguments.threads),
        simulated(model, tests),
    )
    apart = expected.argmax(-1) != deployed.argmax(-1)
    best = np.sort(expected, -1)[:, -2:]
    margin = (best[:, 1] - best[:, 0]) / np.abs(expected).max()
    far = difference([(expected, deployed)])
    return {
        "model": name,
        "runtime": runtime,
        "pictures": len(labels),
        "agreement": float(1 - apart.mean()),
        "apart": int(apart.sum()),
        "apart_close": int((apart & (margin < CLOSE)).sum()),
        "sqnr_db": float(min(far.sqnr_db, 200.0)),
        "max_diff": far.max_diff,
        "largest": far.largest,
        "float_agreement": float((whole.argmax(-1) == deployed.argmax(-1)).mean()),
        "simulation_sqnr_db": float(min(difference([(whole, expected)]).sqnr_db, 200.0)),
        "top1": {
            "float": accuracy(whole, labels),
            "simulated": accuracy(expected, labels),
            "deployed": accuracy(deployed, labels),
        },
        "notes": list(found.report.notes),
    }


def main() -> int:
    words = parser(__doc__, RESULTS / "quant_agreement.json")
    names = [*bases.BASES, *bases.BRIEF]
    words.add_argument("--models", nargs="+", default=names, choices=names)
    words.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    words.add_argument("--no-training", action="store_true", help="leave out models that are not trained yet")
    arguments = words.parse_args()
    begin(arguments)
    registry = load_plugins().registry
    rows = Rows(arguments, {"close": CLOSE, "quick": arguments.quick}, ("model", "runtime"))
    for name in arguments.models:
        if not bases.where(name).is_file() and (name in bases.BASES or arguments.no_training):
            say(f"{name} is not trained: run `python benchmarks/bases.py {name}`")
            continue
        for runtime in arguments.runtimes:
            if rows.has(name, runtime):
                continue
            try:
                row = compared(name, runtime, registry, arguments)
                say(f"{name:20} {runtime:12} agreement {row['agreement']:.2%} ({row['apart']} apart, "
                    f"{row['apart_close']} close calls), {row['sqnr_db']:.1f} dB, top-1 {row['top1']}")  # fmt: skip
            except SlimError as error:
                row = {"model": name, "runtime": runtime, "error": str(error)}
                say(f"{name:20} {runtime:12} {error}")
            rows.add(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
