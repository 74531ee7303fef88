"""Tables of the quantization benchmarks, from their result files; ``render.py`` puts them into the docs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tabular import table, where

MISSING = ""


def quant_accuracy(data: dict[str, Any]) -> str:
    """One table per runtime for int8, then weights of 4 bits, the grid, and training."""
    lines = data["more"]["summary"]
    models = list(dict.fromkeys(line["model"] for line in lines))
    floats = {line["model"]: line for line in lines if line["part"] == "float"}
    found = []
    for part, title in (("ptq", "int8 after training"), ("w4", "4-bit weights, 8-bit activations"),
                        ("qat", "trained with quantizers")):  # fmt: skip
        methods = list(dict.fromkeys(line["method"] for line in lines if line["part"] == part))
        cells = {(line["model"], line["method"]): line for line in lines if line["part"] == part}
        for runtime in ("onnxruntime", "openvino") if methods else ():
            rows = [(method, *(_points(cells.get((model, method)), runtime) for model in models)) for method in methods]
            top = ("float32", *(f"{floats[model][runtime]['mean']:.2%}" for model in models))
            found.append(table((f"{title}, {runtime}", *models), [top, *rows]))
    for bits in (8, 4):
        grid = {tuple(line["method"].split(", ")): line for line in lines
                if line["part"] == "grid" and line["weight_bits"] == bits}  # fmt: skip
        if not grid:
            continue
        observers = list(dict.fromkeys(observer for observer, _ in grid))
        corrections = list(dict.fromkeys(correction for _, correction in grid))
        model = next(iter(grid.values()))["model"]
        head = (f"{model}, {bits}-bit weights, onnxruntime", *observers)
        found.append(
            table(
                head,
                [
                    (correction, *(_top1(grid.get((observer, correction))) for observer in observers))
                    for correction in corrections
                ],
            )
        )
    settings = data["settings"]
    seeds = max(line["seeds"] for line in lines)
    found.append(
        f"Top-1 of the deployed files on the 10,000 test pictures: float32's, and the change in points. All sides "
        f"calibrate on the same {settings['calibration']} training pictures; int8 after training is the mean over up "
        f"to {seeds} choices of them. Training with quantizers: {settings['qat']['epochs']} epoch, rate "
        f"{settings['qat']['lr']:g}. Data: {settings['data']}. {where(data)}"
    )
    return "\n\n".join(found)


def _points(line: dict[str, Any] | None, runtime: str) -> str:
    return MISSING if line is None else f"{100 * line[runtime]['change']:+.2f}"


def _top1(line: dict[str, Any] | None) -> str:
    return MISSING if line is None else f"{line['onnxruntime']['mean']:.2%}"


def quant_agreement(data: dict[str, Any]) -> str:
    rows = [
        (row["model"], row["runtime"], f"{row['pictures']:,}", f"{row['agreement']:.2%}",
         f"{row['apart']} ({row['apart_close']})", f"{row['sqnr_db']:.1f}", f"{row['simulation_sqnr_db']:.1f}",
         *(f"{row['top1'][key]:.2%}" for key in ("float", "simulated", "deployed")))
        for row in data["rows"] if "error" not in row
    ]  # fmt: skip
    head = ("model", "runtime", "pictures", "same class", "apart (close calls)", "file against simulation, dB",
            "simulation against float, dB", "top-1 float", "simulated", "deployed")  # fmt: skip
    note = (
        f"\n\nA close call: the two best simulated scores are less than {data['settings']['close']:.0%} of the largest "
        f"score apart. {where(data)}"
    )
    return table(head, rows) + note


def quant_speed(data: dict[str, Any]) -> str:
    found = []
    for runtime in dict.fromkeys(row["runtime"] for row in data["rows"]):
        rows = [row for row in data["rows"] if row["runtime"] == runtime]
        names = list(dict.fromkeys(name for row in rows for name in row["timings"] if name != "float32"))
        found.append(table(
            (runtime, "float32, ms", *names),
            [(row["model"], f"{row['timings']['float32']['median_ms']:.2f}",
              *(_times(row["timings"].get(name)) for name in names)) for row in rows],
        ))  # fmt: skip
    notes = sorted({f"{name}: {note}" for row in data["rows"] for name, note in row["peer_notes"].items()})
    busy = [row["others_busy_cores"] or 0.0 for row in data["rows"]]
    rounds = min(row["rounds"] for row in data["rows"])
    sides = " and ".join(sorted({f"{row['side']}x{row['side']}" for row in data["rows"]}))
    found.append(
        f"How many times as fast as the same runtime's float32, the median of at least {rounds} interleaved rounds "
        f"with its 95 % interval; {sides}, batch 1, random weights. *Again* is the float32 file a second time. Other "
        f"processes used {min(busy):.1f} to {max(busy):.1f} cores meanwhile. "
        + "".join(f"{note}. " for note in notes)
        + where(data)
    )
    return "\n\n".join(found)


def _times(timing: dict[str, Any] | None) -> str:
    if timing is None:
        return MISSING
    return f"{1 / timing['ratio']:.2f}x ({1 / timing['ratio_high']:.2f} to {1 / timing['ratio_low']:.2f})"


def quant_size(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        if "error" in row:
            continue
        kept = row.get("checkpoint_bytes")
        rows.append((
            row["model"], row["what"], f"{row['onnx_bytes'] / 1e6:.2f}", f"{row['onnx_share']:.1%}",
            f"{kept / 1e6:.2f}" if kept else MISSING, f"{row['checkpoint_share']:.1%}" if kept else MISSING,
        ))  # fmt: skip
    head = ("model", "what", "ONNX file, MB", "of float32", "checkpoint, MB", "of float32")
    return table(head, rows) + f"\n\n{where(data)}"


def quant_calibration(data: dict[str, Any]) -> str:
    lines = data["more"]["summary"]
    rows = []
    for line in lines:
        if "error" in line:
            rows.append((line["case"], line["side"], f"refused: {line['error'][:80]}", *[MISSING] * 6))
            continue
        ours = next(
            (x for x in lines if x["case"] == line["case"] and x["side"] == "slim, mse" and "error" not in x), None
        )
        cells: list[object] = [line["case"], line["side"]]
        for key in ("seconds", "cpu_seconds", "whole_seconds"):
            cells += [f"{line[key]:.1f}", f"{ours[key] / line[key]:.2f}" if ours else MISSING]
        rows.append((*cells, f"{line['peak_mb']:,.0f}"))
    rounds = max(line["rounds"] for line in lines)
    pictures = {row["case"]: row["pictures"] for row in data["rows"]}
    note = (
        f"\n\nMedians of {rounds} rounds, every quantization in a process of its own. Pictures: "
        f"{', '.join(f'{name} {count}' for name, count in pictures.items())}. The memory is the process's largest "
        f"resident size, the pictures and the runtimes included. {where(data)}"
    )
    return (
        table(
            (
                "case",
                "side",
                "s",
                "ours (mse) against it",
                "CPU s",
                "ours against it",
                "PyTorch model to int8 file, s",
                "ours against it",
                "peak memory, MB",
            ),
            rows,
        )
        + note
    )


def qat_step(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        if "refused" in row:
            rows.append((row["case"], row["side"], "refused", row["refused"][:80], MISSING))
        else:
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
            rows.append((row["case"], row["side"], f"{row['median_ms']:.0f}", ratio, f"{row['peak_mb']:,.0f}"))
    rounds = max(row.get("rounds", 0) for row in data["rows"])
    note = (
        f"\n\nForward, backward and the step of SGD; the ratio is taken within each of {rounds} interleaved rounds, "
        f"the median with its 95 % interval. {where(data)}"
    )
    return table(("case", "side", "step, ms", "of float", "peak memory, MB"), rows) + note


def quant_efficientnet(data: dict[str, Any]) -> str:
    rows = []
    for line in data["more"]["summary"]:
        cells: list[object] = [line["method"]]
        for runtime in ("onnxruntime", "openvino"):
            part = line[runtime]
            cells += [f"{part['all']:.2%}", f"{part['unseen']:.2%}", f"{part['sqnr_db']:.1f}"]
        rows.append(cells)
    head = ("method", *(f"{runtime}: {what}" for runtime in ("onnxruntime", "openvino")
                        for what in ("all", "unseen photographs", "dB")))  # fmt: skip
    settings, seeds = data["settings"], max(line["seeds"] for line in data["more"]["summary"])
    confidence = data["more"]["float_confidence"]
    note = (
        f"\n\nShare of crops for which the file chooses the class that float32 chooses, and SQNR of the scores; mean "
        f"over {seeds} choices of the {settings['calibration']} calibration crops. {settings['crops']:,} crops of the "
        f"photographs that calibration saw ({', '.join(settings['seen'])}) and as many of others "
        f"({', '.join(settings['unseen'])}). The float network's mean confidence: {confidence['seen']:.0%} and "
        f"{confidence['unseen']:.0%}. {where(data)}"
    )
    return table(head, rows) + note


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "qat_step": qat_step,
    "quant_accuracy": quant_accuracy,
    "quant_agreement": quant_agreement,
    "quant_calibration": quant_calibration,
    "quant_efficientnet": quant_efficientnet,
    "quant_size": quant_size,
    "quant_speed": quant_speed,
}
