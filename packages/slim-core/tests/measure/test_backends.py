"""``eager`` and ``compile``: the contract of backends, and what is special about them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config
from torch import Tensor, nn

from slim_core.errors import MeasureError
from slim_core.measure import Artifact
from slim_core.measure.eager import CompileBackend, EagerBackend
from slim_core.testing.contracts import BackendCase, BackendContract
from slim_core.testing.workloads import TinyNet


class TestEager(BackendContract):
    @pytest.fixture
    def case(self) -> BackendCase:
        return BackendCase(EagerBackend)

    def test_threads_are_set_only_while_it_runs(self) -> None:
        class Asks(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x + torch.get_num_threads()

        before = torch.get_num_threads()
        session = EagerBackend().prepare(Artifact(Asks()), (torch.zeros(1),), threads=before + 1)
        assert session.run((torch.zeros(1),)) == [np.array([before + 1], dtype=np.float32)]
        assert torch.get_num_threads() == before
        assert session.info["threads"] == before + 1

    def test_fewer_than_one_thread_is_an_error(self) -> None:
        with pytest.raises(MeasureError, match="threads must be at least 1"):
            EagerBackend().prepare(Artifact(TinyNet()), (torch.zeros(1, 3, 8, 8),), threads=0)

    def test_keyword_inputs_and_dictionaries_of_outputs(self) -> None:
        class Named(nn.Module):
            def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
                return {"difference": a - b, "product": a * b}

        inputs = {"b": torch.tensor([2.0]), "a": torch.tensor([5.0])}
        outputs = EagerBackend().prepare(Artifact(Named()), inputs).run(inputs)
        assert [output.tolist() for output in outputs] == [[3.0], [10.0]]

    def test_bfloat16_outputs_come_as_float32(self) -> None:
        inputs = (torch.ones(1, 4, dtype=torch.bfloat16),)
        outputs = EagerBackend().prepare(Artifact(nn.Identity()), inputs).run(inputs)
        assert outputs[0].dtype == np.float32


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x * self.scale) + x


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_compile_runs_compiled_code_that_computes_the_same() -> None:
    inputs = (torch.linspace(-3, 3, 24).reshape(4, 6),)
    model = Gate(6)
    session = CompileBackend().prepare(Artifact(model), inputs)
    assert session.info["notes"] == []
    assert session.info["runtime"].endswith("compile")
    x, scale = inputs[0].double().numpy(), np.linspace(0.5, 2.0, 6)
    np.testing.assert_allclose(session.run(inputs)[0], 1 / (1 + np.exp(-x * scale)) + x, atol=1e-6)


def test_compile_without_a_compiler_runs_eager_and_says_so() -> None:
    class Lonely(Gate):  # a class of its own: nothing of it is in the compiler's caches
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.scale) - x.cos()

    inputs = (torch.ones(2, 5),)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        session = CompileBackend().prepare(Artifact(Lonely(5)), inputs)
    assert session.info["runtime"].endswith("eager")
    assert session.info["notes"][0].startswith("timed without compiling: ")
    np.testing.assert_allclose(session.run(inputs)[0][0], np.tanh(np.linspace(0.5, 2.0, 5)) - np.cos(1), atol=1e-6)


def test_compile_shows_the_error_of_a_model_that_eager_cannot_run_either() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        CompileBackend().prepare(Artifact(Gate(6)), (torch.ones(2, 5),))


@pytest.mark.long  # compiles half a dozen variants
class TestCompile(BackendContract):
    @pytest.fixture
    def case(self) -> BackendCase:
        return BackendCase(CompileBackend)

    def test_models_of_one_class_and_many_widths_are_all_compiled(self) -> None:
        unknown = torch._dynamo.utils.counters["unimplemented"].copy()
        for width in range(3, 13):
            inputs = (torch.ones(2, width),)
            session = CompileBackend().prepare(Artifact(Gate(width)), inputs)
            before = torch._dynamo.utils.counters["frames"]["ok"]
            session.run(inputs)
            assert session.info["runtime"].endswith("compile")
            assert torch._dynamo.utils.counters["frames"]["ok"] == before  # compiled when it was prepared
        assert torch._dynamo.utils.counters["unimplemented"] == unknown
