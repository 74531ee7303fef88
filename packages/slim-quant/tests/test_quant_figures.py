"""What is drawn of quantized layers is what the report says about them."""

from __future__ import annotations

from slim_core.report.plots import Bar, Bars, read_plots
from slim_quant.figures import sqnr_plots


def test_layers_become_bars_and_layers_without_a_figure_none() -> None:
    rows = [
        {"name": "stem", "op": "conv", "bits": 8, "sqnr_db": 41.5},
        {"name": "head", "op": "linear", "bits": 4, "sqnr_db": None},
    ]
    assert read_plots(sqnr_plots(rows)) == (Bars("SQNR of each layer's output", (Bar("stem", 41.5, "8 bits"),), "dB"),)


def test_weights_have_a_plot_of_their_own() -> None:
    rows = [{"name": "head", "bits": 4, "sqnr_db": 20.0, "weight_sqnr_db": 22.5}]
    assert [plot.title for plot in read_plots(sqnr_plots(rows))] == [
        "SQNR of each layer's output",
        "SQNR of each weight",
    ]


def test_nothing_to_draw_is_no_plot() -> None:
    assert sqnr_plots([]) == []
