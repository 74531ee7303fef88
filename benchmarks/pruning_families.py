"""Families of architectures, pruned by Slim and by Torch-Pruning: who handles which, and is the result right?

The job for both: half of the channels of every prunable layer, by the l1 norm; classes and other outputs stay. Each
family and side runs in a process of its own with a time-out, so that a hang or a crash costs one row.

The models are those of ``slim_core.testing.families``, wider. Nothing was written for either side, except what
Torch-Pruning asks its users for: the layers that make the outputs, and the head counts of attention layers.

How a result is judged, alike for both sides: models are in float64, and no value stands twice in the original, so the
values in the pruned model tell which indices were kept. Zero the others in the original (running variances and the
directions of weight norm excepted, which divide) and it must compute what the pruned model computes. Layer norms of the
reference take their statistics over the kept channels. Where a model takes other statistics over channels, written out
by hand, the reference is not known for an arbitrary choice of channels; such a result is "not judged" beyond running.
The zeroed original says nothing about a model that was not changed, which counts as not handled.

Times are compared by their sum over the families that *both* sides handle right: what a side takes for a result that
fails, breaks, is wrong or cannot be judged is no price for the job. The plain sum over all families in which both sides
came to an end, whatever it was, stands beside it. Processor time decides, because it minds other work on the machine
least. Coverage is the share of parameters that a side made smaller; families in which Slim's is below Torch-Pruning's
are named with what became of Torch-Pruning's result.

    python benchmarks/pruning_families.py [--families resnet …] [--width 256] [--rounds 3]
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slim_core.files import write_json
from slim_core.graph.masking import divides
from slim_core.testing.families import FAMILIES, build
from slim_core.testing.oracle import as_double, relative_error
from slim_core.workload import call, tensors_of

RESULT = Path(__file__).parent / "results" / "pruning_families.json"
SIDES = ("slim", "torch-pruning")
#: statistics over channels that are written out by hand or slide along them: no reference for an arbitrary choice
BY_HAND = ("convnext", "convnext_v2", "cbam_resnet", "eca_resnet", "llama")
#: further inputs, on which the forward goes another way
ALSO: dict[str, Callable[[Any], Any]] = {"branching": lambda inputs: (inputs[0] * 1e6,)}
_BOUND = 1e-5


# --- the two sides ----------------------------------------------------------------------------------------------


def slim(model: nn.Module, every: list[Any]) -> nn.Module:
    import slim_prune
    from slim_core.graph import analyse

    coupling = analyse(model, every[0], also=every[1:])
    plan = slim_prune.plan(model, every[0], ratios={"*": 0.5}, importance="l1", round_to=1, coupling=coupling)
    return plan.apply(model, inplace=True)


def torch_pruning(model: nn.Module, every: list[Any], outputs: list[str]) -> nn.Module:
    import torch_pruning as tp

    modules = dict(model.named_modules())
    pruner = tp.pruner.MagnitudePruner(
        model, every[0], importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5,
        ignored_layers=[modules[name] for name in outputs], num_heads=head_counts(model),
    )  # fmt: skip
    pruner.step()
    return model


def output_layers(model: nn.Module, inputs: Any) -> list[str]:
    """Return the modules that make the model's outputs, as Slim's analysis found them."""
    from slim_core.graph import analyse

    frozen = analyse(model, inputs).frozen
    names = {entry.name.rpartition(".")[0] for entry in frozen if entry.reason == "is an output of the model"}
    return sorted(name.split(".parametrizations.")[0] for name in names if name)


def head_counts(model: nn.Module) -> dict[nn.Module, int]:
    """Return the head counts as Torch-Pruning wants them: by the layer that projects."""
    counts: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = next((getattr(module, name) for name in ("num_heads", "num_attention_heads", "n_head")
                      if isinstance(getattr(module, name, None), int)), None)  # fmt: skip
        if heads is None:
            continue
        if isinstance(module, nn.MultiheadAttention):
            counts[module] = heads
        for name in ("qkv", "query", "key", "value", "c_attn"):
            if isinstance(getattr(module, name, None), nn.Linear):
                counts[getattr(module, name)] = heads
    return counts


# --- the reference ----------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False))
    }  # fmt: skip


def tagged(model: nn.Module) -> nn.Module:
    """Return the model in float64, with no value twice: in float32 one of a million random numbers has many twins."""
    model = model.double()
    with torch.no_grad():
        for tensor in state_of(model).values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 1e-6)
    return model


def kept_indices(before: Tensor, after: Tensor) -> dict[int, np.ndarray] | None:
    """Return which indices of each shrunken dimension ``after`` has, by its values; ``None`` where they do not tell."""
    if before.dim() != after.dim() or any(a > b for a, b in zip(after.shape, before.shape, strict=True)):
        return None
    values = before.detach().numpy().ravel()
    order = np.argsort(values, kind="stable")
    wanted = after.detach().numpy().ravel()
    ranked = np.argsort(wanted, kind="stable")  # sought in order: at random, every step misses the cache
    places = np.empty_like(order, shape=wanted.shape)
    places[ranked] = order[np.searchsorted(values[order], wanted[ranked]).clip(0, len(order) - 1)]
    if np.mean(values[places] == wanted) < 0.99:
        return None
    coordinates = np.unravel_index(places, tuple(before.shape))
    kept: dict[int, np.ndarray] = {}
    for dim, (size, full) in enumerate(zip(after.shape, before.shape, strict=True)):
        if size < full:
            table = np.moveaxis(coordinates[dim].reshape(tuple(after.shape)), dim, 0).reshape(size, -1)
            kept[dim] = np.median(table, axis=1).astype(np.int64)
            if (np.diff(kept[dim]) <= 0).any():
                return None
    return kept


class KeptNorms(TorchFunctionMode):
    """Layer norms over the kept channels, by their weights."""

    def __init__(self, kept: dict[int, np.ndarray]) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.layer_norm:
            names = ("input", "normalized_shape", "weight", "bias", "eps")
            given = dict(zip(names, args, strict=False)) | kwargs
            places = self.kept.get(id(given.get("weight")))
            if places is not None:
                index = torch.from_numpy(places)
                part = nn.functional.layer_norm(
                    given["input"][..., index], (len(index),), given["weight"][index], given["bias"][index],
                    given.get("eps", 1e-5),
                )  # fmt: skip
                return torch.zeros_like(given["input"]).index_copy(-1, index, part)
        return func(*args, **kwargs)


def error_of(original: nn.Module, pruned: nn.Module, every: list[Any]) -> float | None:
    """Return the largest relative difference between the pruned model and the zeroed original; ``None``: not known."""
    masked = copy.deepcopy(original)
    smaller = state_of(pruned)
    norms: dict[int, np.ndarray] = {}
    for name, tensor in state_of(masked).items():
        if tensor.shape == smaller[name].shape:
            continue
        kept = kept_indices(tensor, smaller[name])
        if kept is None:
            return None
        with torch.no_grad():
            for dim, places in kept.items():
                if not divides(name, dim):
                    gone = np.setdiff1d(np.arange(tensor.shape[dim]), places)
                    tensor.index_fill_(dim, torch.from_numpy(gone), 0)
        if tensor.dim() == 1:
            norms[id(tensor)] = kept[0]
    masked, pruned = masked.double().eval(), copy.deepcopy(pruned).double().eval()
    worst = 0.0
    with torch.no_grad():
        for inputs in every:
            with KeptNorms(norms):
                expected = tensors_of(call(masked, as_double(inputs)))
            actual = tensors_of(call(pruned, as_double(inputs)))
            if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
                return float("inf")
            worst = max([worst, *(relative_error(a, e) for a, e in zip(actual, expected, strict=True))])
    return worst


# --- one family, one side ---------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def job(side: str, model: nn.Module, every: list[Any], outputs: list[str]) -> nn.Module:
    return slim(model, every) if side == "slim" else torch_pruning(model, every, outputs)


def run(side: str, name: str, width: int, rounds: int) -> dict[str, Any]:
    original, inputs = build(name, width)
    original, inputs = tagged(original), as_double(inputs)
    every = [inputs, *([ALSO[name](inputs)] if name in ALSO else [])]
    outputs = output_layers(original, inputs) if side == "torch-pruning" else []

    row: dict[str, Any] = {"parameters": sum(p.numel() for p in original.parameters())}
    seconds, work = [], []
    base = peak_rss(reset=True)
    for round_ in range(rounds + 1):  # the first warms up and is not counted
        model = copy.deepcopy(original)
        start, cpu = time.perf_counter(), time.process_time()
        try:
            pruned = job(side, model, every, outputs)
        except Exception as error:  # noqa: BLE001  whatever a tool raises is its result
            return row | {"status": "fails", "why": why("pruning", error)}
        took, worked = time.perf_counter() - start, time.process_time() - cpu
        if round_:
            seconds.append(took)
            work.append(worked)
    row |= {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(work),
        "peak_bytes": peak_rss() - base,
    }
    pruned = pruned.eval()
    row["parameters_left"] = sum(p.numel() for p in pruned.parameters())
    smaller = state_of(pruned)
    row["reached"] = sum(
        p.numel() for n, p in original.named_parameters() if n in smaller and smaller[n].numel() < p.numel()
    )
    if row["reached"] == 0:
        return row | {"status": "nothing pruned", "why": ""}
    try:
        with torch.no_grad():
            for examples in every:
                call(pruned, examples)
    except Exception as error:  # noqa: BLE001
        return row | {"status": "breaks", "why": why("forward", error)}
    if name in BY_HAND and side == "torch-pruning":
        return row | {"status": "runs, not judged", "why": ""}
    error = by_labels(original, pruned, every) if name in BY_HAND else error_of(original, pruned, every)
    if error is None:
        return row | {"status": "runs, not judged", "why": "the kept values could not be told"}
    return row | {"status": "right" if error < _BOUND else "wrong", "error": error, "why": ""}


def by_labels(original: nn.Module, pruned: nn.Module, every: list[Any]) -> float:
    """Judge Slim's result where statistics are written out by hand, with the reference of the tests."""
    import slim_prune
    from slim_core.graph import analyse
    from slim_core.testing.kept_statistics import assert_equals_kept_statistics

    coupling = analyse(original, every[0])
    plan = slim_prune.plan(original, every[0], ratios={"*": 0.5}, importance="l1", round_to=1, coupling=coupling)
    try:
        return assert_equals_kept_statistics(original, pruned, coupling, plan.kept, every[0], rtol=_BOUND)
    except AssertionError:
        return float("inf")


