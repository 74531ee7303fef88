from dataclasses import replace

import pytest

from slim_core.report import ModelRow, StepRow, figures
from slim_core.report.card import render_card


def rows(report):
    return {row.label: row for row in figures.comparisons(report)}


def test_the_table_has_the_figures_that_were_put_in(report):
    table = rows(report)
    assert [(label, row.original, row.compressed) for label, row in table.items()] == [
        ("top1", 0.98, 0.975),
        ("loss", pytest.approx(0.02), pytest.approx(0.025)),
        ("Exported file", 4_100_000, 410_000),
        ("Checkpoint", 4_000_000, 400_000),
        ("Parameters", 1_000_000, 400_000),
        ("MACs", 20_000_000, 10_000_000),
        ("Peak activations", 2_000_000, 1_000_000),
        ("ort, batch 1", 2.0, 0.5),
        ("eager, batch 32", 10.0, 20.0),
    ]


def test_changes_and_factors_are_computed_from_them(report):
    table = rows(report)
    assert (table["top1"].change, table["top1"].factor) == ("−0.50 points", "")
    assert (table["Exported file"].change, table["Exported file"].factor) == ("−90.0 %", "10.0× smaller")
    assert (table["Parameters"].change, table["Parameters"].factor) == ("−60.0 %", "2.5× smaller")
    assert table["MACs"].factor == "2.0× fewer"
    assert table["ort, batch 1"].factor == "4.0× faster"
    assert (table["eager, batch 32"].change, table["eager, batch 32"].factor) == ("+100.0 %", "2.0× slower")
    assert table["ort, batch 1"].spread == ("± 0.10 ms", "± 0.050 ms")


def test_verdicts(report):
    table = rows(report)
    assert table["top1"].verdict == "accepted"  # half a point lost, one is allowed
    assert table["loss"].verdict == "worse"
    assert table["Exported file"].verdict == "better"
    assert table["ort, batch 1"].verdict == "better"
    assert table["eager, batch 32"].verdict == "worse"


def test_a_metric_that_lost_more_than_allowed_is_worse(report):
    recipe = {**report.recipe, "compare": {"max_drop": 0.004}}
    assert rows(replace(report, recipe=recipe))["top1"].verdict == "worse"


def test_latency_says_runtime_threads_and_interval(report):
    row = rows(report)["ort, batch 1"]
    assert (row.remark, row.interval) == ("ort 1.2, 1 thread", "95 %: 3.80–4.20×")


def test_figures_that_nobody_knows_are_left_out(report):
    bare = ModelRow("x", "x", {}, None, None, None)
    table = rows(replace(report, original=bare, compressed=bare, latency=(), metrics=()))
    assert table == {}


def test_the_headline_tells_size_speed_and_metric(report):
    assert figures.headline(report) == "10.0× smaller on disk, 4.0× faster on ort at batch 1, top1 −0.50 points."


def test_the_headline_calls_a_slower_model_slower(report):
    slow = replace(report, latency=report.latency[1:])
    assert "2.0× slower on eager at batch 32" in figures.headline(slow)


def test_the_headline_of_an_empty_report(report):
    bare = ModelRow("x", "x", {}, None, None, None)
    assert (
        figures.headline(replace(report, original=bare, compressed=bare, latency=(), metrics=()))
        == "Nothing was compared."
    )


def test_stages_follow_the_steps(report):
    stages = figures.stages(report)
    assert [(stage.label, stage.seconds) for stage in stages] == [
        ("original", 60.0),
        ("1. prune.test", 60.0),
        ("2. to int8", 5.0),
    ]
    macs = [next(item for item in stage.figures if item.column == "MACs") for stage in stages]
    assert [(item.text, item.share, item.change) for item in macs] == [
        ("20.0 M", 1.0, ""),
        ("10.0 M", 0.5, "−50.0 %"),
        ("10.0 M", 0.5, "no change"),
    ]
    top1 = [next(item for item in stage.figures if item.column == "top1") for stage in stages]
    assert [(item.text, item.share) for item in top1] == [("98.00 %", 0.98), ("97.00 %", 0.97), ("97.50 %", 0.975)]


