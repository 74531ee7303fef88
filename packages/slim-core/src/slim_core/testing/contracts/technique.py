"""What every technique promises, whatever it does to the model."""
# ruff: noqa: S101

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.technique import Run, StepResult
from slim_core.testing.workloads import TinyNet, differences, fingerprint, layout, on_meta, tiny_workload
from slim_core.workload import Workload, call, tensors_of


@dataclass(frozen=True)
class TechniqueCase:
    """A technique with a configuration to try it with.

    Args:
        technique: the technique's class.
        config: a valid configuration, as it would stand in a recipe; one with a visible effect on the model.
        workload: returns a fresh workload, the same each time.
        build: returns the uncompressed model of that workload with any weights; what a checkpoint is rebuilt from.
        rtol: how far the outputs of a model and of the same model from its checkpoint may differ.
    """

    technique: type[Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    workload: Callable[[], Workload] = tiny_workload
    build: Callable[[], nn.Module] = TinyNet
    rtol: float = 1e-6


class TechniqueContract:
    """Inherit this, and give the fixture ``case``."""

    @pytest.fixture
    def case(self) -> TechniqueCase:
        raise NotImplementedError("give a fixture `case` that returns a TechniqueCase")

    @pytest.fixture
    def registry(self) -> Registry:
        """The registry of all installed plugins; override it to test against others."""
        return load_plugins().registry

    @pytest.fixture
    def perform(self, case: TechniqueCase, registry: Registry, tmp_path: Path) -> Callable[..., StepResult]:
        """Run the technique on a workload with a seed."""

        def run(workload: Workload, seed: int = 0) -> StepResult:
            folder = tmp_path / f"step-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            config = case.technique.Config.model_validate(dict(case.config))
            result = case.technique().run(workload, config, Run(folder=folder, seed=seed, registry=registry))
            assert isinstance(result, StepResult)
            return result

        return run

    def test_it_is_registered_under_its_name(self, case: TechniqueCase, registry: Registry) -> None:
        assert registry.get("techniques", case.technique.name) is case.technique

    def test_its_config_has_a_schema_and_accepts_the_case(self, case: TechniqueCase) -> None:
        assert issubclass(case.technique.Config, BaseModel)
        case.technique.Config.model_validate(dict(case.config))
        json.dumps(case.technique.Config.model_json_schema())

    def test_its_config_refuses_unknown_keys(self, case: TechniqueCase) -> None:
        with pytest.raises(ValidationError):
            case.technique.Config.model_validate({**case.config, "no_such_key_anywhere": 1})

    def test_its_config_refuses_values_of_another_type(self, case: TechniqueCase) -> None:
        for key in case.technique.Config.model_fields:
            with pytest.raises(ValidationError):
                case.technique.Config.model_validate({**case.config, key: object()})

    def test_its_config_cannot_be_changed(self, case: TechniqueCase) -> None:
        config = case.technique.Config.model_validate(dict(case.config))
        for key in case.technique.Config.model_fields:
            with pytest.raises(ValidationError):
                setattr(config, key, getattr(config, key))

    def test_it_returns_a_new_workload(self, case: TechniqueCase, perform: Callable[..., StepResult]) -> None:
        workload = case.workload()
        result = perform(workload)
        assert result.workload is not workload
        assert result.workload.model is not workload.model
        assert result.workload.transforms[: len(workload.transforms)] == workload.transforms

    def test_it_changes_something(self, case: TechniqueCase, perform: Callable[..., StepResult]) -> None:
        workload = case.workload()
        assert differences(fingerprint(workload.model), fingerprint(perform(workload).workload.model)) != []

    def test_it_leaves_the_given_model_untouched(self, case: TechniqueCase, perform: Callable[..., StepResult]) -> None:
        workload = case.workload()
        before = fingerprint(workload.model)
        perform(workload)
        assert differences(before, fingerprint(workload.model)) == []

    def test_the_new_model_shares_no_memory_with_the_given_one(
        self, case: TechniqueCase, perform: Callable[..., StepResult]
    ) -> None:
        workload = case.workload()
        model = perform(workload).workload.model
        owned = {tensor.untyped_storage().data_ptr() for tensor in _tensors(workload.model) if tensor.numel()}
        shared = [
            name
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if tensor.numel() and tensor.untyped_storage().data_ptr() in owned
        ]
        assert shared == [], "training the new model would change the given one"

    def test_the_new_model_runs_and_returns_the_same_kind_of_outputs(
        self, case: TechniqueCase, perform: Callable[..., StepResult]
    ) -> None:
        workload = case.workload()
        expected = _outputs(workload.model, workload)
        actual = _outputs(perform(workload).workload.model, workload)
        assert [tensor.shape for tensor in actual] == [tensor.shape for tensor in expected]
        assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in expected]
        assert all(bool(torch.isfinite(tensor).all()) for tensor in actual)

    def test_the_same_seed_gives_the_same_model(self, case: TechniqueCase, perform: Callable[..., StepResult]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = perform(case.workload(), seed=7)
            torch.manual_seed(2)
            second = perform(case.workload(), seed=7)
        assert differences(fingerprint(first.workload.model), fingerprint(second.workload.model)) == []
        assert [(t.kind, t.schema, t.data) for t in first.workload.transforms] == [
            (t.kind, t.schema, t.data) for t in second.workload.transforms
        ]

    def test_what_it_reports_is_json_and_one_line_each(
        self, case: TechniqueCase, perform: Callable[..., StepResult]
    ) -> None:
        result = perform(case.workload())
        json.dumps(dict(result.details), allow_nan=False)
        assert all(isinstance(note, str) and note.strip() and "\n" not in note for note in result.notes)

    def test_its_transforms_can_be_replayed_on_a_fresh_model(
        self, case: TechniqueCase, perform: Callable[..., StepResult], registry: Registry
    ) -> None:
        workload = case.workload()
        result = perform(workload).workload
        model = case.build().to("meta")
        for transform in result.transforms:
            json.dumps(dict(transform.data), allow_nan=False)
            replayer = registry.get("transforms", transform.kind)
            replayer = replayer() if isinstance(replayer, type) else replayer
            model = replayer.replay(model, transform, on_meta(workload.example_inputs))
        assert layout(model) == layout(result.model)

    def test_a_checkpoint_brings_the_model_back(
        self, case: TechniqueCase, perform: Callable[..., StepResult], registry: Registry, tmp_path: Path
    ) -> None:
        from slim_core.checkpoint import load, save

        result = perform(case.workload()).workload
        save(result, tmp_path / "model.safetensors")
        again = load(tmp_path / "model.safetensors", registry=registry, factory=case.build)
        assert layout(again.model) == layout(result.model)
        for actual, expected in zip(_outputs(again.model, result), _outputs(result.model, result), strict=True):
            torch.testing.assert_close(actual, expected, rtol=case.rtol, atol=case.rtol)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _outputs(model: nn.Module, workload: Workload) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors_of(call(model, workload.example_inputs))
