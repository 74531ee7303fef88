"""What cannot work is told before the long work begins, and leaves nothing behind."""

import copy
import io
import json
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml

from slim_core.cli.main import run as slim
from slim_core.cli.output import Output
from slim_core.errors import MissingExtraError, PatternError, RecipeError, SlimError
from slim_core.plugins import load_plugins
from slim_core.recipe import run
from slim_core.recipe.build import prepare
from slim_core.recipe.finish import _install
from slim_core.recipe.load import load_recipe
from slim_core.recipe.rehearsal import rehearse
from slim_core.recipe.surroundings import extras, missing
from slim_core.technique import StepResult, StrictConfig

PROJECT = Path(__file__).parent / "project.py"


class WidenConfig(StrictConfig):
    fail: bool = False
    blind: bool = False


class Widen:
    """Gives the net another last layer; its rehearsal uses random numbers and spoils what it is given."""

    name: ClassVar[str] = "t.widen"
    Config: ClassVar[type] = WidenConfig
    seen: ClassVar[list[int]] = []

    def run(self, workload, config, run):
        model = copy.deepcopy(workload.model)
        model.last = torch.nn.Linear(model.last.in_features, model.last.out_features)
        return StepResult(workload.with_model(model))

    def rehearse(self, workload, config, run):
        torch.rand(3)
        self.seen.append(workload.model.first.out_features)
        if config.fail:
            raise PatternError("pattern 'x' matches nothing", where="layer y", hint="z")
        if config.blind:
            return None
        workload.model.first.weight.data.zero_()
        model = copy.deepcopy(workload.model)
        model.first.out_features += 1
        return workload.with_model(model)


@pytest.fixture
def registry(registry):
    Widen.seen.clear()
    registry.register("techniques", "t.widen", Widen, plugin="test")
    return registry


def with_steps(recipe, *steps):
    return {**recipe, "steps": list(steps)}


def test_an_error_of_the_rehearsal_comes_before_training_with_the_line_of_the_step(recipe, registry, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(with_steps(recipe, {"kind": "t.widen"}, {"kind": "t.widen", "fail": True})))
    line = file.read_text().splitlines().index("- fail: true") + 1
    with pytest.raises(PatternError) as caught:
        run(file, tmp_path / "out", registry=registry)
    assert caught.value.where == f"{file}:{line}, step 2 (layer y)"
    assert not (tmp_path / "out").exists()  # nothing was trained


def test_steps_see_the_workload_of_the_step_before(recipe, registry):
    loaded = load_recipe(
        with_steps(recipe, {"kind": "t.widen"}, {"kind": "fit", "epochs": 1}, {"kind": "t.widen"}), registry
    )
    rehearse(loaded, registry, prepare(loaded, registry, None).workload)
    assert Widen.seen == [16, 17]


@pytest.mark.parametrize("first", [{"kind": "t.widen", "blind": True}, {"kind": "t.nudge"}])
def test_nothing_is_said_about_steps_after_one_that_cannot_tell(recipe, registry, first):
    loaded = load_recipe(with_steps(recipe, first, {"kind": "t.widen", "fail": True}), registry)
    rehearse(loaded, registry, prepare(loaded, registry, None).workload)  # raises nothing


def test_a_rehearsal_changes_neither_the_workload_nor_the_generators(recipe, registry):
    loaded = load_recipe(with_steps(recipe, {"kind": "t.widen"}), registry)
    workload = prepare(loaded, registry, None).workload
    weights = {name: tensor.clone() for name, tensor in workload.model.state_dict().items()}
    state = torch.get_rng_state()
    rehearse(loaded, registry, workload)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in workload.model.state_dict().items())


def test_an_error_while_a_step_runs_names_the_step(recipe, registry, tmp_path):
    with pytest.raises(SlimError, match="this step fails") as caught:
        run(with_steps(recipe, {"kind": "t.nudge", "fail": True}), tmp_path, registry=registry)
    assert caught.value.where.endswith(", step 1")


