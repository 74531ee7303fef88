import math
from pathlib import Path

import numpy as np
import pytest
import torch

from slim_core.recipe.rows import channel_rows, json_value, model_row, table_rows, without_folders
from slim_core.report import ModelRow
from slim_core.workload import Workload


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * 123)
    return path


def test_a_row_counts_by_hand(file):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Flatten(), torch.nn.Linear(8 * 4, 5))
    row, notes = model_row("k", "l", Workload(model, (torch.zeros(1, 3, 4, 4),)), {"top1": 0.5}, file, None)
    assert row.params == 3 * 8 * 9 + 8 * 4 * 5 + 5
    assert row.macs == 3 * 8 * 9 * 2 * 2 + 8 * 4 * 5
    assert (row.checkpoint_bytes, row.metrics, row.key, row.label) == (123, {"top1": 0.5}, "k", "l")
    assert notes == []


def test_macs_are_per_sample_whatever_the_batch_of_the_example(file):
    model = torch.nn.Linear(4, 5)
    one, _ = model_row("k", "l", Workload(model, (torch.zeros(1, 4),)), {}, file, None)
    eight, _ = model_row("k", "l", Workload(model, (torch.zeros(8, 4),)), {}, file, None)
    assert one.macs == eight.macs == 4 * 5


def test_tied_parameters_count_once(file):
    first, second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    row, _ = model_row("k", "l", Workload(torch.nn.Sequential(first, second), (torch.zeros(1, 4),)), {}, file, None)
    assert row.params == 16


def test_metrics_that_are_not_finite_are_left_out_with_a_note(file):
    row, notes = model_row(
        "k", "it", Workload(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), {"loss": math.nan, "a": 1}, file, None
    )
    assert row.metrics == {"a": 1.0}
    assert notes == ["metric 'loss' of it is nan: it is left out of the tables"]


class Refuses(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("no")


def test_a_model_that_cannot_be_recorded_keeps_the_macs_before_it(file):
    like = ModelRow("k", "l", {}, 1, 77, 1)
    row, notes = model_row("k", "it", Workload(Refuses(), (torch.zeros(1, 2),)), {}, file, like)
    assert row.macs == 77
    assert notes[0].startswith("it cannot be recorded; its MACs are those of the model before")
    row, notes = model_row("k", "it", Workload(Refuses(), (torch.zeros(1, 2),)), {}, file, None)
    assert row.macs is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, None),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor([1.0]), [1.0]),
        ({1: (2, math.nan)}, {"1": [2, None]}),
        (Path("a/b"), "a/b"),
    ],
)
def test_details_become_json_values(value, expected):
    assert json_value(value) == expected


@pytest.mark.parametrize("value", [None, "text", 3, [1, 2], {"a": 1}])
def test_tables_of_the_wrong_shape_are_empty(value):
    assert channel_rows(value) == ()
    assert table_rows(value) == ()


def test_reports_carry_no_folders_of_their_maker(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    text = f"frozen ({tmp_path}/net.py:3: x, '/somewhere/lib/python3/site-packages/lib/mod.py:4', /home/someone/b.py)"
    assert without_folders(text) == "frozen (net.py:3: x, 'lib/mod.py:4', ~/b.py)"


def test_a_package_that_is_installed_from_a_checkout_is_named_without_the_checkout(tmp_path):
    inner = tmp_path / "checkout/src/pack/models"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    assert without_folders(f"frozen ({inner}/net.py:59: x = 1)") == "frozen (pack/models/net.py:59: x = 1)"
