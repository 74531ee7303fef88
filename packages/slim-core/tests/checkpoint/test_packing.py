"""Integers in and out of bytes, and the grid that quantized weights must lie on."""

from __future__ import annotations

import checkpoint_kit as kit
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.checkpoint import inspect, load, load_into, save
from slim_core.checkpoint.packing import Packing, pack4, packed_form, scale_shape, unpack4
from slim_core.checkpoint.quantized import from_integers, to_integers
from slim_core.errors import CheckpointError
from slim_core.workload import Transform, Workload


@st.composite
def packings(draw):
    """Draw a packing, a shape, scales, zero points, integers in range, and a float dtype."""
    kind = draw(st.sampled_from(["int8", "uint8", "int4"]))
    bits = draw(st.integers(2, 4 if kind == "int4" else 8))
    signed = draw(st.booleans()) if kind == "int4" else kind == "int8"
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    granularity = draw(st.sampled_from(["per_tensor", "per_channel", "per_group"]))
    axis = None if granularity == "per_tensor" else draw(st.integers(0, len(shape) - 1))
    group = draw(st.integers(1, 6)) if granularity == "per_group" else None
    affine = draw(st.booleans())
    packing = Packing(kind, bits, signed, granularity, axis, group, "scale", "zero" if affine else None)
    size = scale_shape(packing, shape, "")[0]
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    scale = torch.from_numpy(np.asarray(rng.uniform(1e-4, 3.0, size), np.float32)).reshape(size)
    zero = torch.from_numpy(np.asarray(rng.randint(packing.low, packing.high + 1, size), np.int32)).reshape(size)
    integers = torch.from_numpy(rng.randint(packing.low, packing.high + 1, shape))
    return packing, shape, scale, zero if affine else None, integers


def spread(parameter: torch.Tensor, packing: Packing, shape: tuple[int, ...]) -> torch.Tensor:
    """Return one scale per element, by an explicit loop."""
    found = torch.empty(shape, dtype=parameter.dtype)
    for index in np.ndindex(*shape):
        place = {
            "per_tensor": lambda index: (),
            "per_channel": lambda index: (index[packing.axis],),
            "per_group": lambda index: tuple(
                i // packing.group_size if dim == packing.axis else i for dim, i in enumerate(index)
            ),
        }[packing.granularity](index)
        found[index] = parameter[place]
    return found


@settings(max_examples=200, deadline=None)
@given(packings())
def test_integers_come_back_and_floats_are_those_of_the_closed_form(case) -> None:
    packing, shape, scale, zero, integers = case
    zeros = torch.zeros(shape) if zero is None else spread(zero, packing, shape).to(torch.float32)
    floats = (integers.to(torch.float32) - zeros) * spread(scale, packing, shape)
    stored = to_integers(floats, packing, scale, zero, "w")
    assert (str(stored.dtype).removeprefix("torch."), tuple(stored.shape)) == packed_form(packing, shape)
    if packing.packing != "int4":
        assert torch.equal(stored.to(torch.int64), integers)
    again = from_integers(stored, packing, shape, torch.float32, scale, zero, "w")
    assert again.shape == shape
    assert torch.equal(again.view(torch.int32), floats.view(torch.int32)) or torch.equal(again, floats)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-8, 7), max_size=33))
def test_signed_int4_identity(values) -> None:
    packed = pack4(np.array(values, np.int64))
    assert packed.size == (len(values) + 1) // 2
    assert unpack4(packed, len(values), signed=True).tolist() == values


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 15), max_size=33))
def test_unsigned_int4_identity(values) -> None:
    assert unpack4(pack4(np.array(values, np.int64)), len(values), signed=False).tolist() == values


def test_the_first_of_a_pair_is_in_the_low_half_and_a_missing_one_is_zero() -> None:
    assert pack4(np.array([1, -2, 7])).tolist() == [0xE1, 0x07]


