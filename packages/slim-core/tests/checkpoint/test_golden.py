"""Files of released format versions are read for ever, and written again without a difference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from slim_core.checkpoint import inspect, load, save, verify

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_v1", GOLDEN / "make_v1.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(make):
    return load(GOLDEN / "v1.safetensors", registry=make.registry(), check_parity=True)


def test_the_header_says_what_it_said() -> None:
    header = inspect(GOLDEN / "v1.safetensors")
    assert header.format_version == 1
    assert header.producers == {"slim-core": "0.1.0.dev0", "torch": "2.13.0"}
    assert (header.builder.name, header.builder.kwargs) == ("golden/net", {"width": 8})
    assert [(item.kind, item.schema) for item in header.transforms] == [("golden.keep", 1), ("golden.grid", 3)]
    assert header.ties == (("left.weight", "right.weight"),)
    assert header.recipe["steps"][0]["budget"] == {"macs": 0.5}
    assert header.metrics == {"accuracy": 0.9375, "loss": None, "images": 640}
    assert {name: record.role for name, record in header.tensors.items() if record.role not in ("input", "output")} == {
        "conv.weight": "parameter", "conv.bias": "parameter", "left.weight": "parameter", "left.bias": "parameter",
        "gain": "buffer", "mask": "buffer", "halves": "buffer", "count": "buffer", "slim:buffer/ramp": "transient",
        "slim:transform/0/kept": "transform", "slim:transform/1/conv.scale": "transform",
        "slim:transform/1/conv.zero_point": "transform", "slim:transform/1/left.scale": "transform",
    }  # fmt: skip
    assert (header.stored["conv.weight"].dtype, header.stored["conv.weight"].shape) == ("int8", (4, 2, 3, 3))
    assert (header.stored["left.weight"].dtype, header.stored["left.weight"].shape) == ("uint8", (6,))
    specs = {item.spec.name: (item.spec.dtype, item.spec.shape) for item in header.inputs.tensors}
    assert specs == {"image": ("float32", (None, 2, 2, 2)), "shift": ("int64", (None,))}
    verify(GOLDEN / "v1.safetensors")


def test_the_values_are_what_they_were(loaded) -> None:
    model = loaded.model
    integers = torch.tensor([i * 37 % 31 - 15 for i in range(72)]).reshape(4, 2, 3, 3)
    for channel, (scale, zero) in enumerate([(0.25, 0), (0.5, 3), (0.25, -5), (1.0, 7)]):
        assert torch.equal(model.conv.weight[channel], (integers[channel] - zero) * scale)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv.bias.tolist() == [0.0, 1.0, -1.0, 2.5]
    assert not model.conv.bias.requires_grad
    assert model.left.weight.requires_grad
    scales = [[0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5], [2.0, 2.0, 1.0, 1.0]]
    expected = [[(i * 4 + j) * 5 % 16 - 8 for j in range(4)] for i in range(3)]
    assert torch.equal(model.left.weight, torch.tensor(expected) * torch.tensor(scales))
    assert model.right.weight is model.left.weight
    assert model.left.bias.tolist() == [0.5, -0.5, 4.0]
    assert model.gain.item() == 0.5
    assert model.gain.shape == ()
    assert model.mask.tolist() == [True, False, True]
    assert (model.halves.dtype, model.halves.tolist()) == (torch.bfloat16, [1.5, -2.0, 0.25])
    assert (model.count.dtype, model.count.tolist()) == (torch.int64, [1, 2, 3])
    assert model.ramp.tolist() == [0.0, 1.0, 2.0]
    assert "ramp" not in model.state_dict()


def test_inputs_and_transforms_are_what_they_were(loaded) -> None:
    assert list(loaded.example_inputs) == ["image", "shift"]
    assert loaded.example_inputs["shift"].tolist() == [5, -7]
    image = loaded.example_inputs["image"]
    assert image.shape == (2, 2, 2, 2)
    assert (image.flatten()[:8] * 64).tolist() == [-30.0, 110.0, 6.0, -8.0, 27.0, 83.0, 44.0, -59.0]
    kept = loaded.transforms[0].tensors["kept"]
    assert (kept.dtype, kept.tolist()) == (torch.int32, [0, 3, 4, 7])
    assert loaded.transforms[1].data["schemes"]["left.weight"]["group_size"] == 2


def test_the_output_is_exactly_the_stored_one(loaded) -> None:
    from slim_core.checkpoint import parity_error

    assert parity_error(GOLDEN / "v1.safetensors", loaded.model) == 0.0


def test_writing_it_again_gives_the_same_bytes(loaded, tmp_path) -> None:
    header = inspect(GOLDEN / "v1.safetensors")
    save(loaded, tmp_path / "again.safetensors", recipe=header.recipe, metrics=header.metrics,
         producers=header.producers)  # fmt: skip
    assert (tmp_path / "again.safetensors").read_bytes() == (GOLDEN / "v1.safetensors").read_bytes()


def test_what_is_made_today_is_the_golden_file(make, tmp_path) -> None:
    save(make.workload(), tmp_path / "new.safetensors", recipe=make.RECIPE, metrics=make.METRICS,
         producers=make.PRODUCERS)  # fmt: skip
    assert (tmp_path / "new.safetensors").read_bytes() == (GOLDEN / "v1.safetensors").read_bytes()


def test_the_pseudo_random_sequence_is_splitmix64() -> None:
    """Against an implementation of the published algorithm with Python's integers."""
    mask = 2**64 - 1

    def splitmix(seed: int):
        state = seed
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = state
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield z ^ (z >> 31)

    from slim_core.checkpoint.examples import take_apart, values_for

    inputs = take_apart((torch.zeros(2, 50), torch.zeros(2, 9)))
    for stream, tensor in enumerate(values_for(inputs, 2).stored):
        source = splitmix(stream)
        expected = [(next(source) >> 56) for _ in range(tensor.numel())]
        assert [value & 0xFF for value in tensor.flatten().tolist()] == expected


def test_the_golden_file_needs_no_plugin(make) -> None:
    assert {entry.plugin for kind in make.registry().kinds() for entry in make.registry().entries(kind)} == {"golden"}
