"""Time of one training step: quantization-aware against float, ours and the peers', interleaved.

Each side trains the same zoo model on the same random pictures in a process of its own (see ``quantizing/jobs.py``),
which takes steps when it is asked to; rounds ask all sides in changing order, and the ratio to the float step is taken
within a round. A side that cannot prepare the model stands in the table with its own words.

    python benchmarks/qat_step.py [--cases resnet18 …] [--rounds 15] [--threads 2] [--quick]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from quantizing.common import JOBS, RESULTS, Rows, environment, last_words, parser, say
from quantizing.common import start as begin

from slim_core.measure.stats import median_interval

#: name -> zoo model, its arguments, and the shape of a batch
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "mobilenet_v1, 128 x 32": ("mobilenet_v1", {"width": 0.5, "input_size": 32}, (128, 3, 32, 32)),
    "mobilenet_v2, 64 x 32": ("mobilenet_v2", {"width": 0.5, "input_size": 32}, (64, 3, 32, 32)),
    "resnet20, 128 x 32": ("resnet20", {}, (128, 3, 32, 32)),
    "resnet18, 8 x 112": ("resnet18", {"input_size": 112}, (8, 3, 112, 112)),
    "resnet50, 8 x 112": ("resnet50", {"input_size": 112}, (8, 3, 112, 112)),
}
#: name -> side of ``quantizing/jobs.py``, options
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "float": ("float", {}),
    "slim, moving average": ("slim", {"quantizer": "moving_average"}),
    "slim, lsq": ("slim", {"quantizer": "lsq"}),
    "slim, pact": ("slim", {"quantizer": "pact"}),
    "slim, dynamic": ("slim", {"strategy": "dynamic"}),
    "torchao": ("torchao", {}),
    "nncf": ("nncf", {}),
}
#: a side may take this long to prepare its model
PATIENCE_S = 300


class Server:
    """A process that takes training steps when asked."""

    def __init__(self, name: str, case: str, arguments: Any) -> None:
        kind, options = SIDES[name]
        zoo, kwargs, shape = CASES[case]
        task = {
            "do": "steps", "side": kind, "options": options, "images": list(shape), "threads": arguments.threads,
            "model": {"zoo": zoo, "kwargs": {**kwargs, "num_classes": 10}},
        }  # fmt: skip
        python = arguments.peers if kind in ("torchao", "nncf") else sys.executable
        self.errors = open(arguments.output.parent / f"qat_step-{kind}.stderr", "w+")  # noqa: SIM115 - closed below
        self.process = subprocess.Popen(
            [python, str(JOBS), json.dumps(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            text=True, env=environment(arguments.threads),
        )  # fmt: skip
        self.versions: dict[str, str] = {}
        self.error: str | None = None
        self.peak_mb = 0.0
        first = self._read()
        if first is not None:
            self.versions = first["ready"]

    def _read(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)  # type: ignore[no-any-return]
        self.process.wait()
        self.errors.seek(0)
        self.error = f"{last_words(self.errors.read())} (exit {self.process.returncode})"
        return None

    def steps(self, count: int) -> float | None:
        """Return the median seconds of ``count`` steps."""
        if self.error is not None:
            return None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        answer = self._read()
        if answer is None:
            return None
        self.peak_mb = answer["peak_mb"]
        return statistics.median(answer["seconds"])

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.errors.close()


def timed(case: str, arguments: Any) -> list[dict[str, Any]]:
    servers: dict[str, Server] = {}
    try:
        for name in SIDES:
            began = time.perf_counter()
            servers[name] = Server(name, case, arguments)
            say(f"  {name}: {servers[name].error or 'ready'} after {time.perf_counter() - began:.0f} s")
        generator = np.random.default_rng(0)
        seconds: dict[str, list[float]] = {name: [] for name, server in servers.items() if server.error is None}
        for number in range(arguments.rounds + 1):  # the first warms up
            for name in generator.permutation(list(seconds)):
                took = servers[name].steps(arguments.steps)
                if took is None:
                    seconds.pop(name)
                elif number:
                    seconds[name].append(took)
        rows = []
        for name, server in servers.items():
            row: dict[str, Any] = {"case": case, "side": name, "versions": server.versions}
            if name in seconds:
                ratios = [mine / base for mine, base in zip(seconds[name], seconds["float"], strict=True)]
                low, high, confidence = median_interval(ratios)
                row |= {"median_ms": 1e3 * statistics.median(seconds[name]), "ratio": statistics.median(ratios),
                        "ratio_low": low, "ratio_high": high, "confidence": confidence, "rounds": len(ratios),
                        "peak_mb": server.peak_mb}  # fmt: skip
            else:
                row["refused"] = server.error
            rows.append(row)
        return rows
    finally:
        for server in servers.values():
            server.close()


def main() -> int:
    words = parser(__doc__, RESULTS / "qat_step.json")
    words.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    words.add_argument("--rounds", type=int, default=15)
    words.add_argument("--steps", type=int, default=3, help="steps of a side in a round; their median counts")
    words.set_defaults(threads=2)
    arguments = words.parse_args()
    begin(arguments)
    if arguments.quick:
        arguments.rounds, arguments.steps = 3, 1
    rows = Rows(arguments, {"quick": arguments.quick, "steps": arguments.steps}, ("case", "side"))
    for case in arguments.cases:
        if all(rows.has(case, side) for side in SIDES):
            continue
        say(case)
        rows.rows = [row for row in rows.rows if row["case"] != case]
        for row in timed(case, arguments):
            rows.add(row)
            figure = f"{row['median_ms']:8.1f} ms, {row['ratio']:.2f} of float" if "ratio" in row else row["refused"]
            say(f"{case:24} {row['side']:22} {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
