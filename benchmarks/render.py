"""Render the benchmark results into the docs: no figure in a page is typed by hand.

A page holds ``<!-- figures: NAME -->`` … ``<!-- end -->``; the lines between are replaced by the table that
``RENDERERS[NAME]`` makes of ``results/NAME.json``, or by a line that says that nothing was measured yet. ``--check``
changes nothing and fails where a page is stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantizing import tables as quantization
from quantizing import weights as packed_weights
from tabular import table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = ("README.md", "docs/**/*.md", "packages/*/README.md")
_BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def dependency_weight(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        package = f"{row['package']}[{row['extra']}]" if row["extra"] else row["package"]
        rows.append((f"`{package}`", f"`{row['requirement']}{row['specifier']}`", row["version"],
                     megabytes(row["own_bytes"]), megabytes(row["with_what_it_brings_bytes"])))  # fmt: skip
    note = f"\n\nInstalled size in MB on {data['platform']}, Python {data['python']}."
    return table(("package", "requirement", "measured version", "own", "with what it brings beyond torch"), rows) + note


def training_speed(data: dict[str, Any]) -> str:
    rows = [
        (row["variant"], f"{row['images_per_s']:,.0f}", "{:,.0f} to {:,.0f}".format(*row["quartiles"]))
        for row in data["rows"]
    ]
    what = f"`{data['model']}` of width {data['width']} at {data['size']}x{data['size']}, batch {data['batch']}"
    note = (
        f"\n\nMedian and quartiles over {data['rounds']} rounds in which the variants took turns: {what}, "
        f"{data['threads']} threads on {data['platform']}, torch {data['torch']}."
    )
    return table(("training", "images per second", "quartiles"), rows) + note


def machine(data: dict[str, Any]) -> str:
    device, load = data["device"], data["device"]["load"]
    busy = "" if load is None else f", {load:.1f} processes running when it began"
    return f"{device['cpu']}, {device['usable']} cores{busy}; onnxruntime {data['versions']['onnxruntime']}"


def noise_protocol(data: dict[str, Any]) -> str:
    ways = [
        (f"{name}, {state}", data[state][key])
        for state in ("quiet", "disturbed")
        for name, key in (("one pass", "one_pass"), ("interleaved", "interleaved"))
    ]
    rows: list[tuple[object, ...]] = []
    for what, key in (("latency", "latency_disagreement"), ("ratio to the first model", "ratio_disagreement")):
        for part in ("median", "p90", "max"):
            rows.append((f"{what}: {part}", *(f"{way[key][part]:.1%}" for _, way in ways)))
    rows.append(("neighbours in the wrong order", *(f"{way['neighbours_in_wrong_order']:.0%}" for _, way in ways)))
    quiet, (short, long) = data["quiet"], data["burst_s"]
    note = (
        f"\n\nRelative difference of every two of {quiet['repeats']} repetitions, {quiet['samples']} samples per model "
        f"in each: {machine(data)}. Disturbed: {data['disturbing_processes']} other processes compute and rest in "
        f"turns, {short:g} to {long:g} s each."
    )
    return table(("how much repetitions differ", *(name for name, _ in ways)), rows) + note


def runtime_settings(data: dict[str, Any]) -> str:
    levels = data["graph_level"]["median_ms"]
    names = ("basic", "extended", "all")
    first = table(
        ("median latency, ms", *(f"graph level `{name}`" for name in names)),
        [(model, *(f"{row[name]:.2f}" for name in names)) for model, row in levels.items()],
    )
    spin = data["spinning"]
    second = table(
        ("worker threads", "median", "most"),
        [
            (f"{name} after a run", f"{row['median_cpu_ms']:.2f} ms", f"{row['max_cpu_ms']:.2f} ms")
            for name, row in spin["after_a_run"].items()
        ],
    )
    note = (
        f"\n\nProcessor time that a session with {spin['threads']} threads took in the {spin['idle_ms']:.0f} ms after "
        f"a run, with nothing to do. {machine(data)}."
    )
    return f"{first}\n\n{second}{note}"


def zoo_costs(data: dict[str, Any]) -> str:
    rows = [
        (f"`{row['model']}`", f"{row['macs'] / 1e9:.4g} G", f"{row['published_gmacs']:.4g} G", row["source"],
         f"{row['params'] / 1e6:.2f} M", f"{row['peak_activation_bytes'] / 1e6:.1f} MB")
        for row in data["rows"]
    ]  # fmt: skip
    return table(("model", "MACs", "published", "where", "parameters", "activations at most"), rows)


def checkpoint_speed(data: dict[str, Any]) -> str:
    sides = ("plain", "built", "slim", "slim_verified", "hash")
    rows = []
    for row in data["rows"]:
        times = [f"{1000 * row['median_s'][side]:.0f}" for side in sides]
        rows.append((row["name"], *times, f"{row['speed_against_plain']:.2f}x"))
    device, versions = data["device"], data["versions"]
    note = (
        f"\n\nMedians of {data['rounds']} interleaved rounds in milliseconds; {device['machine']}, {device['cores']} "
        f"cores, {device['threads']} threads, load average {device['load_average']:.1f}; torch {versions['torch']}, "
        f"safetensors {versions['safetensors']}. The speed is that against safetensors, assigned: the model built on "
        "the meta device and the mapped tensors put in place. Every weight is read once in the measured time."
    )
    head = ("model", "safetensors, assigned", "safetensors, copied", "Slim, `verify=False`", "Slim", "SHA-256 alone")
    return table((*head, "speed of `verify=False`"), rows) + note


def pruning_speed(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        wall, left = row["seconds"], row["parameters_left"]
        rows.append((row["model"], f"{wall['slim']['median']:.2f}", f"{wall['torch-pruning']['median']:.2f}",
                     f"{row['ratio']:.2f}x", f"{row['cpu_ratio']:.2f}x", f"{left['slim'] / row['parameters']:.1%}",
                     f"{left['torch-pruning'] / row['parameters']:.1%}",
                     f"{row['error_against_masked_original']:.0e}"))  # fmt: skip
    total, cpu = data["sum_seconds"], data["sum_cpu_seconds"]
    rows.append(("**sum**", f"{total['slim']:.2f}", f"{total['torch-pruning']:.2f}", f"**{data['sum_ratio']:.2f}x**",
                 f"{cpu['slim'] / cpu['torch-pruning']:.2f}x", "", "", ""))  # fmt: skip
    note = (
        f"\n\nJob: {data['job']}. Seconds of wall-clock time, medians of {data['rounds']} interleaved rounds; "
        f"{data['cpu']} ({data['device']}), {data['threads']} thread, load average {data['load_average']:.1f}; torch "
        f"{data['versions']['torch']}, torch-pruning {data['versions']['torch-pruning']}. The error is that of Slim's "
        "pruned model against the original with the removed channels at zero, in float64."
    )
    head = ("model", "Slim, s", "Torch-Pruning, s", "ratio", "ratio of CPU time", "parameters left, Slim",
            "Torch-Pruning", "error")  # fmt: skip
    return table(head, rows) + note


def pruning_families(data: dict[str, Any]) -> str:
    sides = (("slim", "Slim"), ("torch-pruning", "Torch-Pruning"))
    rows, counts = [], {side: {"handled": 0, "right": 0} for side, _ in sides}
    for row in data["rows"]:
        cells: list[object] = [row["family"].replace("_", " ")]
        for side, _ in sides:
            own = row[side]
            handled = own["status"] in ("right", "wrong", "runs, not judged")
            counts[side]["handled"] += handled
            counts[side]["right"] += own["status"] == "right"
            size = own.get("parameters")
            cells += [own["status"], f"{own['parameters_left'] / size:.0%}" if handled else "",
                      f"{own['reached'] / size:.1%}" if handled else "",
                      f"{1000 * own['cpu_seconds']:.0f}" if handled else "",
                      megabytes(max(own["peak_bytes"], 0)) if handled else ""]  # fmt: skip
        rows.append(cells)
    head = ["family", *(f"{name}: {what}" for _, name in sides
                        for what in ("result", "left", "reached", "CPU ms", "peak MB"))]  # fmt: skip
    sums = []
    for key, what in (("both_right", "both handle right"), ("both_ended", "both came to an end with, whatever it was")):
        part, work = data[key], data[key]["cpu_seconds"]
        sums.append(
            f"over the {part['families']} families that {what}: {work['slim']:.2f} s against "
            f"{work['torch-pruning']:.2f} s, **{part['cpu_seconds_ratio']:.2f}x** (wall clock "
            f"{part['seconds_ratio']:.2f}x)"
        )
    less = [
        f"{row['family'].replace('_', ' ')} ({row['reached']['slim']:.4%} against "
        f"{row['reached']['torch-pruning']:.4%}, where Torch-Pruning's result "
        f"{'is ' if row['status']['torch-pruning'] in ('right', 'wrong') else ''}{row['status']['torch-pruning']})"
        for row in data["covers_less"]
    ]
    others = [f"{name.replace('_', ' ')} is of {what}" for name, what in data.get("of_other_runs", {}).items()]
    note = (
        f"\n\nOf {len(data['rows'])} families, handled and shown right: Slim {counts['slim']['handled']} and "
        f"{counts['slim']['right']}, Torch-Pruning {counts['torch-pruning']['handled']} and "
        f"{counts['torch-pruning']['right']}. CPU time in sum {'; '.join(sums)}. Slim reaches a smaller share of the "
        f"parameters than Torch-Pruning in {', '.join(less) or 'no family'}. "
        f"{'; '.join(others)}{'. ' if others else ''}Job: {data['job']}; base width "
        f"{data['width']}, medians of "
        f"{data['rounds']} rounds; {data['device']}, load average {data['load_average']:.1f}; torch "
        f"{data['versions']['torch']}, torch-pruning {data['versions']['torch-pruning']}."
    )
    return table(head, rows) + note


def analysis_scale(data: dict[str, Any]) -> str:
    rows = [
        (row["case"].replace("_", " "), f"{row['nodes']:,}", f"{row['parameters'] / 1e6:,.1f} M", row["groups"],
         f"{row['record_and_couple_seconds']:.2f}", f"{row['analyse_seconds']:.2f}",
         f"{row['analyse_cpu_seconds']:.2f}", megabytes(row["resident_growth_bytes"]))
        for row in data["rows"]
    ]  # fmt: skip
    note = (
        f"\n\nMedians; {data['threads']} thread(s), load average {data['load_average']:.1f}, torch "
        f"{data['versions']['torch']}. Analysing adds the proof of every group on the model's own forward."
    )
    head = ("case", "operators", "parameters", "channel groups", "record and couple, s", "analyse, s",
            "analyse, CPU s", "memory grown by, MB")  # fmt: skip
    return table(head, rows) + note


def main_job(data: dict[str, Any]) -> str:
    if data["title"] != "mobilenet_v1-fashion-mnist":
        raise ValueError(f"main_job_fashion_mnist.json is a run of {data['title']}")
    before, after = data["original"], data["compressed"]
    rows: list[Sequence[object]] = [
        ("top-1", f"{before['metrics']['top1']:.2%}", f"{after['metrics']['top1']:.2%}",
         f"{100 * (after['metrics']['top1'] - before['metrics']['top1']):+.2f} points"),
    ]  # fmt: skip
    figures = (("exported file, kB", "export_bytes", 1e3), ("checkpoint, kB", "checkpoint_bytes", 1e3),
               ("MACs, M", "macs", 1e6), ("parameters, k", "params", 1e3))  # fmt: skip
    for label, key, unit in figures:
        share = f"{after[key] / before[key]:.1%}"
        rows.append((label, f"{before[key] / unit:,.1f}", f"{after[key] / unit:,.1f}", share))
    for row in data["latency"]:
        rows.append((f"{row['backend']}, batch {row['batch']}, ms", f"{row['original_ms']:.2f}",
                     f"{row['compressed_ms']:.2f}", f"{row['speedup']:.2f}x as fast "
                     f"({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"))  # fmt: skip
    device, load = data["device"], data["device"]["details"]["load"]
    note = (
        f"\n\n{data['description']} {device['cpu']}, {device['cores']} cores, load {load:.1f} before measuring; "
        f"{data['latency'][0]['runtime']}; the two models' timings are interleaved, the ratio is their median with its "
        "95 % interval. MACs are multiply-accumulates of convolutions and matrix products."
    )
    return table(("", "original, float32", "pruned, int8", "change"), rows) + note


def pruning_search(data: dict[str, Any]) -> str:
    counts = list(data["algorithms"][0]["best"])
    rows = [
        (
            row["algorithm"],
            f"{row['budget']:.0%}",
            f"{row['uniform']:.1%}",
            *(
                f"{min(row['best'][n]):.1%} to {max(row['best'][n]):.1%}"
                if data["seeds"] > 1
                else f"{row['best'][n][0]:.1%}"
                for n in counts
            ),
        )
        for row in data["algorithms"]
    ]
    head = ("algorithm", "kept MACs", "uniform", *(f"after {n} candidates" for n in counts))
    cuts = f"multiples of {data['round_to']} channels, {data['holdout']} held-out and {data['samples']} other samples"
    note = (
        f"\n\nBest top-1 on the held-out samples, no fine-tuning, over {data['seeds']} seeds: `{data['model']}` on "
        f"`{data['data']}` (whole model: {data['whole']['top1']:.1%} on the validation data), {cuts}.\n\n"
    )
    found = data["agreement"]
    scores = [(f"loss, {name}", f"{value:.2f}") for name, value in found["spearman"].items()]
    last = (
        f"\n\nRank correlation (Spearman) of the score with the validation loss after {found['epochs']} epochs of "
        f"fine-tuning: {found['candidates']} random candidates at {found['budget']:.0%} of the MACs."
    )
    parts = [table(head, rows) + note + table(("score", "correlation"), scores) + last]
    if data.get("tuned"):
        first = data["tuned"][0]
        after = [
            (
                row["method"],
                f"{row['budget']:.0%}",
                " / ".join(f"{figures['top1']:.1%}" for figures in row["after"]),
                " / ".join(f"{figures['loss']:.3f}" for figures in row["after"]),
            )
            for row in data["tuned"]
        ]
        parts += [
            table(("method", "kept MACs", "top-1", "loss"), after),
            f"After the same {first['epochs']} epochs of fine-tuning, on the validation data, by seed; searches of "
            f"{first['trials']} candidates.",
        ]
    return "\n\n".join(parts)


def sparsity_runtimes(data: dict[str, Any]) -> str:
    networks = data["networks"]
    parts = []
    files = networks["resnet20, batch 1"]["sizes"]
    sparse = sorted(name for name in files if not name.startswith(("dense", "channels")))
    order = ["dense", *sparse, *(name for name in files if name.startswith("channels")), "dense, again"]
    dense = files["dense"]
    sized = ("checkpoint_bytes", "checkpoint_zlib_bytes", "onnx_bytes", "onnx_zlib_bytes")
    parts.append(
        table(
            ("`resnet20`", "zeros", "checkpoint, kB", "compressed", "ONNX, kB", "compressed"),
            [
                (name, f"{1 - row['nonzero'] / dense['parameters']:.1%}" if "channels" not in name else "removed",
                 *(f"{row[key] / 1e3:,.1f}" for key in sized))
                for name, row in ((name, files[name]) for name in order if name != "dense, again")
            ],
        )
    )  # fmt: skip
    for network, found in networks.items():
        runs = {title: run for title, run in found["runtimes"].items() if title != "PyTorch, sparse kernels"}
        rows = [(name, *(_against_dense(run["timings"][name], name) for run in runs.values())) for name in order]
        parts.append(table((network, *runs), rows))
        special = found["runtimes"].get("PyTorch, sparse kernels")
        if special:
            rows = [(name, _against_dense(timing, name)) for name, timing in special["timings"].items()]
            parts.append(table((network, "PyTorch, sparse kernels"), rows))
    refused = dict.fromkeys(line for found in networks.values() for line in found["refused"])
    device, versions, busy = data["device"], data["versions"], []
    for found in networks.values():
        busy += [run["others_busy_cores"] or 0.0 for run in found["runtimes"].values()]
    rounds = min(run["rounds"] for found in networks.values() for run in found["runtimes"].values())
    note = (
        f"Time as a share of the dense network's, the median of at least {rounds} interleaved rounds with its 95 % "
        "interval; of the dense network, its median. Compressed: zlib, level 6. "
        f"{device['cpu']}, {device['cores']} cores, {data['threads']} thread; other processes used {min(busy):.1f} to "
        f"{max(busy):.1f} cores meanwhile; onnxruntime "
        f"{versions['onnxruntime']}, openvino {versions['openvino']}, torch {versions['torch']}. "
        + (f"Refused: {'; '.join(refused)}" if refused else "")
    )
    return "\n\n".join([*parts, note])


def latency_prediction(data: dict[str, Any]) -> str:
    """Errors of predictions, beside those of the line over MACs."""
    parts = [("held-out random networks", data["held_out"])]
    parts += [(f"of them: {space}-like", found) for space, found in data["by_space"].items()]
    parts += [(name, data.get(key)) for name, key in (("models of the zoo", "zoo"), ("int8 files", "int8"),
                                                      ("calibrated on 10 networks", "ten_networks"))]  # fmt: skip
    rows = [
        (name, len(found["networks"]), f"{found['mape']:.1%}", f"{found['max']:.1%}", f"{found['within_10']:.0%}",
         f"{found['tau']:.3f}", f"{found['coverage_of_90']:.0%}", f"{found['flops_linear']['mape']:.1%}",
         f"{found['flops_linear']['tau']:.3f}")
        for name, found in parts if found
    ]  # fmt: skip
    head = ("networks", "how many", "mean error", "largest", "within 10 %", "Kendall's tau", "inside the 90 % interval",
            "mean error by MACs", "tau by MACs")  # fmt: skip
    once, noise, sums = data["protocol"]["one_pass"], data["noise"]["median"], data["sum_of_kernels"]
    worst = max(item["mape"] for item in once)
    note = (
        f"\n\nCalibrated on {data['calibration']} networks, {data['rounds']} shuffled rounds, noise floor "
        f"{noise:.1%}. From one pass alone the mean error is up to {worst:.1%}. The kernels of a network sum to within "
        f"5 % of its latency for {sums['within_5']:.0%} of the networks. {data['device']['cpu']}, "
        f"{data['runtime']['name']} {data['runtime']['version']}, one thread."
    )
    return table(head, rows) + note


def _against_dense(timing: dict[str, Any], name: str) -> str:
    if name == "dense":
        return f"1 ({timing['median_ms']:.2f} ms)"
    return f"{timing['ratio']:.2f} ({timing['ratio_low']:.2f} to {timing['ratio_high']:.2f})"


def pruning_accuracy(data: dict[str, Any]) -> str:
    rows = [
        (row["model"], f"{row['budget_macs']:.0%}", row["method"], f"{row['macs']:.1%}", f"{row['top1_mean']:.2%}",
         f"{row['top1_mean'] - data['original_top1'][row['model']]:+.2%}",
         f"{row['top1_min']:.2%} to {row['top1_max']:.2%}", row["seeds"], f"{row['top1_cut_mean']:.1%}")
        for row in data["summary"]
    ]  # fmt: skip
    head = ("model", "MACs asked", "method", "MACs left", "top-1", "change", "least and most", "seeds", "before tuning")
    originals = ", ".join(f"{name} {top1:.2%}" for name, top1 in data["original_top1"].items())
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    note = (
        f"\n\nTop-1 on the 10,000 test pictures after {data['epochs']} epochs of fine-tuning, the same for all; data: "
        f"{data['data']}; originals: {originals}; {versions}."
    )
    return table(head, rows) + note


def sensitivity_speed(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        for way, label in (("exact", "all samples"), ("early_stop", "early stopping")):
            used = row["samples_used"] if way == "early_stop" else 1.0
            rows.append((
                row["case"], row["points"], f"{row['samples']:,}", label, f"{used:.0%}",
                f"{row['processor_seconds']['plain']:.0f}", f"{row['processor_seconds'][way]:.0f}",
                f"{row['speedup_by_processor_time'][way]:.2f}", f"{row['speedup'][way]:.2f}",
                f"{100 * row['largest_difference'][way]:.2f}",
            ))  # fmt: skip
    head = ("case", "points", "samples", "way", "samples used", "plain, CPU s", "ours, CPU s", "times faster (CPU)",
            "times faster (clock)", "largest difference, points")  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    load = data["device"]["load"]
    busy = "" if load is None else f", {load:.1f} processes running when it ended"
    note = (
        f"\n\nOne thread for each case, {data['jobs']} cases side by side; {data['device']['cpu']}, "
        f"{data['device']['usable']} cores{busy}; {versions}."
    )
    return table(head, rows) + note


def pruning_latency(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        rows.append((
            f"{row['share']:.0%}", f"{row['budget']}, `{row['allocation']}`", f"{row['ms']:.3f}",
            f"{row['share_of_the_original']:.1%}", f"{row['against_the_budget']:+.1%}",
            "" if row["budget"] == "milliseconds" else f"{row['against_the_plan_for_milliseconds']:+.1%}",
            f"{row['macs']:.0%}", f"{row['params']:.0%}",
            *((f"{row['top1_mean']:.2%}", f"{row['top1_min']:.2%} to {row['top1_max']:.2%}") if "top1_mean" in row
              else ("not yet", "")),
        ))  # fmt: skip
    head = ("time asked", "budget in", "measured, ms", "of the original", "against the budget",
            "against the plan for ms", "MACs", "parameters", "top-1", "least and most")  # fmt: skip
    told = []
    for share in dict.fromkeys(row["share"] for row in data["rows"]):
        own, *others = [row for row in data["rows"] if row["share"] == share]
        equal = [row for row in others if abs(row["against_the_plan_for_milliseconds"]) <= data["equal"]]
        best = max(equal, key=lambda row: row.get("top1_mean", 0.0), default=None)
        if any("top1_mean" not in row for row in (own, *equal)):
            told.append(f"at {share:.0%}, not compared yet")
            continue
        if best is None:
            told.append(f"at {share:.0%}, no plan for MACs takes the same time within {data['equal']:.0%}")
            continue
        gain = 100 * (own["top1_mean"] - best["top1_mean"])
        spread = 100 * max(row["top1_max"] - row["top1_min"] for row in (own, best))
        verdict = "better" if gain > spread else "worse" if -gain > spread else "no better: the seeds differ by as much"
        told.append(f"at {share:.0%}, the budget in milliseconds is {gain:+.2f} points from the best plan for MACs of "
                    f"equal time ({verdict})")  # fmt: skip
    met = "is met" if data["met"] else "is NOT met"
    off = data["prediction"]["errors"]
    shipped = [f"{name} {errors['mean']:.1%} ({errors['relative_to_the_original_mean']:.1%} relative to the original)"
               for name, errors in off.items() if name != "own"]  # fmt: skip
    note = (
        f"\n\nThe budget {met} within {data['bound']:.0%}. In accuracy: {'; '.join(told)}. `{data['model']}`, "
        f"{data['original']['top1']:.2%} and {data['original']['ms']:.3f} ms before, batch 1 at {data['input'][-1]}x"
        f"{data['input'][-2]}, {data['rounds']} shuffled rounds, noise {data['noise']:.1%}; "
        f"{data['epochs']} epoch(s) of fine-tuning on {data['pictures']:,} pictures, "
        f"{data['rows'][0].get('seeds', 0)} seed(s), the same for all. "
        f"Predictions of {data['prediction']['held_out']} networks that the table does not know are off by "
        f"{off['own']['mean']:.1%} in the mean; by a table made at other sizes: {', '.join(shipped) or 'none'}. "
        f"{data['device']['cpu']}, {data['device']['load']:.1f} processes running; onnxruntime "
        f"{data['versions']['onnxruntime']}."
    )
    return table(head, rows) + note


def pruning_schedules(data: dict[str, Any]) -> str:
    kinds = (("weights", "zeros"), ("channels", "MACs kept"))
    dense = {row["way"]: row for row in data["rows"] if row["kind"] == "dense"}
    parts = []
    for kind, what in kinds:
        rows = [
            (row["way"], f"{row['share']:.0%}", f"{row['top1_mean']:.2%}",
             f"{100 * (row['top1_mean'] - dense['trained on']['top1_mean']):+.2f}",
             f"{row['top1_min']:.2%} to {row['top1_max']:.2%}", row["seeds"])
            for row in data["rows"] if row["kind"] == kind
        ]  # fmt: skip
        parts.append(table((kind, what, "top-1", "points to dense", "least and most", "seeds"), rows))
    note = (
        f"Top-1 on the 10,000 test pictures of Fashion-MNIST at {data['side']}x{data['side']}: `{data['model']}` of "
        f"width {data['width']}, trained for {data['base_epochs']} epochs on {data['pictures']:,} pictures "
        f"({dense['not pruned']['top1_mean']:.2%}), then {data['epochs']} epochs in every row (dense: "
        f"{dense['trained on']['top1_mean']:.2%}). Iterative and gradual: {data['steps']} cuts. "
        f"torch {data['versions']['torch']}, slim-prune {data['versions']['slim-prune']}."
    )
    return "\n\n".join([*parts, note])


RENDERERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "analysis_scale": analysis_scale,
    "dependency_weight": dependency_weight,
    "main_job_fashion_mnist": main_job,
    "pruning_accuracy": pruning_accuracy,
    "pruning_families": pruning_families,
    "pruning_latency": pruning_latency,
    "pruning_schedules": pruning_schedules,
    "pruning_search": pruning_search,
    "pruning_speed": pruning_speed,
    "checkpoint_speed": checkpoint_speed,
    "latency_prediction": latency_prediction,
    "latency_prediction_openvino": latency_prediction,
    "noise_protocol": noise_protocol,
    "runtime_settings": runtime_settings,
    "sensitivity_speed": sensitivity_speed,
    "sparsity_runtimes": sparsity_runtimes,
    "training_speed": training_speed,
    "zoo_costs": zoo_costs,
    **quantization.RENDERERS,
    **packed_weights.RENDERERS,
}


def rendered(text: str) -> str:
    """Return ``text`` with every block of figures made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if not (RESULTS / f"{name}.json").is_file():
            return f"{match[1]}\nNot measured yet: `python benchmarks/{name}.py` does.\n\n{match[4]}"
        data = json.loads((RESULTS / f"{name}.json").read_text())
        return f"{match[1]}\n{RENDERERS[name](data)}\n\n{match[4]}"

    return _BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is stale")
    check = parser.parse_args(arguments).check
    stale = []
    for page in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        before = page.read_text()
        after = rendered(before)
        if after != before:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(after)
    if stale:
        print(("stale: " if check else "rendered: ") + ", ".join(stale))
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