def test_curves_hold_the_history(report):
    loss, top1, rate = figures.curves(report.steps[0], report.metrics)
    assert [series.name for series in loss.series] == ["loss", "val_loss"]
    assert loss.series[0].points == ((1, 1.0), (2, 0.5), (4, 0.25))
    assert loss.series[1].points == ((1, 2.0), (2, 1.0), (4, 0.5))
    assert top1.series[0].points == ((1, 0.5), (2, 0.75), (4, 0.875))
    assert top1.percent
    assert rate.title == "Learning rate"


def test_losses_that_span_much_are_drawn_on_a_logarithmic_axis(report):
    def chart(*losses):
        history = tuple({"epoch": n, "loss": loss} for n, loss in enumerate(losses))
        return figures.curves(replace(report.steps[0], history=history), report.metrics)[0]

    assert not chart(2.0, 1.0, 0.1).log
    assert chart(200.0, 1.0, 0.1).log
    assert not chart(200.0, 0.0).log  # zero has no place on such an axis


def test_the_factor_of_a_latency_is_the_measured_ratio(report):
    row = replace(report.latency[0], original_ms=3.0, speedup=4.0)  # the ratio of the medians would be 6
    assert figures.latency_comparison(row).factor == "4.0× faster"


def test_history_without_numbers_draws_nothing():
    row = ModelRow("x", "x", {}, None, None, None)
    step = StepRow(1, "k", "n", 0.0, None, row, history=({"epoch": 1, "loss": None, "word": "x", "flag": True},))
    assert figures.curves(step, ()) == ()


def test_layer_tables_take_all_columns():
    header, lines = figures.layer_table([{"name": "a", "bits": 8}, {"name": "b", "sqnr": 31.234567, "kept": None}])
    assert header == ("layer", "bits", "sqnr", "kept")
    assert lines == (("a", "8", "–", "–"), ("b", "–", "31.23", "–"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (12345, "12\N{NARROW NO-BREAK SPACE}345"),
        (0.5, "0.5"),
        (11872256.0, "11\N{NARROW NO-BREAK SPACE}872\N{NARROW NO-BREAK SPACE}256"),
        (1.5e-7, "1.5e−07"),
        ({"a": 1}, "a: 1"),
        ([1, "b"], "1, b"),
    ],
)
def test_details_are_short_text(value, text):
    assert figures.plain(value) == text


def test_change_and_factor_of_a_latency_come_from_the_same_ratio(report):
    row = replace(
        report.latency[0], original_ms=1.16, compressed_ms=1.14, speedup=0.8, speedup_low=0.7, speedup_high=0.9
    )
    shown = figures.latency_comparison(row)
    assert (shown.change, shown.factor) == ("+25.0 %", "1.25× slower")  # the medians alone would be 1.7 % faster


def test_a_latency_whose_interval_holds_one_is_even_everywhere(report):
    row = replace(
        report.latency[0], original_ms=1.16, compressed_ms=1.14, speedup=0.855, speedup_low=0.72, speedup_high=1.43
    )
    shown = figures.latency_comparison(row)
    assert (shown.verdict, shown.change, shown.factor) == ("even", "no clear change", "even (0.72–1.43×)")
    even = replace(report, latency=(row,))
    assert "latency even (0.72–1.43×) on ort at batch 1" in figures.headline(even)
    assert "| ort, batch 1 | 1.16 ms | **1.14 ms** | even (0.72–1.43×) |" in render_card(even)
    assert "slower" not in figures.headline(even)
    assert figures.latency_comparison(replace(row, speedup=1.0, speedup_low=None, speedup_high=None)).factor == "even"


def test_asked_charts_hold_the_points_that_are_numbers(report):
    series = [
        {"name": "a", "x": [25, 50.5], "y": [0.3, None]},
        {"name": "b", "x": [1, 2], "y": [0.1, 0.2]},
        {"name": "empty", "x": [], "y": []},
        "nonsense",
    ]
    asked = {"title": "Drop", "x_label": "kept, %", "y_label": "drop of top1", "series": series}
    step = replace(report.steps[1], curves=(asked, {"title": "nothing"}))
    (chart,) = figures.drawn_curves(step)
    assert [item.name for item in chart.series] == ["a", "b"]
    assert chart.series[0].points == ((25.0, 0.3),)
    assert (chart.title, chart.x_label, chart.y_label) == ("Drop", "kept, %", "drop of top1")
