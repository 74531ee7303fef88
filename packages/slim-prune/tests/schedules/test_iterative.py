"""Iterative pruning of a workload: the same as plan, cut and fit by hand, and resumable at every epoch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import slim_prune
from slim_core.errors import SlimError
from slim_core.graph import record
from slim_core.graph.cost import cost
from slim_core.testing.workloads import differences, fingerprint, tiny_workload
from slim_core.training import FitConfig, fit
from slim_prune.edits import state_of
from slim_prune.locking import owned

BETWEEN = FitConfig(epochs=1, lr=0.05, device="cpu", channels_last=False)
AFTER = FitConfig(epochs=2, lr=0.02, device="cpu", channels_last=False)


def run(workload, **options):
    known = {"steps": 3, "fit_between": BETWEEN, "fit_after": AFTER, "round_to": 1, **options}
    return slim_prune.prune_iteratively(workload, {"macs": 0.3}, **known)


def same(left, right) -> bool:
    return all(torch.equal(tensor, state_of(right)[name]) for name, tensor in state_of(left).items())


class Dying:
    """A source of batches that is interrupted after so many of them."""

    def __init__(self, batches, after: int | None) -> None:
        self.batches, self.left = batches, after

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield batch


def test_it_is_plan_cut_and_fit_by_hand() -> None:
    workload = tiny_workload()
    before = fingerprint(workload.model)
    result = run(workload, spacing="geometric")
    assert differences(before, fingerprint(workload.model)) == []
    model = workload.model
    macs = cost(record(model, workload.example_inputs)).macs
    for step, config in ((1, BETWEEN), (2, BETWEEN), (3, AFTER)):
        now = cost(record(model, workload.example_inputs)).macs
        share = min(1.0, macs * 0.3 ** (step / 3) / now)
        plan = slim_prune.plan(model, workload.example_inputs, {"macs": share}, round_to=1)
        model = fit(workload.with_model(plan.apply(model)), config).workload.model
        assert result.steps[step - 1]["macs"] == plan.after["macs"]
        assert result.steps[step - 1]["macs allowed"] == pytest.approx(macs * 0.3 ** (step / 3))
    assert same(result.workload.model, model)
    assert result.plan.after["macs"] <= 0.3 * macs
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4]
    assert [row["epochs"] for row in result.steps] == [1, 1, 2]
    assert len(result.workload.transforms) == 1
    shapes = {name: tensor.shape for name, tensor in state_of(result.plan.apply(workload.model)).items()}
    assert shapes == {name: tensor.shape for name, tensor in state_of(model).items()}


@pytest.mark.parametrize("after", [2, 7, 14])  # in the first step's, the second step's and the last training
def test_a_killed_run_resumes_bit_for_bit(after, tmp_path) -> None:
    workload = tiny_workload()
    expected = run(workload)
    with pytest.raises(KeyboardInterrupt):
        run(replace(workload, train=Dying(workload.train, after)), folder=tmp_path)
    again = run(workload, folder=tmp_path)
    assert same(again.workload.model, expected.workload.model)
    assert again.plan.edits == expected.plan.edits
    assert [{**row, "images_per_s": 0} for row in again.history] == [
        {**row, "images_per_s": 0} for row in expected.history
    ]
    untouched = run(replace(workload, train=Dying(workload.train, 0)), folder=tmp_path)  # nothing is trained again
    assert same(untouched.workload.model, expected.workload.model)


def test_plans_are_read_again_and_not_made_again(tmp_path) -> None:
    workload = tiny_workload()
    first = run(workload, folder=tmp_path, fit_between=None, fit_after=None)
    calls = []

    def counting(*arguments, **options):
        calls.append(1)
        return slim_prune.plan(*arguments, **options)

    second = run(workload, folder=tmp_path, fit_between=None, fit_after=None, planner=counting)
    assert calls == []
    assert first.plan.edits == second.plan.edits


def test_the_folder_of_another_run_is_refused(tmp_path) -> None:
    run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None)
    with pytest.raises(SlimError, match="other starting weights"):
        run(tiny_workload(seed=1), folder=tmp_path, fit_between=None, fit_after=None)
    with pytest.raises(SlimError, match="budget, steps or options were others"):
        run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None, importance="l2")
    with pytest.raises(SlimError, match="budget, steps or options were others"):
        run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None, prefer="head_dim")
    (tmp_path / "schedule.json").write_text("{")
    with pytest.raises(SlimError, match="cannot be read"):
        run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None)


def test_the_folder_of_a_run_on_other_data_or_another_task_is_refused(tmp_path) -> None:
    workload = tiny_workload()
    plain = {"folder": tmp_path, "fit_between": None, "fit_after": None}
    run(workload, **plain)
    shorter = replace(workload, train=list(workload.train)[1:])
    with pytest.raises(SlimError, match="train data was other data: not the same batches"):
        run(shorter, **plain)
    others = [(inputs + 1, targets) for inputs, targets in workload.val]
    run(replace(workload, val=Dying(workload.val, None)), **plain)  # nothing is known of what it yields
    with pytest.raises(SlimError, match="val data was other data: not the same first sample"):
        run(replace(workload, val=others), **plain)
    with pytest.raises(SlimError, match="it had val data"):
        run(replace(workload, val=None), **plain)

    class Other(type(workload.task)):
        name = "another"

    with pytest.raises(SlimError, match="its task was"):
        run(replace(workload, task=Other()), **plain)


def test_a_folder_in_which_another_process_works_is_refused(tmp_path) -> None:
    with owned(tmp_path, "pruning in this folder"), pytest.raises(SlimError, match="another process is pruning in"):
        run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None)
    run(tiny_workload(), folder=tmp_path, fit_between=None, fit_after=None)


def test_what_it_keeps_in_its_folder_is_json_and_safetensors(tmp_path) -> None:
    run(tiny_workload(), folder=tmp_path, steps=2)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == [
        ".lock",
        "schedule.json",
        "step-1/fit-state.safetensors",
        "step-1/plan.json",
        "step-2/fit-state.safetensors",
        "step-2/plan.json",
    ]
    json.loads((tmp_path / "step-1" / "plan.json").read_text())
