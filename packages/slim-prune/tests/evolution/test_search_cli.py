"""``slim prune search``: from a registered model and data set to a plan, a history and a picture."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_prune.prune_plan import PrunePlan

TESTS = Path(__file__).parent.parent

PROJECT = '''
import torch
from slim_core import register
from slim_core.data import Dataset
from search_nets import Chain, untrained

class Mine(Chain):
    """Lives in this file alone."""

@register.model("chain")
def chain(width: int = 16):
    torch.manual_seed(0)
    return Mine((width, 32, 32, width)).eval()

@register.dataset("strokes")
def strokes():
    net = untrained()
    return Dataset(net.train, net.val, net.example_inputs, num_classes=10, input_shape=(1, 8, 8), name="strokes")
'''


@pytest.fixture
def slim(tmp_path, monkeypatch):
    (tmp_path / "search_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIM_PLUGINS", "slim-prune")
    base = ["prune", "search", "--load", "search_project.py", "--model", "chain", "--data", "strokes"]
    base += ["--budget", "macs=0.5", "--round-to", "2", "--trials", "6", "--holdout", "100", "--samples", "64"]

    def call(*arguments, format="human", fails=False):
        out, err = io.StringIO(), io.StringIO()
        status = run([*base, *arguments], output=Output(format, stdout=out, stderr=err))
        assert (status != 0) == fails, err.getvalue()
        return out.getvalue(), " ".join(err.getvalue().split())

    return call


def test_it_writes_plan_history_and_picture(slim, tmp_path) -> None:
    out, _ = slim("-o", "plan.json", "--history", "all.json", "--plot", "search.svg", format="json")
    data = json.loads(out)
    plan = PrunePlan.load(tmp_path / "plan.json")
    assert plan.after["macs"] <= 0.5 * plan.before["macs"]
    history = json.loads((tmp_path / "all.json").read_text())
    assert history == data["search"]
    assert history["best"]["counts"] == {group.name: len(group.kept) for group in plan.groups}
    assert [row["by"] for row in history["trials"]] == ["aging"] * 6 + ["random"]
    drawn = ElementTree.fromstring((tmp_path / "search.svg").read_text())
    charts = [node for node in drawn if node.tag.endswith("svg")]
    assert len(charts) == 3
    (curve, *_) = [node for node in charts[0].iter() if "polyline" in node.tag]
    assert len(curve.get("points").split()) == 6


def test_the_same_command_goes_on_from_its_folder(slim, tmp_path) -> None:
    slim("--folder", "state", "-o", "first.json", "--seed", "3")
    _, err = slim("--folder", "state", "-o", "second.json", "--seed", "3")
    assert "had been scored before" in err
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


def test_options_reach_the_search(slim) -> None:
    out, _ = slim(
        "--algorithm", "random", "--metric", "loss", "--no-recalibrate", "--initial",
        "global:normalize=max", "--allocation", "global", "--option", "population=7",
        "--fit", '{"epochs": 1, "lr": 0.01, "device": "cpu"}', "--fit-samples", "64",
        format="json",
    )  # fmt: skip
    search = json.loads(out)["search"]
    assert search["algorithm"] == "random"
    assert search["metric"] == "loss"
    assert len(search["trials"]) == 6
    assert "global" in {row["origin"] for row in search["trials"]}


def test_slips_are_told_before_anything_runs(slim, tmp_path) -> None:
    (tmp_path / "there.json").write_text("{}")
    for arguments, words in (
        (["-o", "there.json"], "the file is there already"),
        (["-o", "no/where.json"], "there is no folder"),
        (["--fit", "{"], "--fit is not JSON"),
        (["--option", "population"], "--option takes NAME=VALUE"),
        (["--option", "populatoin=3"], "takes no option 'populatoin'"),
        (["--algorithm", "magic"], "magic"),
    ):
        out, err = slim(*arguments, fails=True)
        assert words in out + err


@pytest.mark.slow
def test_workers_find_the_models_of_a_loaded_file(slim, tmp_path) -> None:
    slim("--workers", "1", "--baseline", "0", "--history", "there.json")
    slim("--baseline", "0", "--history", "here.json")
    there, here = (json.loads((tmp_path / name).read_text())["trials"] for name in ("there.json", "here.json"))
    assert [(row["counts"], row["figures"]) for row in there] == [(row["counts"], row["figures"]) for row in here]
