import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

from slim_core import checkpoint
from slim_core.errors import (
    Interrupted,
    ModelError,
    OutputFolderError,
    RecipeError,
    SlimError,
)
from slim_core.plugins import load_plugins
from slim_core.progress import SilentProgress
from slim_core.recipe import run
from slim_core.report import read_report
from slim_core.tasks import ClassificationTask
from slim_core.workload import Workload

PROJECT = Path(__file__).parent / "project.py"


def digest(folder, name="model.safetensors"):
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()


def accuracy(path, registry, dataset):
    """The share of right answers of a checkpoint, written out."""
    model = checkpoint.load(path, registry=registry).model.eval()
    with torch.no_grad():
        right = [model(inputs).argmax(1) == labels for inputs, labels in dataset.val]
    return torch.cat(right).double().mean().item()


@pytest.fixture
def dataset(registry):
    return registry.get("datasets", "t/data")()


def test_the_report_holds_the_figures_of_the_files(recipe, registry, dataset, tmp_path):
    report = run(recipe, tmp_path, registry=registry)
    base, result = tmp_path / "steps/00-original/model.safetensors", tmp_path / "model.safetensors"
    assert report.original.metrics["top1"] == pytest.approx(accuracy(base, registry, dataset))
    assert report.compressed.metrics["top1"] == pytest.approx(accuracy(result, registry, dataset))
    assert report.original.checkpoint_bytes == base.stat().st_size
    assert report.compressed.checkpoint_bytes == result.stat().st_size
    assert report.original.params == 8 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    assert report.original.macs == 8 * 16 + 16 * 3
    assert [(step.index, step.kind, step.name) for step in report.steps] == [
        (0, "original", "original"),
        (1, "t.nudge", "t.nudge"),
        (2, "fit", "tune"),
    ]
    assert [step.before.key if step.before else None for step in report.steps] == [None, "original", "step-1"]
    assert [len(step.history) for step in report.steps] == [3, 2, 1]
    assert (report.steps[1].channels[0].kept, report.steps[1].channels[0].total) == (12, 16)
    assert report.steps[1].layers == ({"name": "first", "shift": 0.01},)
    assert report.steps[1].details["odd"] is None  # NaN has no place in JSON
    assert ("step 1, t.nudge", "the last layer was left alone") in [(note.where, note.text) for note in report.notes]
    assert report.seed == 5
    assert read_report(tmp_path / "report.json").to_json() == report.to_json()


def test_the_output_folder_holds_what_the_report_names(recipe, registry, tmp_path):
    report = run(recipe, tmp_path, registry=registry)
    assert all((tmp_path / name).is_file() for name in report.files.values())
    resolved = yaml.safe_load((tmp_path / "recipe.resolved.yaml").read_text())
    assert resolved == report.recipe
    assert resolved["steps"][1] == {**resolved["steps"][1], "kind": "fit", "name": "tune", "epochs": 1, "momentum": 0.9}
    assert report.reproduce[-1] == "slim run recipe.resolved.yaml -o out --load project.py"


def test_the_checkpoint_carries_recipe_and_metrics(recipe, registry, tmp_path):
    report = run(recipe, tmp_path, registry=registry)
    header = checkpoint.inspect(tmp_path / "model.safetensors")
    assert header.recipe == report.recipe
    assert header.metrics == report.compressed.metrics


def test_the_same_recipe_and_seed_give_the_same_bytes(recipe, registry, tmp_path):
    torch.manual_seed(1)  # what went on before does not matter
    run(recipe, tmp_path / "a", registry=registry)
    torch.manual_seed(2)
    torch.randn(100)
    state = torch.get_rng_state()
    run(recipe, tmp_path / "b", registry=registry)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)  # a library call leaves the caller's generator alone
    run({**recipe, "seed": 6}, tmp_path / "c", registry=registry)
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_the_resolved_recipe_gives_the_same_bytes(recipe, registry, tmp_path):
    run(recipe, tmp_path / "a", registry=registry)
    run(tmp_path / "a/recipe.resolved.yaml", tmp_path / "b", registry=registry)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


CHILD = """
import sys, json
from slim_core.plugins import load_plugins
from slim_core.plugins import load_plugins
from slim_core.progress import SilentProgress
from slim_core.recipe import run
host = load_plugins()
host.load_file(sys.argv[1])
run(json.loads(sys.argv[2]), sys.argv[3], registry=host.registry)
"""


