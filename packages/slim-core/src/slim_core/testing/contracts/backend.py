"""What every backend promises: it computes what the model does, and leaves model and process as they were."""
# ruff: noqa: S101

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.errors import MeasureError, MissingExtraError
from slim_core.measure import Artifact, Backend, Session
from slim_core.plugins import load_plugins
from slim_core.registry import Registry
from slim_core.testing.workloads import differences, fingerprint, tiny_workload
from slim_core.workload import Inputs, call, tensors_of


def model_artifact(model: nn.Module, example_inputs: Inputs, folder: Path) -> Artifact:
    """Return the model itself as the artifact: for backends that run PyTorch models."""
    return Artifact(model=model)


def onnx_artifact(model: nn.Module, example_inputs: Inputs, folder: Path) -> Artifact:
    """Export the model and return the file as the artifact: for backends that read ONNX."""
    from slim_core.export import to_onnx

    path = folder / f"model-{len(list(folder.iterdir()))}.onnx"
    to_onnx(model, example_inputs, path, check=False)
    return Artifact(onnx=path)


@dataclass(frozen=True)
class BackendCase:
    """A backend and what it runs.

    Args:
        backend: the backend's class.
        artifact: makes what it runs from a model: :func:`model_artifact` or :func:`onnx_artifact`.
        module: the optional module that it needs (``"onnxruntime"``), if any: without it the backend must name the
            command that installs it.
        tolerance: largest difference from eager PyTorch, as a share of the largest output.
    """

    backend: type[Any]
    artifact: Callable[[nn.Module, Inputs, Path], Artifact] = model_artifact
    module: str | None = None
    tolerance: float = 1e-3


class _TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y.mean((2, 3)), torch.relu(y)  # (N, 5), (N, 5, H, W)


class BackendContract:
    """Inherit this, and give the fixture ``case``."""

    @pytest.fixture
    def case(self) -> BackendCase:
        raise NotImplementedError("give a fixture `case` that returns a BackendCase")

    @pytest.fixture
    def registry(self) -> Registry:
        """The registry of all installed plugins; override it to test against others."""
        return load_plugins().registry

    @pytest.fixture
    def model(self) -> nn.Module:
        return tiny_workload().model

    @pytest.fixture
    def inputs(self) -> tuple[Tensor, ...]:
        return (torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)),)

    @pytest.fixture
    def prepare(self, case: BackendCase, tmp_path: Path) -> Callable[..., Session]:
        """Prepare a session of a model."""

        def prepared(model: nn.Module, inputs: Inputs, threads: int | None = None) -> Session:
            artifact = case.artifact(model, inputs, tmp_path)
            session: Session = case.backend().prepare(artifact, inputs, threads=threads)
            return session

        return prepared

    def test_it_is_registered_under_its_name(self, case: BackendCase, registry: Registry) -> None:
        assert registry.get("backends", case.backend.name) is case.backend

    def test_it_is_a_backend_and_available_here(self, case: BackendCase) -> None:
        backend = case.backend()
        assert isinstance(backend, Backend)
        backend.available()

    def test_without_its_module_it_names_the_command_that_installs_it(
        self, case: BackendCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if case.module is None:
            pytest.skip("the backend needs no optional module")
        for name in [name for name in sys.modules if name == case.module or name.startswith(f"{case.module}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, case.module, None)
        with pytest.raises(MissingExtraError) as caught:
            case.backend().available()
        assert "pip install" in (caught.value.hint or "")

    def test_it_computes_what_the_model_computes(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, inputs: Inputs
    ) -> None:
        session = prepare(model, inputs)
        assert isinstance(session, Session)
        _assert_close(session.run(inputs), _eager(model, inputs), case.tolerance)

    def test_it_returns_every_output_in_order(
        self, case: BackendCase, prepare: Callable[..., Session], inputs: Inputs
    ) -> None:
        torch.manual_seed(0)
        model = _TwoOutputs().eval()
        _assert_close(prepare(model, inputs).run(inputs), _eager(model, inputs), case.tolerance)

    def test_a_second_input_gives_its_own_outputs_and_spares_the_first_ones(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        other = (inputs[0].flip(0) + 0.5,)
        session = prepare(model, inputs)
        first = session.run(inputs)
        second = session.run(other)
        _assert_close(first, _eager(model, inputs), case.tolerance)
        _assert_close(second, _eager(model, other), case.tolerance)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_other_batch_sizes_can_be_prepared(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, batch: int
    ) -> None:
        inputs = (torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch)),)
        _assert_close(prepare(model, inputs).run(inputs), _eager(model, inputs), case.tolerance)

    def test_what_is_timed_runs_again_and_again(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, inputs: Inputs
    ) -> None:
        session = prepare(model, inputs)
        timed = session.bind(inputs)
        with session.active():
            for _ in range(3):
                timed()
        _assert_close(session.run(inputs), _eager(model, inputs), case.tolerance)

    def test_it_changes_neither_the_model_nor_the_inputs(
        self, prepare: Callable[..., Session], model: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        before, values = fingerprint(model), inputs[0].clone()
        session = prepare(model, inputs)
        session.run(inputs)
        with session.active():
            session.bind(inputs)()
        session.close()
        assert differences(before, fingerprint(model)) == []
        assert torch.equal(inputs[0], values)

    def test_a_model_in_training_mode_runs_as_in_eval_mode_and_stays_in_training_mode(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, inputs: Inputs
    ) -> None:
        expected = _eager(model, inputs)
        model.train()
        before = fingerprint(model)
        _assert_close(prepare(model, inputs).run(inputs), expected, case.tolerance)
        assert differences(before, fingerprint(model)) == []

    def test_it_leaves_the_settings_of_the_process_as_they_were(
        self, case: BackendCase, prepare: Callable[..., Session], model: nn.Module, inputs: Inputs
    ) -> None:
        before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        state = torch.get_rng_state()
        session = prepare(model, inputs, threads=1)
        _assert_close(session.run(inputs), _eager(model, inputs), case.tolerance)
        with session.active():
            session.bind(inputs)()
        session.close()
        assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_it_says_what_decides_the_speed(
        self, prepare: Callable[..., Session], model: nn.Module, inputs: Inputs
    ) -> None:
        info = dict(prepare(model, inputs, threads=1).info)
        assert info["threads"] in (1, None)
        assert isinstance(info["runtime"], str)
        assert isinstance(info["device"], str)
        assert all("\n" not in note for note in info.get("notes", ()))
        json.dumps(info, allow_nan=False)

    def test_nothing_to_run_is_an_error(self, case: BackendCase, inputs: Inputs) -> None:
        with pytest.raises(MeasureError):
            case.backend().prepare(Artifact(name="nothing"), inputs)


def _eager(model: nn.Module, inputs: Inputs) -> list[NDArray[Any]]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        outputs = [tensor.numpy() for tensor in tensors_of(call(model, inputs))]
    for module, mode in training.items():
        module.training = mode
    return outputs


def _assert_close(actual: list[NDArray[Any]], expected: list[NDArray[Any]], tolerance: float) -> None:
    assert [output.shape for output in actual] == [output.shape for output in expected]
    for got, wanted in zip(actual, expected, strict=True):
        assert isinstance(got, np.ndarray)
        limit = tolerance * max(float(np.abs(wanted).max()), 1.0)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=limit)
