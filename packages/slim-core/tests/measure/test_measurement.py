"""``measure``: what is checked before, what is compared, what is recorded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim_core.errors import MeasureError, MissingExtraError
from slim_core.measure import Artifact, Session, Timing, batched, measure
from slim_core.measure.agree import compare
from slim_core.measure.eager import EagerBackend
from slim_core.measure.measurement import quantizes
from slim_core.workload import Inputs

X = (torch.arange(12.0).reshape(3, 4),)
QUICK: dict[str, Any] = {"rounds": 8, "warmup": 1, "min_sample_ms": 0.0}


class Fixed(Session):
    """A session that returns what it is told to."""

    def __init__(self, *outputs: NDArray[Any], notes: tuple[str, ...] = ()) -> None:
        self.outputs = list(outputs)
        self.info = {"runtime": "fixed 1.0", "device": "cpu", "threads": 1, "notes": list(notes)}
        self.closed = 0

    def run(self, inputs: Inputs) -> list[NDArray[Any]]:
        return self.outputs

    def close(self) -> None:
        self.closed += 1


class Wrong:
    """A backend whose outputs are off by a share of their largest value."""

    name = "wrong"

    def __init__(self, error: float) -> None:
        self.error = error
        self.sessions: list[Fixed] = []

    def available(self) -> None:
        pass

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> Session:
        right = EagerBackend().prepare(artifact, example_inputs).run(example_inputs)[0]
        self.sessions.append(Fixed(right + self.error * np.abs(right).max()))
        return self.sessions[-1]


class Absent:
    name = "absent"

    def available(self) -> None:
        raise MissingExtraError("nothing is not installed", hint="pip install 'slim-latency[nothing]'")

    def prepare(self, artifact: Artifact, example_inputs: Inputs, *, threads: int | None = None) -> Session:
        raise AssertionError("prepared although it is not available")


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class TestChecks:
    def test_a_session_that_computes_something_else_is_not_timed(self) -> None:
        with pytest.raises(MeasureError, match="'b' does not compute what its reference computes") as caught:
            measure({"b": (Wrong(0.01), Artifact(Scale(2.0)))}, X, **QUICK)
        assert caught.value.where == "fixed 1.0"

    def test_a_small_difference_passes_and_is_reported(self) -> None:
        found = measure({"b": (Wrong(5e-4), Artifact(Scale(2.0)))}, X, **QUICK)["b"].agreement
        assert found is not None
        assert found.max_diff == pytest.approx(5e-4 * 22, rel=1e-3)
        assert (found.largest, found.tolerance) == (22, 1e-3)

    def test_the_tolerance_can_be_set(self) -> None:
        artifact = Artifact(Scale(2.0))
        assert measure({"b": (Wrong(0.01), artifact)}, X, tolerance=0.02, **QUICK)["b"].agreement is not None
        with pytest.raises(MeasureError):
            measure({"b": (Wrong(5e-4), artifact)}, X, tolerance=1e-4, **QUICK)

    def test_a_quantized_model_is_reported_and_not_judged(self) -> None:
        found = measure({"b": (Wrong(0.3), Artifact(Scale(2.0), quantized=True))}, X, **QUICK)["b"].agreement
        assert found is not None
        assert found.tolerance is None
        power = np.square(2 * np.arange(12.0)).mean()
        assert found.sqnr_db == pytest.approx(10 * np.log10(power / (0.3 * 22) ** 2), rel=1e-3)

    def test_not_a_number_never_passes(self) -> None:
        for quantized in (False, True):
            with pytest.raises(MeasureError):
                measure({"b": (Wrong(float("nan")), Artifact(Scale(2.0), quantized=quantized))}, X, **QUICK)

    def test_another_reference_can_be_given_as_a_model_or_as_arrays(self) -> None:
        session = Fixed(np.arange(12.0).reshape(3, 4) * 3)
        for reference in (Scale(3.0), [np.arange(12.0).reshape(3, 4) * 3]):
            found = measure({"s": session}, X, references={"s": reference}, **QUICK)["s"].agreement
            assert found is not None
            assert found.max_diff == 0
        with pytest.raises(MeasureError):
            measure({"s": session}, X, references={"s": Scale(4.0)}, **QUICK)

    def test_without_a_reference_it_runs_and_nothing_is_claimed(self) -> None:
        assert measure({"s": Fixed(np.zeros(3))}, X, **QUICK)["s"].agreement is None

    def test_outputs_of_another_shape_or_number(self) -> None:
        reference = {"s": [np.zeros((2, 3))]}
        with pytest.raises(MeasureError, match=r"shape \[3, 2\], its reference \[2, 3\]"):
            measure({"s": Fixed(np.zeros((3, 2)))}, X, references=reference, **QUICK)
        with pytest.raises(MeasureError, match="2 outputs, its reference 1"):
            measure({"s": Fixed(np.zeros((2, 3)), np.zeros(1))}, X, references=reference, **QUICK)

    def test_a_reference_of_nobody_is_a_mistake(self) -> None:
        with pytest.raises(MeasureError, match="'typo' belongs to no candidate"):
            measure({"s": Fixed(np.zeros(1))}, X, references={"typo": Scale(1.0)}, **QUICK)

    def test_a_missing_runtime_names_its_install_command(self) -> None:
        with pytest.raises(MissingExtraError) as caught:
            measure({"s": (Absent(), Artifact(Scale(1.0)))}, X, **QUICK)
        assert caught.value.hint == "pip install 'slim-latency[nothing]'"

    def test_a_backend_without_what_it_needs_names_the_candidate(self) -> None:
        with pytest.raises(MeasureError) as caught:
            measure({"small": (EagerBackend(), Artifact(name="file"))}, X, **QUICK)
        assert caught.value.where == "candidate 'small'"

    def test_nothing_to_measure(self) -> None:
        with pytest.raises(MeasureError, match="nothing to measure"):
            measure({}, X)
        with pytest.raises(MeasureError, match="rounds must be at least 1"):
            measure({"s": Fixed(np.zeros(1))}, X, rounds=0)


class TestSessions:
    def test_those_that_it_prepares_are_closed_and_others_are_the_callers(self) -> None:
        backend, own = Wrong(0.0), Fixed(np.zeros(1))
        measure({"a": (backend, Artifact(Scale(1.0))), "b": own}, X, **QUICK)
        assert [session.closed for session in backend.sessions] == [1]
        assert own.closed == 0

    def test_they_are_closed_after_an_error_too(self) -> None:
        backend = Wrong(1.0)
        with pytest.raises(MeasureError):
            measure({"a": (backend, Artifact(Scale(1.0)))}, X, **QUICK)
        assert [session.closed for session in backend.sessions] == [1]

    def test_models_keep_their_mode(self) -> None:
        model = nn.Sequential(nn.Dropout(0.5), Scale(1.0)).train()
        model[1].eval()
        found = measure({"a": (EagerBackend(), Artifact(model))}, X, **QUICK)
        assert found["a"].agreement is not None
        assert found["a"].agreement.max_diff == 0  # both ran in eval mode
        assert [module.training for module in model.modules()] == [True, True, False]


class TestResult:
    def test_statistics_are_those_of_the_samples(self) -> None:
        found = measure({"a": Fixed(np.zeros(1)), "b": Fixed(np.zeros(1))}, X, rounds=9, warmup=2, min_sample_ms=0.05)
        assert [timing.name for timing in found.timings] == ["a", "b"]
        for timing in found.timings:
            assert len(timing.samples_ms) == 9
            assert timing.median_ms == np.median(timing.samples_ms)
            assert timing.min_ms == min(timing.samples_ms)
            assert timing.iqr_ms == pytest.approx(np.subtract(*np.percentile(timing.samples_ms, [75, 25])))
            assert timing.warmup == 2
        ratios = np.array(found["b"].samples_ms) / np.array(found["a"].samples_ms)
        assert found["b"].ratio == pytest.approx(np.median(ratios))
        assert (found["b"].ratio_low, found["b"].ratio_high) == pytest.approx(tuple(np.sort(ratios)[[1, 7]]))
        assert found.confidence == pytest.approx(1 - 2 * (1 + 9) / 2**9)

    def test_the_first_is_compared_with_itself(self) -> None:
        first = measure({"a": Fixed(np.zeros(1))}, X, **QUICK)["a"]
        assert (first.ratio, first.ratio_low, first.ratio_high, first.verdict) == (1, 1, 1, "even")

    @pytest.mark.parametrize(
        ("ratio", "low", "high", "verdict", "interval"),
        [
            (0.5, 0.4, 0.8, "faster", (1.25, 2.5)),
            (2.0, 1.6, 2.5, "slower", (0.4, 0.625)),
            (1.0, 0.8, 1.25, "even", (0.8, 1.25)),
        ],
    )
    def test_the_verdict_follows_the_interval(
        self, ratio: float, low: float, high: float, verdict: str, interval: tuple[float, float]
    ) -> None:
        timing = Timing("x", 1, 1, 1, 1, ratio, low, high, None, None, 1, 1, {}, None, (1.0,))
        assert timing.verdict == verdict
        assert timing.speedup == 1 / ratio
        assert timing.speedup_interval == pytest.approx(interval)

    def test_it_is_plain_json_with_machine_versions_and_protocol(self) -> None:
        found = measure({"a": (EagerBackend(), Artifact(Scale(1.0)))}, X, threads=1, seed=5, **QUICK)
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["schema_version"] == 1
        assert data["versions"]["torch"] == torch.__version__
        assert data["protocol"]["rounds"] == 8
        assert data["protocol"]["seed"] == 5
        assert data["device"]["cores"] >= data["device"]["usable"] >= 1
        assert data["timings"][0]["info"]["threads"] == 1
        assert len(data["timings"][0]["samples_ms"]) == 8
        assert data["timings"][0]["agreement"]["sqnr_db"] is None  # equal

    def test_an_unknown_name(self) -> None:
        with pytest.raises(KeyError):
            measure({"a": Fixed(np.zeros(1))}, X, **QUICK)["b"]

    def test_notes_of_sessions_few_rounds_and_unlike_threads_are_told(self) -> None:
        noted = Fixed(np.zeros(1), notes=("runs on a slow path",))
        other = Fixed(np.zeros(1))
        other.info = {**other.info, "threads": 4}
        notes = measure({"a": noted, "b": other}, X, rounds=3, warmup=1, min_sample_ms=0.0).notes
        assert "a: runs on a slow path" in notes
        assert "candidates use different thread counts: 1, 4" in notes
        assert "3 rounds give no 95 % interval for a ratio; make at least 6" in notes


class TestAgreement:
    def test_against_numpy(self) -> None:
        generator = np.random.default_rng(0)
        reference, other = generator.normal(size=(2, 50)), generator.normal(size=(2, 50))
        found = compare([reference], [other], None, "x")
        assert found.max_diff == pytest.approx(np.abs(reference - other).max())
        assert found.sqnr_db == pytest.approx(10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum()))

    def test_not_a_number_in_any_output_is_seen(self) -> None:
        for position in (0, 1):
            outputs = [np.ones(2), np.ones(2)]
            outputs[position] = np.array([1.0, np.nan])
            assert not compare([np.ones(2), np.ones(2)], outputs, None, "x").ok

    def test_small_outputs_are_compared_absolutely(self) -> None:
        assert compare([np.array([1e-6])], [np.array([2e-6])], 1e-3, "x").ok

    def test_integers_and_empty_outputs(self) -> None:
        found = compare(
            [np.array([200], dtype=np.uint8), np.zeros((0, 3))], [np.array([100]), np.zeros((0, 3))], 1, "x"
        )
        assert found.max_diff == 100


class TestQuantizes:
    def test_a_graph_with_fake_quantization(self) -> None:
        class Rounds(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)

        assert quantizes(torch.fx.symbolic_trace(Rounds()))
        assert not quantizes(torch.fx.symbolic_trace(Scale(1.0)))

    def test_a_module_that_says_so(self) -> None:
        assert quantizes(nn.Sequential(torch.ao.quantization.FakeQuantize()))
        assert not quantizes(nn.Sequential(nn.Linear(2, 2)))


class TestBatched:
    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_samples_are_repeated_or_cut(self, size: int) -> None:
        (found,) = batched(X, size)
        assert torch.equal(found, X[0][[index % 3 for index in range(size)]])

    def test_named_inputs_and_those_without_the_batch(self) -> None:
        inputs = {"ids": torch.arange(6).reshape(2, 3), "table": torch.zeros(5, 2), "scale": torch.tensor(2.0)}
        found = batched(inputs, 4)
        assert isinstance(found, dict)
        assert found["ids"].tolist() == [[0, 1, 2], [3, 4, 5]] * 2
        assert found["table"].shape == (5, 2)
        assert found["scale"] == 2
