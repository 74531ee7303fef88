from dataclasses import replace

import pytest

from slim_core.recipe.judge import judge
from slim_core.report import Device, LatencyRow, MetricInfo, ModelRow, Report, StepRow


def report(**changes):
    before = ModelRow("original", "original", {"top1": 0.95}, 100, 100, 1000, 1000)
    after = ModelRow("compressed", "compressed", {"top1": 0.93}, 50, 50, 500, 500)
    middle = replace(after, key="step-1", metrics={"top1": 0.945})
    steps = (
        StepRow(0, "original", "original", 0.0, None, before),
        StepRow(1, "prune.x", "prune.x", 0.0, before, middle),
        StepRow(2, "quant.x", "quant.x", 0.0, middle, after),
    )
    made = Report(
        title="t",
        description=None,
        created="",
        seconds=0.0,
        seed=0,
        recipe={"compare": {"max_drop": 0.05}},
        recipe_hash="",
        versions={},
        device=Device("cpu", 1, 1, None, "", ""),
        metrics=(MetricInfo("top1", True, True),),
        original=before,
        compressed=after,
        steps=steps,
    )
    return replace(made, **changes)


def latency(speedup, backend="onnxruntime"):
    return LatencyRow(backend, backend, 1, 1, 1.0, 0.0, 1 / speedup, 0.0, speedup, speedup * 0.99, speedup * 1.01)


def test_a_good_result_needs_no_words():
    assert judge(report(latency=(latency(2.0),))) == ()


def test_a_loss_beyond_the_tolerance_names_the_step_that_cost_most():
    (note,) = judge(report(recipe={"compare": {"max_drop": 0.01}}))
    assert note.level == "bad"
    assert note.text == "top1 went from 95.00 % to 93.00 %; the recipe allows a loss of 1 points"
    assert note.hint.startswith("step 2 (quant.x) cost most")


def test_a_loss_without_a_tolerance_is_not_judged():
    assert judge(report(recipe={})) == ()


def test_a_metric_where_lower_is_better_is_judged_the_other_way():
    rows = {
        "original": ModelRow("o", "o", {"mae": 1.0}, 1, 1, 1),
        "compressed": ModelRow("c", "c", {"mae": 1.5}, 1, 1, 1),
    }
    infos = (MetricInfo("mae", False, True),)
    (note,) = judge(report(**rows, metrics=infos, recipe={"compare": {"max_drop": 0.4}}))
    assert note.text == "mae went from 1.000 to 1.500; the recipe allows a loss of 0.4"
    assert judge(report(**rows, metrics=infos, recipe={"compare": {"max_drop": 0.5}})) == ()


@pytest.mark.parametrize(
    ("backend", "hint"), [("onnxruntime", "quantize for this runtime"), ("eager", "PyTorch only simulates")]
)
def test_a_slower_model_is_called_slower_and_told_what_to_change(backend, hint):
    (note,) = judge(report(latency=(latency(0.8, backend),)))
    assert note.level == "bad"
    assert (
        note.text
        == f"on {backend} at batch 1 the compressed model is slower than the original: 1.25 ms against 1.00 ms"
    )
    assert note.hint.startswith(hint)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"target": "onnxruntime", "skip": []},
            "runtime (the step's target), leave small layers in float (the step's skip)",
        ),
        ({"exclude": []}, "runtime, leave small layers in float (the step's exclude)"),
        ({}, "quantize for this runtime, leave small layers in float, or drop"),
    ],
)
def test_the_hint_names_keys_that_the_quantizing_step_has(keys, said):
    made = report(latency=(latency(0.8, "onnxruntime"),))
    index = next(step.index for step in made.steps if step.kind.startswith("quant."))
    steps = [{"kind": "x"} for _ in range(index - 1)] + [{"kind": "quant.ptq", **keys}]
    (note,) = judge(replace(made, recipe={"steps": steps}))
    assert said in note.hint


def test_a_slower_pruned_model_is_told_about_rounding():
    made = report(latency=(latency(0.8),))
    (note,) = judge(replace(made, steps=made.steps[:2]))
    assert "round_to" in note.hint


def test_noise_is_not_called_slower():
    row = LatencyRow("b", "b", 1, 1, 1.0, 0.0, 1.01, 0.0, 0.99, 0.97, 1.01)
    assert judge(report(latency=(row,))) == ()


def test_a_larger_file_is_called_larger():
    large = ModelRow("compressed", "compressed", {"top1": 0.95}, 1, 1, 2_000_000, 3_000_000)
    texts = [note.text for note in judge(report(compressed=large))]
    assert texts == [
        "the exported file of the compressed model is larger than the original's: 3.00 MB against 1.00 kB",
        "the checkpoint of the compressed model is larger than the original's: 2.00 MB against 1.00 kB",
    ]
