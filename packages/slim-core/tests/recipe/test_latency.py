import pytest
import torch

from slim_core.errors import MeasureError, MissingExtraError, RecipeError
from slim_core.measure import Artifact, measure
from slim_core.measure.eager import EagerBackend
from slim_core.recipe import run
from slim_core.recipe.latency import row_of


class Absent:
    name = "t.absent"

    def available(self):
        raise MissingExtraError("absent is not installed", hint="pip install absent")


class NeedsOnnx(EagerBackend):
    name = "t.onnx"

    def prepare(self, artifact, example_inputs, *, threads=None):
        artifact.onnx_for(self.name)
        return super().prepare(artifact, example_inputs, threads=threads)


class Moody(EagerBackend):
    """Takes the original and refuses the compressed model."""

    name = "t.moody"

    def prepare(self, artifact, example_inputs, *, threads=None):
        if artifact.name == "compressed":
            raise MeasureError("no mood for this model", hint="ask tomorrow")
        return super().prepare(artifact, example_inputs, threads=threads)


def export_pieces(model, example_inputs, path, *, dynamic_batch):
    """Writes a file whose size says how many parameters the model has."""
    path.write_bytes(b"x" * sum(parameter.numel() for parameter in model.parameters()))


@pytest.fixture
def measured(recipe, registry):
    for backend in (Absent, NeedsOnnx, Moody):
        registry.register("backends", backend.name, backend, plugin="t")
    registry.register("exporters", "t.pieces", export_pieces, plugin="t")
    recipe.update(train={"epochs": 1, "lr": 0.05}, steps=[{"kind": "t.nudge"}])
    return recipe


def test_a_row_holds_the_figures_of_the_measurement():
    torch.manual_seed(0)
    small, large = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4096)
    found = measure(
        {"original": (EagerBackend(), Artifact(large)), "compressed": (EagerBackend(), Artifact(small))},
        (torch.zeros(2, 8),),
        rounds=7,
        min_sample_ms=0.1,
    )
    row = row_of("eager", 2, found)
    before, after = found["original"], found["compressed"]
    assert (row.original_ms, row.compressed_ms) == (before.median_ms, after.median_ms)
    assert row.original_iqr_ms == before.q3_ms - before.q1_ms
    assert row.compressed_iqr_ms == after.q3_ms - after.q1_ms
    assert row.speedup == 1 / after.ratio
    assert (row.speedup_low, row.speedup_high) == (1 / after.ratio_high, 1 / after.ratio_low)
    assert (row.rounds, row.batch, row.backend) == (7, 2, "eager")
    assert row.runtime == after.info["runtime"]
    assert row.verdict == after.verdict


def test_each_backend_is_measured_at_each_batch(measured, registry, tmp_path):
    measured["measure"] = {"backends": ["eager"], "batch": [1, 3], "rounds": 3, "threads": 1}
    report = run(measured, tmp_path, registry=registry)
    assert [(row.backend, row.batch, row.threads) for row in report.latency] == [("eager", 1, 1), ("eager", 3, 1)]
    assert all(row.original_ms > 0 and row.compressed_ms > 0 for row in report.latency)


def test_exported_files_are_measured_in_bytes(measured, registry, tmp_path):
    measured.update(export={"format": "t.pieces"}, measure={"backends": ["t.onnx"], "rounds": 3})
    report = run(measured, tmp_path, registry=registry)
    params = report.original.params
    assert (report.original.export_bytes, report.compressed.export_bytes) == (params, params)
    assert report.files["exported model"] == "model.t.pieces"
    assert len(report.latency) == 1
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["00-original", "01-t.nudge", "run.json"]


def test_a_runtime_that_is_not_installed_stops_before_training(measured, registry, tmp_path):
    measured["measure"] = {"backends": ["eager", "t.absent"]}
    with pytest.raises(MissingExtraError) as caught:
        run(measured, tmp_path, registry=registry)
    assert caught.value.hint == "pip install absent"
    assert not list(tmp_path.rglob("result.json"))


def test_a_runtime_that_needs_an_export_says_so_before_training(measured, registry, tmp_path):
    measured["measure"] = {"backends": ["t.onnx"]}
    with pytest.raises(MeasureError) as caught:
        run(measured, tmp_path, registry=registry)
    assert caught.value.hint == "add `export: {}` to the recipe"
    assert not list(tmp_path.rglob("result.json"))


def test_a_batch_that_the_export_does_not_take_is_an_error_before_training(measured, registry, tmp_path):
    measured.update(
        export={"format": "t.pieces", "dynamic_batch": False}, measure={"backends": ["eager"], "batch": [1, 8]}
    )
    with pytest.raises(RecipeError, match="batch 8 cannot be measured"):
        run(measured, tmp_path, registry=registry)
    assert not list(tmp_path.rglob("result.json"))


def test_a_measurement_that_fails_does_not_take_the_report_along(measured, registry, tmp_path):
    measured["measure"] = {"backends": ["t.moody", "eager"], "rounds": 3}
    report = run(measured, tmp_path, registry=registry)
    assert [row.backend for row in report.latency] == ["eager"]
    (note,) = [note for note in report.notes if note.where == "t.moody, batch 1"]
    assert (note.level, note.text, note.hint) == ("bad", "nothing was measured: no mood for this model", "ask tomorrow")


def test_more_measuring_does_not_train_again(measured, registry, tmp_path):
    run(measured, tmp_path, registry=registry)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    report = run({**measured, "measure": {"backends": ["eager"], "rounds": 3}}, tmp_path, registry=registry)
    assert len(report.latency) == 1
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_onnx_is_checked_for_its_extra_before_training(recipe, registry, tmp_path, monkeypatch):
    """The core's own exporter names the extra."""
    import slim_core.export.onnx as module

    def require(name, extra):
        raise MissingExtraError(f"{name} is not installed", hint=f"pip install '{extra}'")

    monkeypatch.setattr(module, "require", require)
    with pytest.raises(MissingExtraError) as caught:
        run({**recipe, "export": {}}, tmp_path, registry=registry)
    assert "slim-core[onnx]" in caught.value.hint
    assert not list(tmp_path.rglob("result.json"))
