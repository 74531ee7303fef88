import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import yaml

from slim_core.report import (
    ChannelRow,
    ModelRow,
    Note,
    Report,
    StepRow,
    read_report,
    render_card,
    render_html,
    render_terminal,
    svg,
    write_views,
)
from slim_core.report.figures import Chart, Series

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def words(html):
    return " ".join(" ".join(Page(html).text).split())


def test_the_page_shows_the_figures(report):
    text = words(render_html(report))
    for figure in ("98.00 %", "97.50 %", "−0.50 points", "4.10 MB", "410 kB", "10.0× smaller", "20.0 M", "2.00 ms",
                   "0.500 ms", "4.0× faster", "2.0× slower", "A Processor", "16 / 32 · 50 %", "10 / 40 · 25 %",
                   "31.25", "the head was left alone", "measure on another runtime",
                   "slim run recipe.resolved.yaml -o out"):  # fmt: skip
        assert figure in text, figure


def test_the_page_loads_nothing_and_runs_nothing(report):
    html = render_html(report)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not {"src", "href", "onclick", "onload", "action"} & attributes.keys()
    assert "url(" not in html
    assert "@import" not in html
    assert re.search(r"https?://", html) is None


def test_the_page_is_readable_for_screen_readers_and_on_phones(report):
    page = Page(render_html(report))
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert drawings
    assert all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all("scope" in attributes for attributes in headers)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert "prefers-color-scheme: dark" in render_html(report)


HOSTILE = "<script>alert('x')</script>\"'&`|\n# *x* [y](z) \x00\x1b[31m"


@pytest.fixture
def hostile(report):
    row = ModelRow("original", HOSTILE, {HOSTILE: 0.5}, 1, 1, 1)
    step = StepRow(
        1, HOSTILE, HOSTILE, 1.0, row, row,
        channels=(ChannelRow(HOSTILE, 1, 2),),
        history=({"epoch": 1, "loss": 1.0, HOSTILE: 2.0}, {"epoch": 2, "loss": 0.5, f"{HOSTILE}loss": 1.0}),
        layers=({"name": HOSTILE, HOSTILE: HOSTILE},),
        details={HOSTILE: {HOSTILE: [HOSTILE]}},
        notes=(HOSTILE,),
    )  # fmt: skip
    return replace(
        report,
        title=HOSTILE,
        description=HOSTILE,
        dataset=HOSTILE,
        created=HOSTILE,
        device=replace(report.device, cpu=HOSTILE, accelerator=HOSTILE),
        versions={HOSTILE: HOSTILE, "slim-core": HOSTILE},
        metrics=(replace(report.metrics[0], name=HOSTILE),),
        recipe={"workload": {"model": HOSTILE, "data": HOSTILE}, HOSTILE: HOSTILE, "export": {"format": HOSTILE}},
        original=row,
        compressed=row,
        steps=(*report.steps, step),
        latency=tuple(replace(item, backend=HOSTILE, runtime=HOSTILE) for item in report.latency),
        notes=(Note("bad", HOSTILE, HOSTILE, HOSTILE), Note("warning", HOSTILE, HOSTILE, HOSTILE)),
        files={HOSTILE: HOSTILE},
        reproduce=(HOSTILE,),
    )


def test_hostile_names_stay_text_in_the_page(hostile):
    html = render_html(hostile)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert('x')</script>" in "".join(page.text)
    assert "\x00" not in html
    assert "\x1b" not in html
    known = {"class", "style", "lang", "charset", "name", "content", "http-equiv", "scope", "colspan", "role", "title",
             "aria-label", "aria-hidden"}  # fmt: skip
    for tag, attributes in page.tags:
        if tag not in ("svg", "rect", "line", "text", "circle", "polyline"):
            assert attributes.keys() <= known, (tag, attributes)


