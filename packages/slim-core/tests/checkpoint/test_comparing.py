"""``diff`` as data."""

from __future__ import annotations

import checkpoint_kit as kit
import pytest
import torch

from slim_core.checkpoint import diff, inspect, save
from slim_core.errors import CheckpointError


def test_a_file_is_identical_to_itself_and_to_its_copy(rich_file, tmp_path) -> None:
    (tmp_path / "copy").write_bytes(rich_file.read_bytes())
    found = diff(rich_file, tmp_path / "copy")
    assert found.identical
    assert found.same == sum(not name.startswith(("slim:input", "slim:output")) for name in inspect(rich_file).tensors)


def test_changed_values_are_found_by_hash(tmp_path) -> None:
    workload = kit.workload()
    save(workload, tmp_path / "a", parity=False)
    workload.model.conv.bias.data[0] += 1
    workload.model.norm.weight.requires_grad_(False)
    save(workload, tmp_path / "b", parity=False)
    found = diff(tmp_path / "a", tmp_path / "b")
    assert {change.name: change.what for change in found.changed} == {
        "conv.bias": ("values",),
        "norm.weight": ("frozen",),
    }
    assert (found.added, found.removed, found.transforms, dict(found.fields)) == ((), (), (), {})
    assert not found.identical


def test_pruning_changes_shapes_and_adds_a_transform(tmp_path) -> None:
    save(kit.workload(), tmp_path / "a", metrics={"accuracy": 0.5, "loss": 1.0})
    save(kit.pruned(), tmp_path / "b", metrics={"accuracy": 0.25, "top5": 0.75})
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.added == ("slim:transform/0/kept",)
    changed = {change.name: change for change in found.changed}
    assert set(changed) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean",
                            "norm.running_var", "left.weight"}  # fmt: skip
    assert changed["conv.weight"].what == ("shape", "values")
    assert (changed["conv.weight"].before.shape, changed["conv.weight"].after.shape) == ((6, 3, 3, 3), (3, 3, 3, 3))
    ((index, before, after),) = found.transforms
    assert (index, before, after["kind"]) == (0, None, "test.keep")
    assert dict(found.metrics) == {"accuracy": (0.5, 0.25), "loss": (1.0, None), "top5": (None, 0.75)}
    assert found.to_json()["tensors"]["changed"][0]["name"] == "conv.bias"


def test_other_parts_of_the_header(tmp_path) -> None:
    save(kit.workload(width=6), tmp_path / "a", recipe={"seed": 1})
    other = kit.workload(kit.net(), example_inputs=(torch.ones(2, 3, 8, 8),))
    save(other, tmp_path / "b", recipe={"seed": 2}, producers={"slim-core": "9"})
    assert set(diff(tmp_path / "a", tmp_path / "b").fields) == {"producers", "inputs", "recipe"}


def test_a_file_that_cannot_be_read_is_an_error(rich_file, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        diff(rich_file, tmp_path / "nowhere")
