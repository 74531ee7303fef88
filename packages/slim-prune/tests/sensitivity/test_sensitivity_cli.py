"""``slim prune sensitivity`` and the step ``prune.sensitivity``: files, shards, resuming, errors; and the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

import slim_prune
from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_core.plugins import load_plugins
from slim_core.technique import Run
from slim_core.testing.workloads import tiny_workload
from slim_prune.sensitivity.curves import Curves
from slim_prune.sensitivity.technique import SensitivityConfig, SensitivityPruning

PROJECT = """
import torch
from torch import nn
from slim_core import hookimpl
from slim_core.data import Dataset, TensorSource


class Mine(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def squares():
    inputs = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    source = TensorSource(inputs, torch.arange(48) % 4, 16)
    return Dataset(source, source, (inputs[:2],), num_classes=4, input_shape=(1, 8, 8))


@hookimpl
def slim_register_models(register):
    register("mine", Mine)


@hookimpl
def slim_register_datasets(register):
    register("squares", squares)
"""


def slim(*arguments: object, format: str = "json") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = run([str(argument) for argument in arguments], output=Output(format, stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def command(tmp_path: Path) -> list[object]:
    project = tmp_path / "project.py"
    project.write_text(PROJECT)
    measure = ["--model", "mine", "--data", "squares", "--metric", "loss", "--round-to", 4, "--points", 2]
    return ["prune", "sensitivity", "--load", project, *measure]


def test_curves_are_written_drawn_and_resumed(command: list[object], tmp_path: Path) -> None:
    output, plot = tmp_path / "curves.json", tmp_path / "curves.svg"
    status, out, err = slim(*command, "-o", output, "--plot", plot)
    assert status == 0, err
    told = json.loads(out)
    curves = Curves.load(output)
    assert [row["value"] for row in told["points"]] == [point.value for point in curves.points.values()]
    assert {row["name"] for row in told["points"]} == {"first", "second"}
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    points = output.with_name("curves.json.points") / "points-1-of-1.jsonl"
    before, written = points.read_bytes(), output.read_bytes()
    assert slim(*command, "-o", output)[0] == 0
    assert points.read_bytes() == before  # nothing was measured again
    assert output.read_bytes() == written


def test_shards_are_merged(command: list[object], tmp_path: Path) -> None:
    parts = [tmp_path / "one.json", tmp_path / "two.json"]
    for number, part in enumerate(parts, 1):
        assert slim(*command, "--shard", f"{number}/2", "-o", part)[0] == 0
    merged = tmp_path / "all.json"
    status, _, err = slim("prune", "sensitivity", "--merge", parts[0], "--merge", parts[1], "-o", merged)
    assert status == 0, err
    assert slim(*command, "-o", tmp_path / "whole.json")[0] == 0
    assert Curves.load(merged).points == Curves.load(tmp_path / "whole.json").points


def test_people_get_a_table_and_scripts_a_line(command: list[object]) -> None:
    table = slim(*command, "--counts", "first=4,8", "--include", "first", format="human")[1]
    assert "first" in table
    assert "drop of loss" in table
    line = slim(*command, "--include", "first", format="quiet")[1]
    assert line.count("\n") == 1
    assert "2 points of 1 channel groups" in line


def test_floors_hold_for_the_measured_counts(command: list[object]) -> None:
    told = json.loads(slim(*command, "--min-channels", "first=12", "--min-channels", 8)[1])
    kept = {name: {row["kept"] for row in told["points"] if row["name"] == name} for name in ("first", "second")}
    assert kept == {"first": {12}, "second": {8, 12}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--min-channels", "0"], "min_channels must be at least 1"),
        (["--metric", "nothing"], "no metric 'nothing'"),
        (["--shard", "3/2"], "part of the work"),
        (["--counts", "first"], "--counts takes GLOB=8,16"),
        (["--counts", "first=a"], "whole numbers"),
    ],
)
def test_errors_say_what_to_do(command: list[object], more: list[str], words: str) -> None:
    status, _, err = slim(*command, *more)
    assert status != 0
    assert words in json.loads(err.splitlines()[-1])["error"]["what"]


def test_another_file_is_not_overwritten(command: list[object], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    status, _, err = slim(*command, "-o", other)
    assert status != 0
    assert "something else than curves" in err
    assert other.read_text() == "{}"


def test_the_step_prunes_by_curves_and_reports_them(tmp_path: Path) -> None:
    workload = tiny_workload()
    config = SensitivityConfig(budget={"macs": 0.6}, points=2, round_to=2)
    result = SensitivityPruning().run(workload, config, Run(tmp_path, 0, load_plugins().registry))
    assert result.details["curves"][0]["y_label"] == "drop of loss"
    assert sum(row["kept"] for row in result.details["channels"]) < sum(
        row["total"] for row in result.details["channels"]
    )
    plan = slim_prune.PrunePlan.load(tmp_path / "plan.json")
    assert plan.after["macs"] <= 0.6 * plan.before["macs"]


SEVERAL = [
    {"kind": "iterative", "steps": 3},
    {"kind": "gradual", "steps": 2},
    {"kind": "gradual", "at_epochs": [0.5, 1.0]},
]
ONCE = [
    None,
    {"kind": "one_shot"},
    {"kind": "iterative", "steps": 1},
    {"kind": "soft"},
    {"kind": "gradual", "at_epochs": [0.5]},
    {"kind": "gradual", "masked": True},
]


@pytest.mark.parametrize("schedule", SEVERAL)
def test_curves_of_the_whole_model_do_not_serve_several_cuts(schedule: dict[str, Any]) -> None:
    config = {"budget": {"macs": 0.5}, "schedule": schedule, "fit": {"epochs": 2}}
    SensitivityConfig.model_validate(config)
    with pytest.raises(ValidationError, match="measured before each cut"):
        SensitivityConfig.model_validate({**config, "curves": "curves.json"})


@pytest.mark.parametrize("schedule", ONCE)
def test_curves_serve_one_cut(schedule: dict[str, Any] | None) -> None:
    config = {"budget": {"macs": 0.5}, "schedule": schedule, "fit": {"epochs": 2}, "curves": "curves.json"}
    assert SensitivityConfig.model_validate(config).curves == "curves.json"