def test_hostile_names_stay_text_in_the_card(hostile):
    card = render_card(hostile)
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["datasets"] == [HOSTILE]
    assert "<script" not in body.split("```")[0]
    assert all(line.count("|") - line.count("\\|") == 5 for line in body.splitlines() if line.startswith("|"))


def test_hostile_names_do_not_steer_the_terminal(hostile):
    assert "\x1b[31m" not in terminal(hostile)


def terminal(report):
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=140, no_color=True).print(render_terminal(report, folder="out"))
    return stream.getvalue()


def test_the_terminal_shows_the_figures_and_what_is_worse(report):
    text = terminal(report)
    for figure in ("98.00 %", "97.50 %", "−0.50 points", "410 kB", "10.0× smaller", "2.0× slower", "A Processor",
                   "ort 1.2", "worse: slower on eager", "measure on another runtime", "out/report.html"):  # fmt: skip
        assert figure in text, figure


def test_the_card_has_head_table_and_limits(report):
    card = render_card(report)
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "slim",
        "tags": ["model-compression", "slim", "prune", "quant"],
        "datasets": ["t/data"],
        "base_model_builder": "t/net",
        "slim_metrics": [{"type": "top1", "value": 0.975}, {"type": "loss", "value": pytest.approx(0.025)}],
    }
    assert "| Exported file | 4.10 MB | **410 kB** | −90.0 % (10.0× smaller) |" in body
    assert "1. prune.test (`prune.test`): 26 of 72 channels kept – took 1 min 0 s" in body
    assert "slim run recipe.resolved.yaml -o out" in body
    assert 'InferenceSession("model.onnx")' in body
    limits = body.split("## Limits")[1]
    assert "slower on eager" in limits
    assert "the head was left alone" in limits


def test_a_report_without_anything_still_has_views(report):
    bare = ModelRow("x", "x", {}, None, None, None)
    empty = replace(
        report, original=bare, compressed=bare, metrics=(), latency=(), notes=(), files={}, reproduce=(), recipe={},
        steps=(StepRow(0, "original", "original", 0.0, None, bare),), description=None,
    )  # fmt: skip
    assert "Nothing was left alone" in words(render_html(empty))
    assert "Nothing was compared." in render_card(empty)
    assert "Nothing was compared." in terminal(empty)


def test_many_layers_are_folded(report):
    many = tuple(ChannelRow(f"layer.{n}", 1, 2) for n in range(100))
    steps = (report.steps[0], replace(report.steps[1], channels=many))
    text = words(render_html(replace(report, steps=steps)))
    assert "60 more groups" in text
    assert "layer.99" in text


