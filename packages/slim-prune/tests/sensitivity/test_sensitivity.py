"""``sensitivity()`` as a whole: kills, shards, workers, early stopping, which points are measured, what is refused."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sensitivity_hand as hand
import sensitivity_killed as killed
import torch
from torch.utils.data import DataLoader, TensorDataset

import slim_prune
from slim_core.errors import DataError, PatternError, SlimError
from slim_core.testing.workloads import tiny_workload
from slim_prune.errors import PlanError
from slim_prune.sensitivity.curves import Curves


@pytest.fixture(scope="module")
def whole() -> Curves:
    return killed.measure()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def assert_same(found: Curves, expected: Curves) -> None:
    assert found.points == expected.points  # bit for bit
    assert found.base == expected.base


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_it_gives_the_same_file(tmp_path: Path) -> None:
    folder, output, reference = tmp_path / "points", tmp_path / "curves.json", tmp_path / "reference.json"
    command = [sys.executable, killed.__file__]
    began = time.monotonic()
    subprocess.run([*command, tmp_path / "whole", reference], check=True, timeout=300)
    took = time.monotonic() - began
    rng = random.Random(0)
    kills, sizes = 0, []
    while not output.exists() and kills < 8:
        process = subprocess.Popen([*command, folder, output])
        try:
            # from the imports to beyond the end, and often just when a point has been written
            process.wait(timeout=took * rng.uniform(0.6, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        path = folder / "points-1-of-1.jsonl"
        sizes.append(path.stat().st_size if path.exists() else 0)
    if not output.exists():
        subprocess.run([*command, folder, output], check=True, timeout=300)
    assert sizes == sorted(sizes)  # nothing that was measured is lost
    assert output.read_bytes() == reference.read_bytes()


def test_stopped_between_points_and_resumed_it_gives_the_same(tmp_path: Path, whole: Curves) -> None:
    """Every prefix of the file of points is what a kill may leave."""
    killed.measure(folder=tmp_path / "all")
    lines = (tmp_path / "all" / "points-1-of-1.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 2, 9, len(lines)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        torn = b"".join(lines[:kept]) + (lines[kept][:25] if kept < len(lines) else b"")
        (folder / "points-1-of-1.jsonl").write_bytes(torn)
        assert_same(killed.measure(folder=folder), whole)


@pytest.mark.parametrize("parts", [2, 3])
def test_shards_merge_to_the_whole(parts: int, whole: Curves) -> None:
    shards = [killed.measure(shard=f"{part}/{parts}") for part in range(1, parts + 1)]
    keys = [set(shard.points) for shard in shards]
    assert all(keys)
    assert sum(map(len, keys)) == len(set().union(*keys)) == len(whole.points)
    assert_same(shards[-1].merge(*shards[:-1]), whole)


def test_shards_may_share_a_folder(tmp_path: Path, whole: Curves) -> None:
    for part in (1, 2):
        killed.measure(shard=(part, 2), folder=tmp_path)
    began = {path.name for path in tmp_path.iterdir()}
    assert_same(killed.measure(folder=tmp_path), whole)
    assert {path.name for path in tmp_path.iterdir()} - began == {"points-1-of-1.jsonl"}


def test_worker_processes_give_the_same(tmp_path: Path, whole: Curves) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same(killed.measure(workers=2, folder=tmp_path), killed.measure())
    finally:
        torch.set_num_threads(threads)
    assert len(list(tmp_path.glob("points-*-worker-*.jsonl"))) == 2


def test_a_model_that_cannot_be_sent_to_workers_is_one_clear_error() -> None:
    model, inputs, task, data = killed.subject()
    model.extra = lambda x: x
    with pytest.raises(PlanError, match="cannot be sent") as error:
        slim_prune.sensitivity(model, inputs, task, data, workers=2, round_to=4, points=1)
    assert "--shard" in str(error.value)


def test_workers_that_read_other_samples_than_their_parent_are_found_out() -> None:
    model, inputs, task, data = killed.subject()
    pictures = torch.cat([batch[0] for batch in data])
    targets = torch.cat([batch[1] for batch in data])
    shuffled = DataLoader(TensorDataset(pictures, targets), 32, shuffle=True)
    with pytest.raises(PlanError, match="read other samples than its parent") as error:
        slim_prune.sensitivity(model, inputs, task, shuffled, workers=2, round_to=4, points=1, samples=32)
    assert "shuffle=False" in str(error.value)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_silent_workers_are_given_up_on_with_all_that_they_started(tmp_path: Path) -> None:
    model, inputs, task, data = killed.subject()
    silent = killed.SilentInWorkers(str(tmp_path)).eval()
    silent.load_state_dict(model.state_dict())
    with pytest.raises(PlanError, match="was silent for 15 s 3 times") as error:
        slim_prune.sensitivity(silent, inputs, task, data, workers=1, timeout=15, round_to=4, points=1)
    assert "raise timeout" in str(error.value)
    children = [int(path.name) for path in tmp_path.iterdir()]
    assert 1 <= len(children) <= 3  # on a busy machine one may be given up on before it starts anything
    assert all(map(gone, children))


def test_one_worker_is_a_process_of_its_own(tmp_path: Path) -> None:
    assert_same(killed.measure(workers=1, folder=tmp_path, include="stem"), killed.measure(include="stem"))
    assert [path.name for path in tmp_path.glob("points-*-worker-*")] == ["points-1-of-1-worker-1.jsonl"]


def test_curves_of_other_weights_decide_nothing(whole: Curves) -> None:
    model, inputs, _, _ = killed.subject()
    options = {"budget": {"macs": 0.5}, "round_to": 1, "allocation": {"name": "sensitivity", "curves": whole}}
    slim_prune.plan(model, inputs, **options)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(PlanError, match="measured on another model"):
        slim_prune.plan(model, inputs, **options)


def test_a_folder_of_other_weights_data_or_metric_is_refused(tmp_path: Path) -> None:
    model, inputs, task, data = killed.subject()
    options = {"folder": tmp_path, "include": "stem", "points": 1, "metric": "loss"}
    slim_prune.sensitivity(model, inputs, task, data, **options)
    with pytest.raises(PlanError, match="another metric"):
        slim_prune.sensitivity(model, inputs, task, data, **{**options, "metric": "top1"})
    with pytest.raises(PlanError, match="other data"):
        slim_prune.sensitivity(model, inputs, task, data[::-1], **options)
    with torch.no_grad():
        model.head.bias.add_(1e-6)
    with pytest.raises(PlanError, match="other weights"):
        slim_prune.sensitivity(model, inputs, task, data, **options)


def test_more_counts_extend_a_folder(tmp_path: Path) -> None:
    first = killed.measure(folder=tmp_path, include="stem", points=1)
    more = killed.measure(folder=tmp_path, include="stem", counts={"*": [4, 8, 12]})
    assert [point.kept for point in more["stem.0"].points] == [4, 8, 12]
    assert more["stem.0"].points[0] == first["stem.0"].points[0]


def test_early_stopping_stays_within_the_tolerance_and_uses_fewer_samples() -> None:
    model, inputs, task, _ = killed.subject()
    generator = torch.Generator().manual_seed(3)
    inputs_all = torch.rand(3000, 3, 8, 8, generator=generator)
    with torch.no_grad():
        answers = torch.cat([model(part) for part in inputs_all.split(500)]).argmax(1)
    data = [(inputs_all[i : i + 100], answers[i : i + 100]) for i in range(0, 3000, 100)]
    options = {"include": ["stem", "blocks.3.*"], "counts": {"*": [8, 12, 14]}}
    exact = slim_prune.sensitivity(model, inputs, task, data, **options)
    stopped = slim_prune.sensitivity(model, inputs, task, data, early_stop=0.05, **options)
    assert stopped.base == exact.base
    for key, point in stopped.points.items():
        assert abs(point.value - exact.points[key].value) <= max(point.margin, 1e-9)
        assert point.margin <= 0.05
    assert any(point.samples < 3000 for point in stopped.points.values())
    again = slim_prune.sensitivity(model, inputs, task, data, early_stop=0.05, **options)
    assert again.points == stopped.points


def test_a_metric_that_is_no_mean_is_never_stopped_early() -> None:
    workload = tiny_workload()
    batches = hand.batches_like(workload.example_inputs)
    curves = slim_prune.sensitivity(
        workload.model, workload.example_inputs, hand.EnergyTask(), batches, metric="loss", early_stop=0.1, points=1
    )
    assert any("no mean over samples" in note for note in curves.notes)
    assert {point.samples for point in curves.points.values()} == {curves.base.samples}


def test_points_are_spread_over_the_permitted_counts() -> None:
    curves = killed.measure(include="stem", round_to=2, points=4, min_channels=4)
    assert [point.kept for point in curves["stem.0"].points] == [4, 6, 10, 14] or [
        point.kept for point in curves["stem.0"].points
    ] == [4, 8, 10, 14]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"metric": "top3"}, SlimError, "no metric 'top3'"),
        ({"points": 0}, SlimError, "points must be"),
        ({"shard": "3/2"}, SlimError, "part of the work"),
        ({"shard": "x"}, SlimError, "part of the work"),
        ({"workers": -1}, SlimError, "workers must be"),
        ({"timeout": 0}, SlimError, "timeout is a number"),
        ({"counts": {"stem": [17]}}, SlimError, "17 channels"),
        ({"counts": {"stam": [8]}}, PatternError, "matches no module"),
        ({"include": "nothing"}, PatternError, "matches no module"),
        ({"samples": 10_000}, DataError, "asked for"),
    ],
)
def test_arguments_without_sense_are_refused(options: dict, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        killed.measure(**options)


def test_data_that_can_be_read_once_is_refused() -> None:
    model, inputs, task, data = killed.subject()
    with pytest.raises(DataError, match="only once"):
        slim_prune.sensitivity(model, inputs, task, iter(data))


def test_a_plan_by_sensitivity_meets_its_budget_and_keeps_what_matters(tmp_path: Path) -> None:
    """One block's weights do nothing: a plan by curves takes its channels first."""
    model, inputs, task, data = killed.subject()
    with torch.no_grad():
        model.stem[0].weight[8:] *= 1e-4  # half of the stem is idle
        model.stem[0].bias[8:] = 0
    measured = slim_prune.sensitivity(model, inputs, task, data, metric="loss", round_to=4, points=3)
    measured.save(tmp_path / "curves.json")
    plans = [
        slim_prune.plan(
            model,
            inputs,
            {"macs": 0.7},
            allocation={"name": "sensitivity", "points": 3, **options},
            round_to=4,
            task=task,
            val=data,
            folder=tmp_path / "plan",
        )
        for options in ({}, {"curves": str(tmp_path / "curves.json")})
    ]
    assert plans[0].diff(plans[1]) == []
    assert plans[0].after["macs"] <= 0.7 * plans[0].before["macs"]
    assert plans[0].details["curves"][0]["series"][0]["name"] == "stem.0"
    assert list((tmp_path / "plan").glob("sensitivity-*/points-1-of-1.jsonl"))
