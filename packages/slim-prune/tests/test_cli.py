"""``slim prune``: plans from the command line, their views, carrying them out, and errors that say what to do."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_model

from slim_core.checkpoint import load, save
from slim_core.cli.main import run
from slim_core.cli.output import Output
from slim_core.graph import analyse
from slim_core.plugins import load_plugins
from slim_core.testing.oracle import assert_equals_masked_original, outputs_of
from slim_core.workload import BuilderRef, Workload
from slim_prune.prune_plan import PrunePlan

KWARGS = {"width": 0.5}
SUBJECT = ["--model", "zoo/resnet20", "--input", "1,3,16,16", "--kwargs", '{"width": 0.5}']
MODEL = ["prune", "plan", *SUBJECT]
INPUTS = (torch.linspace(-1, 1, 3 * 16 * 16).sin().reshape(1, 3, 16, 16),)

PROJECT = """
import torch
from torch import nn
from slim_core import hookimpl
from slim_core.data import Dataset, TensorSource


class Mine(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def squares(seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(48, 1, 8, 8, generator=generator)
    source = TensorSource(inputs, torch.arange(48) % 4, 16)
    return Dataset(source, source, (inputs[:2],), num_classes=4, input_shape=(1, 8, 8))


@hookimpl
def slim_register_models(register):
    register("mine", Mine)


@hookimpl
def slim_register_datasets(register):
    register("squares", squares)
"""


def slim(*arguments: object, format: str = "human") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = run([str(argument) for argument in arguments], output=Output(format, stdout=out, stderr=err))
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def written(folder):
    path = folder / "plan.json"
    status, out, err = slim(*MODEL, "--budget", "macs=0.5", "-o", path)
    assert status == 0, err
    return path, out, err


@pytest.fixture(scope="module")
def base(folder):
    """A model with weights of its own, as a checkpoint and as plain weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = load_plugins().registry.get("models", "zoo/resnet20")(**KWARGS)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
    workload = Workload(model.eval(), INPUTS, builder=BuilderRef("zoo/resnet20", KWARGS))
    save(workload, folder / "base.safetensors")
    save_model(model, str(folder / "weights.safetensors"))
    return workload


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "my_project.py"
    path.write_text(PROJECT)
    return path


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
    status, out, _ = slim("prune", "show", path, format="json")
    assert status == 0
    shown = json.loads(out)
    plan = PrunePlan.load(path)
    assert shown["channels"] == plan.summary()
    assert shown["after"] == dict(plan.after)
    assert shown["reached"] == [bound.to_json() for bound in plan.reached]
    assert 0 <= shown["reached"][0]["distance"] <= 0.01
    status, out, _ = slim("prune", "show", path, format="quiet")
    assert status == 0
    assert out.startswith("macs ")
    assert out.count("\n") == 1


def test_show_draws_a_picture_and_replaces_none_unasked(written, tmp_path) -> None:
    path, _, _ = written
    status, _, err = slim("prune", "show", path, "--picture", tmp_path / "plan.svg")
    assert status == 0, err
    tree = ElementTree.fromstring((tmp_path / "plan.svg").read_text())
    names = {row["name"] for row in PrunePlan.load(path).summary()}
    assert names <= {element.text for element in tree.iter() if element.text}
    status, _, err = slim("prune", "show", path, "--picture", tmp_path / "plan.svg")
    assert status == 2
    assert "--overwrite" in err
    assert slim("prune", "show", path, "--picture", tmp_path / "plan.svg", "--overwrite")[0] == 0


def test_diff_tells_what_two_plans_keep(written, tmp_path) -> None:
    path, _, _ = written
    other = tmp_path / "other.json"
    assert slim(*MODEL, "--budget", "macs=0.4", "--allocation", "global", "-o", other)[0] == 0
    status, out, _ = slim("prune", "diff", path, other, format="json")
    assert status == 0
    rows = PrunePlan.load(path).diff(PrunePlan.load(other))
    assert [row["name"] for row in json.loads(out)["groups"]] == [row.name for row in rows]
    assert json.loads(out)["groups"][0]["first"] == rows[0].first
    status, out, _ = slim("prune", "diff", path, path)
    assert status == 0
    assert "the plans keep the same channels" in out
    status, out, _ = slim("prune", "diff", path, other)
    assert rows[0].name in out


def test_ratios_and_globs_from_the_command_line() -> None:
    status, out, err = slim(*MODEL, "--ratio", "stages.0.*=0.5", "--round-to", "1", format="json")
    assert status == 0, err
    rows = json.loads(out)["channels"]
    assert {row["kept"] / row["total"] for row in rows if row["name"].startswith("stages.0")} == {0.5}
    assert {row["kept"] / row["total"] for row in rows if row["name"].startswith("stages.2")} == {1.0}


def test_options_of_importance_and_allocation_and_floors_by_glob() -> None:
    status, out, err = slim(
        *MODEL, "--budget", "macs=0.5", "--round-to", "1", "--importance", "l2:normalize=max",
        "--allocation", "global:max_pruned=0.6,normalize=sum", "--min-channels", "2", "--min-channels", "stages.2.*=20",
        format="json",
    )  # fmt: skip
    assert status == 0, err
    data = json.loads(out)
    assert data["importance"] == "l2(normalize='max')"
    assert data["allocation"] == "global(max_pruned=0.6, normalize='sum')"
    for row in data["channels"]:
        assert row["kept"] >= 0.4 * row["total"]
        if row["name"].startswith("stages.2"):
            assert row["kept"] >= 20


ATTENTION = """
from slim_core import hookimpl
from slim_core.testing.families import build


@hookimpl
def slim_register_models(register):
    register("attention", lambda: build("vit_head_dim", width=32)[0])
"""


@pytest.mark.parametrize(("prefer", "units"), [((), 4), (("--prefer", "heads"), 4), (("--prefer", "head-dim"), 8)])
def test_what_attention_loses_is_chosen_on_the_command_line(prefer, units, tmp_path) -> None:
    project, output = tmp_path / "project.py", tmp_path / "plan.json"
    project.write_text(ATTENTION)
    options = ["--load", project, "--model", "attention", "--input", "2,3,32,32", "--ratio", "blocks.0.attn.qkv=0.5"]
    status, _, err = slim("prune", "plan", *options, *prefer, "-o", output)
    assert status == 0, err
    assert {group.name: group.units for group in PrunePlan.load(output).groups}["blocks.0.attn.qkv"] == units


def test_apply_writes_the_pruned_model_of_a_checkpoint_and_of_plain_weights(written, base, folder, tmp_path) -> None:
    path, _, _ = written
    sources = (
        ["--checkpoint", folder / "base.safetensors"],
        ["--model", folder / "base.safetensors"],
        [*SUBJECT, "--weights", folder / "weights.safetensors"],
        ["--model", "zoo/resnet20", "--kwargs", '{"width": 0.5}', "--weights", folder / "base.safetensors"],
    )
    plan = PrunePlan.load(path)
    for number, source in enumerate(sources):
        target = tmp_path / f"pruned{number}.safetensors"
        status, out, err = slim("prune", "apply", path, *source, "-o", target, format="json")
        assert status == 0, err
        assert "random" not in err
        assert json.loads(out)["checkpoint"]["bytes"] == target.stat().st_size
        pruned = load(target, registry=load_plugins().registry).model
        coupling = analyse(base.model, INPUTS)
        assert_equals_masked_original(base.model, pruned, coupling, plan.kept, INPUTS)


def test_apply_says_that_weights_are_random(written, tmp_path) -> None:
    status, _, err = slim("prune", "apply", written[0], *SUBJECT, "-o", tmp_path / "pruned.safetensors")
    assert status == 0
    assert "the weights are random" in err


def test_apply_replaces_no_file_unasked_and_leaves_the_old_one_when_it_fails(written, folder, base, tmp_path) -> None:
    target = tmp_path / "pruned.safetensors"
    target.write_bytes(b"precious")
    source = ["--checkpoint", folder / "base.safetensors", "-o", target]
    status, _, err = slim("prune", "apply", written[0], *source)
    assert status == 2
    assert "there already" in err
    assert target.read_bytes() == b"precious"
    other = ["--model", "zoo/resnet18", "--input", "1,3,32,32", "-o", target, "--overwrite"]
    status, _, err = slim("prune", "apply", written[0], *other)
    assert status == 2
    assert "a plan fits the model that it was made for" in err
    assert target.read_bytes() == b"precious"
    assert slim("prune", "apply", written[0], *source, "--overwrite")[0] == 0
    assert load(target, registry=load_plugins().registry).transforms[-1].kind == "prune.channels"
    assert [item.name for item in tmp_path.iterdir()] == ["pruned.safetensors"]


def test_the_onnx_file_computes_what_the_pruned_model_computes(written, folder, base, tmp_path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    target = tmp_path / "pruned.onnx"
    status, out, err = slim(
        "prune", "apply", written[0], "--checkpoint", folder / "base.safetensors", "--onnx", target,
        "-o", tmp_path / "pruned.safetensors", format="json",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads(out)["onnx"]["bytes"] == target.stat().st_size
    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    pruned = load(tmp_path / "pruned.safetensors", registry=load_plugins().registry).model
    for batch in (1, 5):
        inputs = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))
        (expected,) = outputs_of(pruned, (inputs,))
        (actual,) = session.run(None, {name: inputs.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-5)


def test_a_users_own_model_and_data_from_plan_to_checkpoint(project, tmp_path) -> None:
    source = ["--load", project, "--model", "mine", "--data", "squares"]
    plan, target = tmp_path / "plan.json", tmp_path / "pruned.safetensors"
    status, _, err = slim(
        "prune", "plan", *source, "--budget", "params=50%", "--importance", "taylor", "--round-to", "1", "-o", plan
    )
    assert status == 0, err
    status, out, err = slim("prune", "apply", plan, *source, "-o", target, format="json")
    assert status == 0, err
    data = json.loads(out)
    assert set(data["metrics"]) >= {"top1", "loss"}
    assert 0 <= data["metrics"]["top1"]["after"] <= 1
    model = load(target, registry=_registry(project)).model
    assert sum(p.numel() for p in model.parameters()) == PrunePlan.load(plan).after["params"]


def test_a_criterion_that_looks_at_data_says_that_it_has_none(project) -> None:
    status, _, err = slim(
        "prune", "plan", "--load", project, "--model", "mine", "--input", "1,1,8,8", "--budget", "params=0.5",
        "--importance", "taylor",
    )  # fmt: skip
    assert status == 2
    assert "--data" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*MODEL], "nothing to do"),
        ([*MODEL, "--budget", "macs"], "NAME=VALUE"),
        ([*MODEL, "--budget", "mac=0.5"], "did you mean 'macs'"),
        ([*MODEL, "--budget", "macs=0.0001"], "cannot be reached"),
        ([*MODEL, "--budget", "macs=0.5", "--exclude", "stags.*"], "matches no module"),
        ([*MODEL, "--budget", "macs=0.5", "--importance", "l3"], "unknown importance"),
        ([*MODEL, "--budget", "macs=0.5", "--importance", "l2:normalize"], "NAME:OPTION=VALUE"),
        ([*MODEL, "--budget", "macs=0.5", "--allocation", "globl"], "did you mean 'global'"),
        ([*MODEL, "--budget", "macs=0.5", "--allocation", "global:max_prune=0.5"], "did you mean 'max_pruned'"),
        ([*MODEL, "--budget", "macs=0.5", "--allocation", "global:max_pruned=2"], "max_pruned is the largest share"),
        ([*MODEL, "--budget", "macs=0.5", "--allocation", "uniform:x=1"], "takes no option"),
        ([*MODEL, "--budget", "macs=0.5", "--min-channels", "few"], "takes a count"),
        ([*MODEL, "--budget", "macs=0.5", "--min-channels", "stages=few"], "is not a number"),
        ([*MODEL, "--ratio", "stages=half"], "not a number"),
        ([*MODEL, "--budget", "macs=0.5", "--budget", "macs=0.6"], "--budget gives 'macs' two values: 0.5 and 0.6"),
        ([*MODEL, "--ratio", "stages.*=0.5", "--ratio", "stages.*=0.6"], "--ratio gives 'stages.*' two values"),
        (["prune", "plan", "--budget", "macs=0.5"], "say which model"),
        ([*MODEL, "--checkpoint", "x.safetensors", "--budget", "macs=0.5"], "one of the two"),
        (["prune", "plan", "--checkpoint", "/nowhere/x.safetensors", "--budget", "macs=0.5"], "/nowhere/x.safetensors"),
        ([*MODEL, "--weights", "/nowhere/x.safetensors", "--budget", "macs=0.5"], "no such file"),
        ([*MODEL, "--data", "digts", "--budget", "macs=0.5"], "unknown data set"),
        ([*MODEL, "--data", "digits", "--data-kwargs", '{"hue": 3}', "--budget", "macs=0.5"], "no argument 'hue'"),
        (["prune", "plan", "--model", "zoo/resnet21", "--budget", "macs=0.5"], "unknown model"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--kwargs", "{"], "not JSON"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--kwargs", "[]"], "JSON object"),
        (["prune", "plan", "--model", "zoo/resnet20", "--budget", "macs=0.5", "--input", "1,x"], "cannot read --input"),
        (["prune", "show", "/nowhere/plan.json"], "cannot be read"),
        (["prune", "diff", "/nowhere/plan.json", "/nowhere/other.json"], "cannot be read"),
        (["prune", "apply", "/nowhere/plan.json", *SUBJECT], "nothing would be written"),
        (["prune", "apply", "/nowhere/plan.json", *SUBJECT, "-o", "pruned.pt"], ".safetensors"),
        (["prune", "apply", "/nowhere/plan.json", *SUBJECT, "-o", "pruned.safetensors"], "cannot be read"),
        ([*MODEL, "--budget", "macs=0.5", "-o", "/nowhere/plan.json"], "there is no folder '/nowhere'"),
        ([*MODEL, "--budget", "macs=0.5", "-o", "/"], "is a directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(arguments, message) -> None:
    status, out, err = slim(*arguments)
    assert status == 2
    assert message in " ".join(err.split())
    assert out == ""


@pytest.mark.parametrize("written", ["", "{", "[]", "{}", "\x00\x01"])
def test_a_file_that_is_no_plan_says_how_to_write_one(tmp_path, written) -> None:
    (tmp_path / "plan.json").write_text(written)
    status, _, err = slim("prune", "show", str(tmp_path / "plan.json"))
    assert status == 2
    assert "writes a plan anew" in " ".join(err.split())


def _registry(project):
    host = load_plugins()
    host.load_file(project)
    return host.registry