class Runtime:
    name: ClassVar[str] = "t.runtime"
    requires = (("not_installed_anywhere", "t-plugin[runtime]"),)

    def available(self):
        raise MissingExtraError("t.runtime is not installed", hint="pip install 't-plugin[runtime]'")


def test_what_is_not_installed_is_told_with_the_line_and_leaves_no_run(recipe, registry, tmp_path):
    registry.register("backends", "t.runtime", Runtime, plugin="test")
    recipe["measure"] = {"backends": ["eager", "t.runtime"]}
    loaded = load_recipe(recipe, registry)
    (problem,) = missing(loaded, registry)
    assert problem.where == loaded.source.where(("measure", "backends", 1))
    assert extras(loaded, registry) == ["t-plugin[runtime]"]
    with pytest.raises(MissingExtraError) as caught:
        run(recipe, tmp_path / "out", registry=registry)
    assert caught.value.where
    assert not (tmp_path / "out").exists()


def test_a_builder_that_raises_is_named_with_its_line(recipe, registry, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import slim_core\n\n\n@slim_core.register.model('t/raises')\n"
        "def build(num_classes: int = 3):\n    return [][num_classes]\n"
    )
    builder = load_plugins(extra=[path]).registry.get("models", "t/raises")
    recipe["workload"] = {**recipe["workload"], "model": "t/raises", "kwargs": {}}
    registry.register("models", "t/raises", builder, plugin="mine")
    with pytest.raises(RecipeError, match="IndexError") as caught:
        run(recipe, tmp_path / "out", registry=registry)
    assert f"{path}:6: return [][num_classes]" in caught.value.where


def test_what_installs_a_run_is_true_of_releases_and_of_checkouts():
    names, wanted = {"slim-core", "slim-latency"}, ["slim-latency[onnxruntime]", "slim-core[onnx]", "other[x]"]
    released = _install({"slim-core": "0.1", "slim-latency": "0.2", "other": "3"}, names, wanted)
    assert released == ("pip install 'other[x]==3' 'slim-core[onnx]==0.1' 'slim-latency[onnxruntime]==0.2'",)
    note, checkout = _install({"slim-core": "0.1.0.dev0", "slim-latency": "0.1.0.dev0+g1"}, names, wanted[:2])
    assert note.startswith("# a development version, which is on no package index")
    assert checkout == "pip install './packages/slim-core[onnx]' './packages/slim-latency[onnxruntime]'"
    (foreign,) = _install({"other": "1.dev1"}, {"other"}, [])
    assert foreign == "# other 1.dev1 is a development version: install it from its own checkout"


def cli(*arguments, format="human"):
    out, err = io.StringIO(), io.StringIO()
    status = slim(["--load", str(PROJECT), *map(str, arguments)], output=Output(format, out, err))
    return status, out.getvalue(), err.getvalue()


def test_check_warns_of_what_a_run_would_need(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIM_PLUGINS", "")
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**recipe, "export": {"format": "onnx"}}))
    status, out, err = cli("recipe", "check", file)
    assert status == 0
    assert "valid recipe" in out
    assert "onnx is not installed" in err
    assert "pip install 'slim-core[onnx]'" in err
    (warning,) = json.loads(cli("recipe", "check", file, format="json")[1])["warnings"]
    assert warning["where"].startswith(f"{file}:")
    status, _, err = cli("run", file, "-o", tmp_path / "out")
    assert status == 2
    assert f"where: {file}:" in err
    assert not (tmp_path / "out").exists()


def test_the_line_of_a_run_that_was_finished_says_that_nothing_was_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIM_PLUGINS", "")
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({**recipe, "steps": [], "train": {"epochs": 1}}))
    first, second = (cli("run", file, "-o", tmp_path / "out", format="quiet")[1] for _ in range(2))
    assert "nothing was run again" not in first
    assert "finished before, nothing was run again" in second
    assert json.loads(cli("run", file, "-o", tmp_path / "out", format="json")[1])["reused"] is True


def test_no_line_of_the_help_is_cut(monkeypatch):
    monkeypatch.setenv("SLIM_PLUGINS", "")
    assert "..." not in cli("recipe", "--help")[1].replace("[ARGS]...", "")