@pytest.mark.parametrize(("axis", "bits", "symmetric"), [(0, 8, True), (1, 8, False), (0, 4, True), (1, 5, True)])
def test_dequantizing_is_that_of_torch_bit_for_bit(axis, bits, symmetric, tmp_path) -> None:
    torch.manual_seed(bits)
    values = torch.randn(6, 7)
    count = values.shape[axis]
    low, high = (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    scale = torch.rand(count) * 0.1 + 1e-3
    zero = torch.zeros(count, dtype=torch.int32) if symmetric else torch.randint(0, high, (count,), dtype=torch.int32)
    fake = torch.fake_quantize_per_channel_affine(values, scale, zero, axis, low, high)
    model = nn.Linear(7, 6, bias=False)
    model.weight = nn.Parameter(fake)
    packing = "int4" if bits == 4 else "int8" if symmetric else "uint8"
    scheme = kit.scheme(packing, axis=axis, bits=bits, symmetric=symmetric, zero_point=None if symmetric else "zero")
    transform = Transform("test.grid", 1, {"schemes": {"weight": scheme}}, {"scale": scale, "zero": zero})
    workload = Workload(model, (torch.ones(2, 7),)).with_model(model, transform)
    save(workload, tmp_path / "a.safetensors")
    again = load(
        tmp_path / "a.safetensors", registry=kit.registry(), factory=lambda: nn.Linear(7, 6, bias=False)
    ).model.weight
    assert kit.bits(again) == kit.bits(fake)


def quantized(weight: torch.Tensor, scheme: dict, scale: torch.Tensor, zero: torch.Tensor | None = None) -> Workload:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.weight = nn.Parameter(weight)
    tensors = {"scale": scale} | ({} if zero is None else {"zero": zero})
    workload = Workload(model, (torch.ones(1, weight.shape[1]),))
    return workload.with_model(model, Transform("test.grid", 1, {"schemes": {"weight": scheme}}, tensors))


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.3, r"1 of 4 values .* at \[1, 0\], is 0\.3"), (128 * 0.5, "are not 8-bit integers"), (float("nan"), "nan"),
     (float("inf"), "inf")],
)  # fmt: skip
def test_a_weight_off_the_grid_is_refused_before_anything_is_written(tmp_path, value, words) -> None:
    weight = torch.tensor([[0.5, 1.0], [value, -64.0]])
    scheme = kit.scheme(granularity="per_tensor")
    with pytest.raises(CheckpointError, match=r"tensors\.weight: " + ".*" + words):
        save(quantized(weight, scheme, torch.tensor(0.5)), tmp_path / "a.safetensors", parity=False)
    assert list(tmp_path.iterdir()) == []


def test_negative_zero_is_on_the_grid(tmp_path) -> None:
    scheme = kit.scheme(granularity="per_tensor")
    save(quantized(torch.tensor([[-0.0, 1.0]]), scheme, torch.tensor(0.5)), tmp_path / "a.safetensors")
    assert safetensors.torch.load_file(tmp_path / "a.safetensors")["weight"].tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packing": "int3"}, r"packing: .*not one of int8, uint8, int4"),
        ({"bits": 9}, "bits: 9 is not between 2 and 8"),
        ({"bits": 5, "packing": "int4"}, "bits: 5 is not between 2 and 4"),
        ({"bits": True}, "bits"),
        ({"symmetric": 1}, "symmetric"),
        ({"granularity": "per_row"}, "granularity"),
        ({"axis": 2}, "axis 2 is not a dimension"),
        ({"axis": -1}, "axis: -1 is not between 0 and 15"),
        ({"axis": 1}, r"scale: its shape is \[2\]; \[3\]"),
        ({"granularity": "per_group", "axis": 1}, "per_group needs 'group_size'"),
        ({"granularity": "per_group", "axis": 1, "group_size": 2}, r"\[2, 2\] was expected"),
        ({"axis": None}, "per_channel needs 'axis'"),
        ({"scale": "nowhere"}, "scale: neither the transform nor the state dict has a tensor 'nowhere'"),
        ({"scale": None}, "scale: text was expected, not null"),
        ({"scale": "slim:transform/0/scale"}, "scale: .* is neither a tensor of the transform nor of the state dict"),
        ({"zero_point": "nowhere"}, "zero_point: neither the transform nor the state dict has a tensor 'nowhere'"),
        ({"scale": "weight"}, r"scale: its shape is \[2, 3\]; \[2\]"),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused(tmp_path, change, words) -> None:
    workload = quantized(torch.zeros(2, 3), {**kit.scheme(), **change}, torch.ones(2))
    with pytest.raises(CheckpointError, match=words) as caught:
        save(workload, tmp_path / "a.safetensors")
    assert caught.value.field.startswith("transforms[0].")
    assert list(tmp_path.iterdir()) == []


