"""The front of size, latency and accuracy."""

from __future__ import annotations

from slim_core.report.plots import Scatter, read_plots
from slim_quant.pareto import Contender, drawing, front, plots, to_json

FLOAT = Contender("float", 4000, 0.95, 2.0)
INT8 = Contender("int8", 1000, 0.945, 1.0)
INT4 = Contender("int4", 600, 0.93, 1.0)
WORSE = Contender("int8 without calibration", 1000, 0.90, 1.0)
SLOW = Contender("int8, slow", 1000, 0.945, 1.5)
ALL = [FLOAT, INT8, INT4, WORSE, SLOW]


def test_what_is_beaten_in_everything_is_not_on_the_front() -> None:
    assert front(ALL) == (FLOAT, INT8, INT4)
    assert [row["front"] for row in to_json(ALL)] == [True, True, True, False, False]


def test_equals_stand_side_by_side_and_missing_latencies_do_not_count() -> None:
    twin = Contender("twin", 1000, 0.945, 1.0)
    assert front([INT8, twin]) == (INT8, twin)
    untimed = Contender("untimed", 1000, 0.945)
    assert untimed in front([SLOW, untimed])
    assert SLOW in front([SLOW, untimed])


def test_plots_show_the_figures() -> None:
    size, latency = read_plots(plots([*ALL, Contender("untimed", 10, 0.5)], "top1"))
    assert isinstance(size, Scatter)
    assert isinstance(latency, Scatter)
    assert [(point.name, point.x, point.y) for point in size.points][:2] == [("float", 4.0, 0.95), ("int8", 1.0, 0.945)]
    assert len(latency.points) == 5
    text = drawing(ALL, "top1")
    assert text.startswith("<svg")
    assert "float, int8, int4" in text
