"""Formats, conversion to JSON, and progress for people."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

from slim_core.cli.output import Output, figures, plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Point:
    x: float
    where: Path


def test_plain_makes_json_values_of_what_commands_hold() -> None:
    value = {
        "nan": float("nan"),
        "infinity": float("inf"),
        "scalar": np.float32(0.5),
        "array": np.arange(3),
        "path": Path("a/b"),
        "point": Point(1.5, Path("c")),
        "set": {"b", "a"},
        3: (1, True, None),
    }
    assert plain(value) == {
        "nan": None,
        "infinity": None,
        "scalar": 0.5,
        "array": [0, 1, 2],
        "path": "a/b",
        "point": {"x": 1.5, "where": "c"},
        "set": ["a", "b"],
        "3": [1, True, None],
    }
    json.dumps(plain(value), allow_nan=False)


def test_figures_stand_beside_the_bar() -> None:
    text = figures({"loss": 0.31234, "accuracy": 0.97, "images_per_s": 12403.3, "phase": "warm-up", "epoch": 3})
    assert text == "loss 0.3123  accuracy 0.9700  12,403 images/s  phase warm-up  epoch 3"
    assert (
        figures({"images_per_s": 736.6, "tokens_per_s": 7.5, "macs": 1234.5})
        == "737 images/s  7.500 tokens/s  macs 1,234"
    )


def test_a_table_in_a_pipe_has_no_escapes_and_keeps_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out = io.StringIO()
    table = Table("name", "value")
    table.add_row("x" * 60, "y" * 40)
    Output("human", out, io.StringIO()).emit({}, lambda: table)
    assert "x" * 60 in out.getvalue()
    assert "y" * 40 in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_people_get_json_where_a_command_draws_nothing() -> None:
    out = io.StringIO()
    Output("human", out, io.StringIO()).emit({"a": 1})
    assert json.loads(out.getvalue()) == {"a": 1}


@pytest.mark.parametrize("format", ["json", "quiet"])
def test_programs_get_neither_bars_nor_notes(format: str) -> None:
    err = Terminal()
    output = Output(format, io.StringIO(), err)  # type: ignore[arg-type]
    with output.progress.track("training", 3) as track:
        track.advance(loss=0.5)
    output.progress.note("a note")
    assert err.getvalue() == ""


def test_people_without_a_terminal_get_notes_and_no_bars() -> None:
    err = io.StringIO()
    output = Output("human", io.StringIO(), err)
    with output.progress.track("training", 3) as track:
        track.advance(loss=0.5)
        output.progress.note("epoch 1 done")
    assert err.getvalue() == "epoch 1 done\n"


def test_people_at_a_terminal_get_bars_and_notes_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    output = Output("human", io.StringIO(), err)
    with output.progress.track("training [fast]", 4) as outer:
        with output.progress.track("epoch 1", 2) as inner:
            inner.advance(1, loss=0.5)
            inner.advance(1, images_per_s=1000.0)
        output.progress.note("epoch 1 done")
        outer.advance(2)
    text = err.getvalue()
    for part in ("training [fast]", "epoch 1", "2/2", "loss 0.5000  1,000 images/s", "epoch 1 done", "2/4"):
        assert part in text, part


def test_warnings_are_for_all_but_the_quiet() -> None:
    texts = {}
    for format in ("human", "json", "quiet"):
        err = io.StringIO()
        Output(format, io.StringIO(), err).warn("look out")  # type: ignore[arg-type]
        texts[format] = err.getvalue()
    assert texts == {"human": "warning: look out\n", "json": "warning: look out\n", "quiet": ""}


def test_colours_only_at_a_terminal_and_not_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    err = Terminal()
    Output("human", io.StringIO(), err).error("SlimError", "wrong")
    assert "\x1b[1;31merror:" in err.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    err = Terminal()
    Output("human", io.StringIO(), err).error("SlimError", "wrong")
    assert err.getvalue() == "error: wrong\n"