def why(where: str, error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{where}: {type(error).__name__}: {text[0][:160] if text else ''}"


def peak_rss(*, reset: bool = False) -> int:
    """Return the largest resident size since the last reset, in bytes."""
    if reset and Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- all of them ------------------------------------------------------------------------------------------------


def separate(side: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one family and side in a forked process: what both need is imported already."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        with quiet():
            sender.send(run(side, name, arguments.width, arguments.rounds))

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        if receiver.poll(arguments.timeout):
            return receiver.recv()  # type: ignore[no-any-return]
        return {"status": "fails", "why": f"still running after {arguments.timeout} s"}
    except EOFError:
        process.join()
        return {"status": "fails", "why": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the times of both sides over ``rows``."""
    found: dict[str, Any] = {"families": len(rows)}
    for unit in ("seconds", "cpu_seconds"):
        total = {side: sum(row[side][unit] for row in rows) for side in SIDES}
        found[unit] = total
        found[f"{unit}_ratio"] = total["slim"] / total["torch-pruning"] if rows else None
    return found


def coverage(row: dict[str, Any]) -> dict[str, Any]:
    """Return the share of parameters that each side made smaller, and what became of the results."""
    shares = {side: row[side].get("reached", 0) / row[side].get("parameters", 1) for side in SIDES}
    return {"family": row["family"], "reached": shares, "status": {side: row[side]["status"] for side in SIDES}}


def covers_less(row: dict[str, Any]) -> bool:
    reached = coverage(row)["reached"]
    return bool(reached["slim"] < reached["torch-pruning"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--width", type=int, default=256, help="base width of the models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one family and side")
    parser.add_argument("--update", action="store_true", help="keep the rows of other families in the result")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    with quiet():
        for side in SIDES:  # what is imported on first use is not the jobs' time
            small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
            job(side, small, [(torch.randn(1, 3, 8, 8),)], ["3"])
    rows = []
    for name in arguments.families:
        row = {"family": name, **{side: separate(side, name, arguments) for side in SIDES}}
        rows.append(row)
        print(name, *(f"{side}: {row[side]['status']} {row[side].get('cpu_seconds', 0):.3f} s {row[side]['why'][:90]}"
                      for side in SIDES), sep=" | ", flush=True)  # fmt: skip
    if arguments.update:
        kept = {row["family"]: row for row in json.loads(arguments.output.read_text())["rows"]}
        kept |= {row["family"]: row for row in rows}
        rows = list(kept.values())
    right = [row for row in rows if all(row[side]["status"] == "right" for side in SIDES)]
    ended = [row for row in rows if all("seconds" in row[side] for side in SIDES)]
    result = {
        "job": "l1, half of the channels of every prunable layer",
        "rows": rows,
        "both_right": summed(right),
        "both_ended": summed(ended),
        "covers_less": [coverage(row) for row in rows if covers_less(row)],
        "width": arguments.width,
        "rounds": arguments.rounds,
        "load_average": os.getloadavg()[0],
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "torch-pruning", "slim-core", "slim-prune")},
        "python": platform.python_version(),
    }
    write_json(arguments.output, result)
    print(json.dumps({key: result[key] for key in ("both_right", "both_ended", "covers_less", "load_average")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
