"""``slim prune``: plans from the command line, their views, and errors that say what to do."""

from __future__ import annotations

import io
import json

import pytest

from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_prune.prune_plan import PrunePlan

MODEL = ["prune", "plan", "--model", "zoo/resnet20", "--input", "1,3,16,16", "--kwargs", '{"width": 0.5}']


def slim(*arguments: str, format: str = "human") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = run(list(arguments), output=Output(format, stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    status, out, err = slim(*MODEL, "--budget", "macs=0.5", "-o", str(path))
    assert status == 0, err
    return path, out, err


def test_plan_writes_the_plan_and_draws_it(written) -> None:
    path, out, err = written
    plan = PrunePlan.load(path)
    assert plan.after["macs"] <= 0.5 * plan.before["macs"]
    assert plan.budget == {"macs": "0.5"}
    assert "macs" in out
    assert plan.groups[0].name in out
    assert str(path) in err.replace("\n", "")


def test_show_gives_the_same_in_every_format(written) -> None:
    path, _, _ = written
    status, out, _ = slim("prune", "show", str(path), format="json")
    assert status == 0
    shown = json.loads(out)
    plan = PrunePlan.load(path)
    assert shown["channels"] == plan.summary()
    assert shown["after"] == dict(plan.after)
    status, out, _ = slim("prune", "show", str(path), format="quiet")
    assert status == 0
    assert out.startswith("macs ")
    assert out.count("\n") == 1


def test_ratios_and_globs_from_the_command_line() -> None:
    status, out, err = slim(*MODEL, "--ratio", "stages.0.*=0.5", "--round-to", "1", format="json")
    assert status == 0, err
    rows = json.loads(out)["channels"]
    assert {row["kept"] / row["total"] for row in rows if row["name"].startswith("stages.0")} == {0.5}
    assert {row["kept"] / row["total"] for row in rows if row["name"].startswith("stages.2")} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MODEL], "nothing to do"),
        ([*MODEL, "--budget", "macs"], "NAME=VALUE"),
        ([*MODEL, "--budget", "mac=0.5"], "did you mean 'macs'"),
        ([*MODEL, "--budget", "macs=0.0001"], "cannot be reached"),
        ([*MODEL, "--budget", "macs=0.5", "--exclude", "stags.*"], "matches no module"),
        ([*MODEL, "--budget", "macs=0.5", "--importance", "l3"], "unknown importance"),
        ([*MODEL, "--ratio", "stages=half"], "not a number"),
        (["prune", "plan", "--model", "zoo/resnet21", "--budget", "macs=0.5"], "unknown model"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--kwargs", "{"], "not JSON"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--kwargs", "[]"], "JSON object"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--input", "1,x"], "cannot read --input"),
        (["prune", "show", "/nowhere/plan.json"], "cannot be read"),
        ([*MODEL, "--budget", "macs=0.5", "-o", "/nowhere/plan.json"], "there is no folder '/nowhere'"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message) -> None:
    status, out, err = slim(*arguments)
    assert status == 2
    assert message in " ".join(err.split())
    assert out == ""