class Scaled(nn.Module):
    """Keeps the scale and zero point of its weight as state."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.scale = nn.Parameter(torch.tensor([0.5, 0.25]))
        self.register_buffer("zero", torch.tensor([3, -1], dtype=torch.int32))
        self.register_buffer("hidden", torch.tensor([0.5, 0.25]), persistent=False)
        self.twin = nn.Module()
        self.twin.scale = self.scale  # tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T * self.scale + self.zero + self.hidden


def scaled(**change) -> Workload:
    _, floats = kit.on_grid((2, 3), -128, 127, torch.tensor([[0.5], [0.25]]), torch.tensor([[3], [-1]]))
    model = Scaled()
    model.weight.data.copy_(floats)
    schemes = {"weight": kit.scheme(symmetric=False, zero_point="zero", **change)}
    workload = Workload(model.eval(), (torch.ones(2, 3),))
    return workload.with_model(model, Transform("test.grid", 1, {"schemes": schemes}))


@pytest.mark.parametrize("scale", ["scale", "twin.scale"])
@pytest.mark.parametrize("verify", [True, False])
def test_scales_may_be_tensors_of_the_state_dict(tmp_path, registry, scale, verify) -> None:
    workload = scaled(scale=scale)
    header = save(workload, tmp_path / "a.safetensors")
    assert header.tensors["weight"].packing.scale == "scale"
    assert not any(record.role == "transform" for record in header.tensors.values())
    assert header.stored["weight"].dtype == "int8"
    again = load(tmp_path / "a.safetensors", registry=registry, factory=Scaled, verify=verify, check_parity=True)
    kit.same_state(again.model, workload.model)
    save(again, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    other = Scaled()
    load_into(tmp_path / "a.safetensors", other)
    assert torch.equal(other.weight, workload.model.weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": "zero"}, "'zero' has the dtype int32"),
        ({"scale": "hidden"}, "neither the transform nor the state dict has a tensor 'hidden'"),
        ({"scale": "slim:buffer/hidden"}, "is neither a tensor of the transform nor of the state dict"),
        ({"scale": "weight", "granularity": "per_group", "axis": 1, "group_size": 1, "zero_point": None}, "unpacked"),
    ],
)
def test_what_cannot_be_a_scale_is_refused_in_writing_and_in_reading(tmp_path, change, words) -> None:
    workload = scaled(scale="scale")
    save(workload, tmp_path / "good.safetensors", parity=False)
    workload.model.weight.data.fill_(1.0)  # on the grid of itself, times one
    (transform,) = workload.transforms
    schemes = {"weight": {**transform.data["schemes"]["weight"], "scale": "scale", **change}}
    if "granularity" not in change:
        workload = scaled(scale="scale")
        if change["scale"] == "zero":
            workload.model.weight.data.zero_()
            workload.model.zero.fill_(1)
    transform = Transform("test.grid", 1, {"schemes": schemes})
    with pytest.raises(CheckpointError, match=words):
        save(Workload(workload.model, (torch.ones(2, 3),), transforms=(transform,)), tmp_path / "a", parity=False)
    container, slim, data = kit.split((tmp_path / "good.safetensors").read_bytes())
    slim["transforms"][0]["data"]["schemes"] = schemes
    (tmp_path / "b").write_bytes(kit.joined(container, slim, data))
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "b")


def test_a_scheme_for_an_integer_tensor_or_for_nothing_is_refused(tmp_path) -> None:
    workload = quantized(torch.zeros(2, 3), kit.scheme(), torch.ones(2))
    (transform,) = workload.transforms
    missing = Transform("test.grid", 1, {"schemes": {"wieght": kit.scheme()}}, dict(transform.tensors))
    with pytest.raises(CheckpointError, match="'wieght', which is no parameter"):
        save(workload.with_model(workload.model, missing), tmp_path / "a.safetensors")
    norm = nn.BatchNorm1d(2)
    counter = {"schemes": {"num_batches_tracked": kit.scheme(granularity="per_tensor")}}
    transform = Transform("t", 1, counter, {"scale": torch.ones(())})
    with pytest.raises(CheckpointError, match="a packed tensor is a float tensor, not int64"):
        save(Workload(norm, (torch.ones(2, 2),), transforms=(transform,)), tmp_path / "a.safetensors")


def test_integers_beyond_their_bits_are_refused_when_read() -> None:
    packing = Packing("int8", 4, True, "per_tensor", None, None, "scale", None)
    with pytest.raises(CheckpointError, match="integers from -8 to 8; 4 bits go from -8 to 7"):
        from_integers(torch.tensor([-8, 8], dtype=torch.int8), packing, (2,), torch.float32, torch.ones(()), None, "w")
    packing = Packing("int4", 4, True, "per_tensor", None, None, "scale", None)
    with pytest.raises(CheckpointError, match="unused half"):
        from_integers(torch.tensor([0x10], dtype=torch.uint8), packing, (1,), torch.float32, torch.ones(()), None, "w")