def test_views_are_written_beside_the_data(report, tmp_path):
    write_views(report, tmp_path)
    assert read_report(tmp_path / "report.json").to_json() == report.to_json()
    assert (tmp_path / "report.html").read_text() == render_html(report)
    assert (tmp_path / "README.md").read_text() == render_card(report)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.93, 0.981, [0.92, 0.94, 0.96, 0.98, 1.0]),
        (3, 97, [0, 20, 40, 60, 80, 100]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (5, 5, [4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    found = svg.ticks(low, high)
    assert found == pytest.approx(expected)
    assert found[0] <= low
    assert found[-1] >= high


def test_points_of_a_chart_lie_where_the_axes_say():
    chart = Chart("Loss", "epoch", (Series("loss", ((1, 0.0), (3, 1.0), (5, 0.5))),))
    root = ElementTree.fromstring(svg.line_chart(chart))
    points = [tuple(map(float, pair.split(","))) for pair in root.find("polyline").get("points").split()]
    left, right = svg._LEFT, svg.WIDTH - svg._RIGHT
    top, bottom = svg._TOP, svg.HEIGHT - svg._BOTTOM
    assert points == [(left, bottom), ((left + right) / 2, top), (right, (top + bottom) / 2)]
    assert root.get("aria-label") == "Loss by epoch: loss from 0 to 0.5000"


def test_a_logarithmic_axis_puts_decades_at_equal_distances():
    chart = Chart("Loss", "epoch", (Series("loss", ((1, 100.0), (2, 1.0), (3, 0.1))),), log=True)
    root = ElementTree.fromstring(svg.line_chart(chart))
    heights = [float(pair.split(",")[1]) for pair in root.find("polyline").get("points").split()]
    assert svg.decades(0.1, 100.0) == pytest.approx([0.1, 1, 10, 100])
    assert heights[0] == svg._TOP
    assert (heights[1] - heights[0]) / (heights[2] - heights[0]) == pytest.approx(2 / 3, abs=0.01)


def test_bars_of_channels_have_the_kept_share():
    rows = [ChannelRow("a", 16, 64), ChannelRow("b", 8, 16), ChannelRow("c", 0, 0)]
    root = ElementTree.fromstring(svg.channel_bars(rows))
    bars = [float(bar.get("width")) for bar in root.iter("rect")]
    assert bars[1] / bars[0] == pytest.approx(0.25, abs=1e-3)
    assert bars[3] / bars[2] == pytest.approx(0.5, abs=1e-3)
    assert bars[2] / bars[0] == pytest.approx(0.5, abs=1e-3)  # square root of 16 / 64
    assert bars[4] == bars[5] == 0


def test_bars_of_latency_have_the_ratio_of_the_medians(report):
    root = ElementTree.fromstring(svg.latency_bars(report.latency))
    bars = [float(bar.get("width")) for bar in root.iter("rect")]
    assert bars[0] / bars[1] == pytest.approx(4.0, abs=0.01)
    assert bars[2] / bars[3] == pytest.approx(0.5, abs=0.01)


def test_charts_that_a_step_asked_for_are_on_the_page_and_in_the_data(report, tmp_path):
    chart = {
        "title": "A <chart>",
        "x_label": "kept",
        "y_label": "drop",
        "series": [{"name": "s", "x": [0.5, 1.0], "y": [1.0, 0.0]}],
    }
    step = replace(report.steps[1], curves=(chart,) * 8)
    with_charts = replace(report, steps=(report.steps[0], step, *report.steps[2:]))
    page = render_html(with_charts)
    assert page.count("A &lt;chart&gt;") == 8 + 8  # caption and description
    assert "2 more charts" in page
    write_views(with_charts, tmp_path)
    assert read_report(tmp_path / "report.json").steps[1].curves == (chart,) * 8
    data = report.to_json()
    for item in data["steps"]:
        del item["curves"]  # a report from before there were any
    assert Report.from_json(data).steps[1].curves == ()


def test_plots_that_a_step_asked_for_are_on_the_page_and_in_the_data(report, tmp_path):
    bars = {"kind": "bars", "title": "SQNR by <layer>", "unit": "dB", "rows": [{"name": "conv", "value": 31.0}]}
    histogram = {"kind": "histogram", "title": "w <1>", "edges": [0.0, 1.0], "counts": [3.0], "marks": []}
    asked = (bars, *(histogram,) * 8, {"kind": "unknown"})
    step = replace(report.steps[1], plots=asked)
    with_plots = replace(report, steps=(report.steps[0], step, *report.steps[2:]))
    page = render_html(with_plots)
    assert "conv: 31.0 dB" in page
    assert page.count(">w &lt;1&gt;</text>") == 8
    assert "2 more plots" in page
    write_views(with_plots, tmp_path)
    assert read_report(tmp_path / "report.json").steps[1].plots == asked
    data = report.to_json()
    for item in data["steps"]:
        del item["plots"]  # a report from before there were any
    assert Report.from_json(data).steps[1].plots == ()


def test_a_horizontal_axis_of_fractions_has_marks():
    chart = Chart("t", "share", (Series("s", ((0.25, 1.0), (0.75, 2.0))),))
    texts = [
        item.text
        for item in ElementTree.fromstring(svg.line_chart(chart)).iter()
        if item.get("text-anchor") == "middle"
    ]
    assert texts == ["0.3", "0.4", "0.5", "0.6", "0.7"]