@contextmanager
def started(recipe, out, log):
    """A process that runs the recipe; it is killed at the end, whatever happened."""
    environment = {**os.environ, "SLIM_PLUGINS": "", "SLIM_TEST_EPOCHS": str(log), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(PROJECT), json.dumps(recipe), str(out)]
    child = subprocess.Popen(command, env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.wait(timeout=60)


def epochs(log):
    return log.read_text().split() if log.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("begun", [3, 5])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(recipe, registry, tmp_path, begun):
    """Killed in the last epoch of the base's training, or in the last epoch of the first step's fine-tuning."""
    recipe["workload"]["data_kwargs"] = {"slow": 0.4}
    recipe["train"]["epochs"], recipe["steps"][0]["fit"]["epochs"] = 3, 2
    torch.set_num_threads(1)
    run(recipe, tmp_path / "whole", registry=registry)

    log, out = tmp_path / "log", tmp_path / "out"
    with started(recipe, out, log) as child:
        deadline = time.monotonic() + 120
        while len(epochs(log)) < begun:
            assert child.poll() is None, "the child ended early"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=60)
    assert not (out / "model.safetensors").exists()
    before = len(epochs(log))
    with started(recipe, out, log) as child:
        assert child.wait(timeout=120) == 0
    assert digest(out) == digest(tmp_path / "whole")
    whole = ["0", "1", "2", "0", "1", "0"]  # base, first step, second step
    assert epochs(log)[:before] == whole[:before]
    # the epoch that the kill interrupted is done again, and nothing before it; the kill may also hit right after it
    assert epochs(log)[before:] in (whole[before - 1 :], whole[before:])


def test_finished_steps_are_not_done_again(recipe, registry, tmp_path):
    marker = tmp_path / "marker"
    recipe["steps"].append({"kind": "t.nudge", "interrupt": str(marker)})
    with pytest.raises(Interrupted) as caught:
        run(recipe, tmp_path / "out", registry=registry)
    assert caught.value.what == "interrupted in step 3 of 3 (t.nudge)"
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/steps").rglob("result.json")}
    assert len(stamps) == 3
    run(recipe, tmp_path / "out", registry=registry)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    run(recipe, tmp_path / "whole", registry=registry)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_damaged_step_is_done_again(recipe, registry, tmp_path):
    marker = tmp_path / "marker"
    recipe["steps"].append({"kind": "t.nudge", "interrupt": str(marker)})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", registry=registry)
    damaged = tmp_path / "out/steps/02-fit/model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    run(recipe, tmp_path / "out", registry=registry)
    assert damaged.read_bytes() == whole


def test_a_damaged_original_is_made_again_although_later_steps_are_done(recipe, registry, tmp_path):
    recipe["steps"].append({"kind": "t.nudge", "interrupt": str(tmp_path / "marker")})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", registry=registry)
    damaged = tmp_path / "out/steps/00-original/model.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-100])
    run(recipe, tmp_path / "out", registry=registry)
    assert damaged.read_bytes() == whole
    run(recipe, tmp_path / "whole", registry=registry)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_finished_run_is_only_drawn_again(recipe, registry, tmp_path):
    first = run(recipe, tmp_path, registry=registry)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "report.html").write_text("scribbled")
    second = run(recipe, tmp_path, registry=registry)
    assert second.to_json() == first.to_json()
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp
    assert first.title in (tmp_path / "report.html").read_text()


def test_a_run_that_is_resumed_with_other_packages_says_so(recipe, registry, tmp_path):
    recipe["steps"].append({"kind": "t.nudge", "interrupt": str(tmp_path / "marker")})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", registry=registry)
    state = json.loads((tmp_path / "out/steps/run.json").read_text())
    state["versions"]["torch"] = "1.0"
    (tmp_path / "out/steps/run.json").write_text(json.dumps(state))
    report = run(recipe, tmp_path / "out", registry=registry)
    (text,) = [note.text for note in report.notes if "different packages" in note.text]
    assert text.endswith(f"different packages: torch 1.0 and then {torch.__version__}")


