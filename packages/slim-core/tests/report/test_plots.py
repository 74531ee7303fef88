"""Bars, histograms and scatter plots: what is drawn where, checked against the numbers that were given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_core.report import plots
from slim_core.report.plots import Bar, Bars, Histogram, Point, Scatter, draw, front, read_plots
from slim_core.report.svg import HEIGHT, WIDTH
from slim_core.report.svg_file import standalone


def drawn(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def rectangles(drawing: str, style: str) -> list[dict[str, float]]:
    return [
        {name: float(item.get(name, 0)) for name in ("x", "y", "width", "height")}
        for item in drawn(drawing).iter("rect")
        if item.get("class") == style
    ]


def test_bars_are_as_long_as_their_figures() -> None:
    found = rectangles(draw(Bars("SQNR", (Bar("a", 30.0), Bar("b", 10.0), Bar("c", 0.0)), "dB")), "kept")
    assert found[0]["width"] == pytest.approx(3 * found[1]["width"], abs=0.2)
    assert found[2]["width"] == 0
    assert len({item["x"] for item in found}) == 1


def test_bars_below_zero_end_where_the_others_begin() -> None:
    low, high = rectangles(draw(Bars("SQNR", (Bar("worse", -5.0), Bar("better", 20.0)))), "kept")
    assert low["x"] + low["width"] == pytest.approx(high["x"], abs=0.2)
    assert high["width"] == pytest.approx(4 * low["width"], abs=0.5)


def test_a_bar_without_a_finite_figure_has_no_length_and_says_so() -> None:
    drawing = draw(Bars("x", (Bar("a", 1.0), Bar("b", math.inf, "equal"))))
    assert rectangles(drawing, "kept")[1]["width"] == 0
    assert "– equal" in [item.text for item in drawn(drawing).iter("text")]


def test_names_cannot_leave_the_drawing() -> None:
    drawing = draw(Bars('"&<', (Bar("<script>", 1.0),)))
    assert "<script>" not in drawing
    assert "<script>" in [item.text for item in drawn(drawing).iter("text")]


def test_a_histogram_draws_counts_where_they_are() -> None:
    drawing = draw(Histogram("w", (0.0, 1.0, 2.0, 4.0), (1.0, 0.0, 100.0), (("threshold", 3.0),)))
    first, last = rectangles(drawing, "kept")  # nothing is drawn where nothing fell
    assert last["x"] == pytest.approx(first["x"] + 2 * first["width"], abs=0.1)
    assert last["width"] == pytest.approx(2 * first["width"], abs=0.1)
    bottom = {round(item["y"] + item["height"]) for item in (first, last)}
    assert bottom == {round(HEIGHT - plots._BOTTOM)}
    # two decades between them, and half a decade below the rarest
    assert last["height"] == pytest.approx(5 * first["height"], rel=0.01)
    (mark,) = [item for item in drawn(drawing).iter("line") if item.get("class") == "whisker"]
    assert float(mark.get("x1", 0)) == pytest.approx(last["x"] + last["width"] / 2, abs=0.1)


def test_a_mark_outside_of_the_values_is_inside_of_the_drawing() -> None:
    drawing = draw(Histogram("w", (0.0, 1.0), (5.0,), (("low", -3.0), ("high", 3.0))))
    marks = [float(item.get("x1", 0)) for item in drawn(drawing).iter("line") if item.get("class") == "whisker"]
    assert marks == [pytest.approx(plots._LEFT), pytest.approx(WIDTH - plots._RIGHT)]


@pytest.mark.parametrize("counts", [(0.0,), (3.0,)])
def test_a_histogram_of_one_value_or_of_nothing_can_be_drawn(counts) -> None:
    drawing = draw(Histogram("w", (2.0, 2.0), counts))
    assert len(rectangles(drawing, "kept")) == (counts[0] > 0)


def test_points_stand_where_their_figures_say() -> None:
    points = [Point("float", 4.0, 0.9, "a"), Point("int8", 1.0, 0.8, "b"), Point("bad", 2.5, 0.7, "b")]
    drawing = draw(Scatter("Pareto", "MB", "top1", tuple(points)))
    circles = list(drawn(drawing).iter("circle"))
    xs = [float(item.get("cx", 0)) for item in circles]
    ys = [float(item.get("cy", 0)) for item in circles]
    assert xs[2] - xs[1] == pytest.approx(xs[0] - xs[2], abs=0.2)
    assert ys[2] - ys[1] == pytest.approx(ys[1] - ys[0], abs=0.2)
    assert [item.get("class") for item in circles] == ["dot s1", "dot s2", "dot s2"]
    (line,) = list(drawn(drawing).iter("polyline"))
    assert line.get("points") == f"{xs[1]:.1f},{ys[1]:.1f} {xs[0]:.1f},{ys[0]:.1f}"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(pairs) -> None:
    points = [Point("", float(x), float(y)) for x, y in pairs]
    unbeaten = {
        (p.x, p.y) for p in points if not any((q.x <= p.x and q.y >= p.y) and (q.x < p.x or q.y > p.y) for q in points)
    }
    assert [(p.x, p.y) for p in front(points)] == sorted(unbeaten)


def test_the_drawings_make_a_file() -> None:
    drawings = [
        draw(Bars("b", (Bar("a", 1.0),))),
        draw(Histogram("h", (0.0, 1.0), (1.0,))),
        draw(Scatter("s", "x", "y", (Point("p", 1.0, 1.0),))),
    ]
    tree = drawn(standalone(drawings, title="All"))
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 4


def test_plots_are_read_from_json() -> None:
    found = read_plots([
        {"kind": "bars", "title": "b", "unit": "dB", "rows": [{"name": "a", "value": 1, "pale": True}]},
        {"kind": "histogram", "title": "h", "edges": [0, 1, 3], "counts": [2, 0], "marks": [{"name": "low", "x": 1}]},
        {"kind": "scatter", "title": "s", "x_label": "x", "y_label": "y", "points": [{"name": "p", "x": 1, "y": 2}]},
    ])  # fmt: skip
    assert found == (
        Bars("b", (Bar("a", 1.0, "", True),), "dB"),
        Histogram("h", (0.0, 1.0, 3.0), (2.0, 0.0), (("low", 1.0),)),
        Scatter("s", "x", "y", (Point("p", 1.0, 2.0),)),
    )


@pytest.mark.parametrize(
    "item",
    [
        7,
        {},
        {"kind": "pie"},
        {"kind": "bars", "rows": 3},
        {"kind": "bars", "rows": [{"name": "a", "value": None}]},
        {"kind": "histogram", "edges": [0, 1], "counts": [1, 2]},
        {"kind": "histogram", "edges": [1, 0], "counts": [1]},
        {"kind": "histogram", "edges": [0, None], "counts": [1]},
        {"kind": "scatter", "points": [{"x": 1, "y": "2"}]},
    ],
)
def test_what_is_no_plot_is_left_out(item) -> None:
    assert read_plots([item]) == ()
    assert read_plots(item) == ()