class Noting(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_an_edit_of_a_loaded_file_in_the_middle_of_a_run_is_noted(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIM_PLUGINS", "")
    file = tmp_path / "my_project.py"
    file.write_text(PROJECT.read_text())

    def loaded():
        host = load_plugins()
        host.load_file(file)
        return host.registry

    recipe["steps"].append({"kind": "t.nudge", "interrupt": str(tmp_path / "marker")})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "out", registry=loaded())
    file.write_text(PROJECT.read_text() + "\nEDITED = True\n")
    progress = Noting()
    report = run(recipe, tmp_path / "out", registry=loaded(), progress=progress)
    (text,) = [note.text for note in report.notes if "different contents" in note.text]
    assert text == "the run was begun and resumed with different contents of my_project.py"
    assert any("my_project.py has changed since this run was begun" in note for note in progress.notes)
    held = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert report.versions["my_project.py"] == f"sha256:{held}"

    progress = Noting()
    run(recipe, tmp_path / "out", registry=loaded(), progress=progress)
    assert not any("has changed" in note for note in progress.notes)
    file.write_text(PROJECT.read_text() + "\nEDITED = 2\n")
    run(recipe, tmp_path / "out", registry=loaded(), progress=progress)
    assert any("my_project.py has changed since that run" in note for note in progress.notes)


def test_another_title_or_tolerance_does_not_train_again(recipe, registry, tmp_path):
    run(recipe, tmp_path, registry=registry)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").rglob("result.json")}
    report = run({**recipe, "name": "other", "compare": {"max_drop": 0.5}}, tmp_path, registry=registry)
    assert report.title == "other"
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_failing_step_keeps_what_was_done(recipe, registry, tmp_path):
    recipe["steps"][1] = {"kind": "t.nudge", "fail": True}
    with pytest.raises(SlimError, match="this step fails"):
        run(recipe, tmp_path, registry=registry)
    assert (tmp_path / "steps/01-t.nudge/result.json").is_file()
    assert not (tmp_path / "report.json").exists()


def test_a_folder_with_another_run_is_refused_and_says_what_differs(recipe, registry, tmp_path):
    run(recipe, tmp_path, registry=registry)
    other = {**recipe, "seed": 6, "train": {**recipe["train"], "epochs": 4}}
    with pytest.raises(OutputFolderError) as caught:
        run(other, tmp_path, registry=registry)
    assert "there seed is 5, here 6" in caught.value.what
    assert "there train.epochs is 3, here 4" in caught.value.what
    assert "--overwrite" in caught.value.hint
    report = run(other, tmp_path, registry=registry, overwrite=True)
    assert report.seed == 6
    assert len(report.steps[0].history) == 4


def test_foreign_files_are_not_replaced_unasked(recipe, registry, tmp_path):
    (tmp_path / "report.html").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputFolderError, match=r"would replace: report\.html"):
        run(recipe, tmp_path, registry=registry)
    assert (tmp_path / "report.html").read_text() == "mine"
    run(recipe, tmp_path, registry=registry, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_data_of_a_large_exported_file_belongs_to_the_run(recipe, registry, tmp_path):
    run(recipe, tmp_path, registry=registry)
    ours = tmp_path / "model.onnx.0123456789abcdef.data"
    theirs = [tmp_path / "model.onnx.mine.data", tmp_path / "digits.0123456789abcdef.data"]
    for path in (ours, *theirs):
        path.write_bytes(b"")
    run({**recipe, "seed": 6}, tmp_path, registry=registry, overwrite=True)
    assert not ours.exists()
    assert all(path.exists() for path in theirs)


def test_a_file_in_the_place_of_the_folder_is_an_error(recipe, registry, tmp_path):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out/inner"):
        with pytest.raises(OutputFolderError, match="is a file, not a folder"):
            run(recipe, out, registry=registry)


def test_too_little_space_is_an_error_before_training(recipe, registry, tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OutputFolderError, match="0 MB free"):
        run(recipe, tmp_path, registry=registry)
    assert not list((tmp_path / "steps").rglob("result.json"))


HOLDER = """
import signal, sys, time
from slim_core.recipe.folder import open_folder
with open_folder(sys.argv[1], "x", {}, versions={}):
    signal.alarm(60)  # ends it, and with it the test's wait for a line, whatever goes wrong
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder_and_a_dead_one_holds_nothing(recipe, registry, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputFolderError, match=rf"another run is working in .* \(process {holder.pid}\)"):
            run(recipe, tmp_path, registry=registry)
    finally:
        holder.kill()
        holder.communicate(timeout=60)
    run(recipe, tmp_path, registry=registry, overwrite=True)


def test_a_workload_of_plain_objects(recipe, registry, dataset, tmp_path):
    del recipe["workload"]
    net = registry.get("models", "t/net")

    def workload(seed):
        torch.manual_seed(seed)
        task = ClassificationTask(num_classes=3)
        return Workload(net(), dataset.example_inputs, task, dataset.train, dataset.val)

    report = run(recipe, tmp_path / "a", workload=workload(0), registry=registry)
    assert report.compressed.metrics["top1"] > 0.5
    run(recipe, tmp_path / "b", workload=workload(0), registry=registry)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    with pytest.raises(OutputFolderError, match="another run"):
        run(recipe, tmp_path / "a", workload=workload(1), registry=registry)


def test_the_callers_model_is_left_as_it_was(recipe, registry, dataset, tmp_path):
    del recipe["workload"]
    model = registry.get("models", "t/net")()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(
        recipe,
        tmp_path,
        workload=Workload(model, dataset.example_inputs, ClassificationTask(), dataset.train, dataset.val),
        registry=registry,
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.training, model.norm.training) == (True, False)


def test_a_recipe_with_workload_and_a_passed_one_is_an_error(recipe, registry, dataset, tmp_path):
    own = Workload(registry.get("models", "t/net")(), dataset.example_inputs)
    with pytest.raises(RecipeError, match="another one was passed"):
        run(recipe, tmp_path, workload=own, registry=registry)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"workload": {"model": "t/net", "kwargs": {"broken": True}, "data": "t/data"}}, ModelError, "forward fails"),
        ({"workload": {"model": "t/net", "kwargs": {"width": -1}, "data": "t/data"}}, RecipeError, "cannot be built"),
        ({"workload": {"model": "t/net", "kwargs": {"num_classes": 2}, "data": "t/data"}}, ModelError, "loss of task"),
        ({"workload": {"model": "t/net", "data": "t/data", "data_kwargs": {"samples": 1}}}, SlimError, "data"),
        ({"train": {"epochs": 1, "device": "cuda:99"}}, RecipeError, "'cuda:99' is not here"),
        ({"steps": [{"kind": "t.nudge", "fit": {"epochs": 1, "device": "gpu"}}]}, RecipeError, "'gpu' is no device"),
        ({"compare": {"metric": "top2"}}, RecipeError, "has no metric 'top2'"),
    ],
)
def test_what_does_not_fit_together_fails_before_training(recipe, registry, tmp_path, change, error, message):
    with pytest.raises(error, match=message) as caught:
        run({**recipe, **change}, tmp_path, registry=registry)
    assert caught.value.where
    assert not list((tmp_path / "steps").rglob("result.json"))


def test_a_failing_forward_names_the_users_line(recipe, registry, tmp_path):
    recipe["workload"]["kwargs"] = {"broken": True}
    with pytest.raises(ModelError) as caught:
        run(recipe, tmp_path, registry=registry)
    assert "project.py:" in caught.value.where
    assert "x = x.reshape(-1, 7)" in caught.value.where


def test_a_misspelt_metric_names_the_close_one(recipe, registry, tmp_path):
    with pytest.raises(RecipeError) as caught:
        run({**recipe, "compare": {"metric": "topl"}}, tmp_path, registry=registry)
    assert "did you mean" in caught.value.hint
    assert "'top1'" in caught.value.hint


def test_models_are_built_to_their_data(recipe, registry, tmp_path):
    report = run({**recipe, "train": None, "steps": []}, tmp_path, registry=registry)
    header = checkpoint.inspect(tmp_path / "model.safetensors")
    assert dict(header.builder.kwargs) == {"num_classes": 3, "width": 16}
    assert any("random weights" in note.text for note in report.notes)


def test_weights_come_from_a_plain_safetensors_file(recipe, registry, dataset, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = registry.get("models", "t/net")(num_classes=3)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    recipe = {**recipe, "train": None, "steps": []}
    recipe["workload"]["weights"] = str(tmp_path / "base.safetensors")
    run(recipe, tmp_path / "out", registry=registry)
    loaded = checkpoint.load(tmp_path / "out/model.safetensors", registry=registry).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    (tmp_path / "moved").mkdir()
    (tmp_path / "base.safetensors").rename(tmp_path / "moved/other.safetensors")
    recipe["workload"]["weights"] = str(tmp_path / "moved/other.safetensors")
    run(recipe, tmp_path / "elsewhere", registry=registry)
    assert digest(tmp_path / "out") == digest(tmp_path / "elsewhere")  # what the weights are counts, not where
    run(tmp_path / "elsewhere/recipe.resolved.yaml", tmp_path / "again", registry=registry)
    assert digest(tmp_path / "out") == digest(tmp_path / "again")


def test_weights_come_from_a_run(recipe, registry, tmp_path):
    run(recipe, tmp_path / "a", registry=registry)
    recipe = {**recipe, "train": None, "steps": []}
    recipe["workload"]["weights"] = str(tmp_path / "a/model.safetensors")
    report = run(recipe, tmp_path / "b", registry=registry)
    first = read_report(tmp_path / "a/report.json")
    assert report.original.metrics == first.compressed.metrics


def test_weights_that_do_not_fit_are_an_error(recipe, registry, tmp_path):
    from safetensors.torch import save_file

    save_file({"first.weight": torch.zeros(2, 2)}, tmp_path / "base.safetensors")
    recipe["workload"]["weights"] = str(tmp_path / "base.safetensors")
    with pytest.raises(RecipeError, match="weights do not fit model 't/net'"):
        run(recipe, tmp_path / "out", registry=registry)


def test_a_result_below_the_tolerance_is_called_bad(recipe, registry, tmp_path):
    recipe["steps"] = [{"kind": "t.nudge", "by": 30.0}]
    report = run(recipe, tmp_path, registry=registry)
    drop = report.original.metrics["top1"] - report.compressed.metrics["top1"]
    assert drop > 0.05
    (note,) = [note for note in report.notes if note.level == "bad"]
    assert note.text.startswith("top1 went from")
    assert "step 1 (t.nudge) cost most" in note.hint
