"""Sparse tensors in and out of bytes: bit for bit, in as many bytes as the closed form says, never more than dense."""

from __future__ import annotations

import math

import checkpoint_kit as kit
import numpy as np
import pytest
import sparse_kit
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slim_core.checkpoint import inspect, load, load_into, save, verify
from slim_core.checkpoint.packing import Packing
from slim_core.checkpoint.quantized import from_integers, to_integers
from slim_core.checkpoint.sparse import Sparse, choose, from_matrix, pack, stored_bytes, to_matrix, unpack
from slim_core.checkpoint.sparse_tensors import from_sparse, to_sparse
from slim_core.errors import CheckpointError
from slim_core.workload import Transform, Workload

DTYPES = {torch.float64: 64, torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}


@st.composite
def patterns(draw, shape: tuple[int, ...]):
    """Draw how a tensor of a shape may be stored; ``count`` is left open."""
    kinds = ["bitmap", "gaps"] if len(shape) < 2 else ["bitmap", "gaps", "blocks", "n_m"]
    kind = draw(st.sampled_from(kinds))
    if kind in ("bitmap", "gaps"):
        return Sparse(kind)
    where = {"layout": draw(st.sampled_from(["flat", "channels"])), "axis": draw(st.integers(0, 1))}
    if kind == "blocks":
        return Sparse(kind, block=(draw(st.integers(1, 5)), draw(st.integers(1, 5))), **where)
    m = draw(st.integers(2, 8))
    return Sparse(kind, n=draw(st.integers(1, m - 1)), m=m, **where)


def shaped(weight: np.ndarray, sparse: Sparse) -> tuple[np.ndarray, int]:
    """Return the weight with zeros where N:M wants them, and the count of the form; by explicit loops."""
    if sparse.packing in ("bitmap", "gaps"):
        return weight, int(np.count_nonzero(weight))
    matrix = to_matrix(weight, sparse.layout, sparse.axis).copy()
    taps, height, width = matrix.shape
    count = 0
    if sparse.packing == "n_m":
        for tap, row in np.ndindex(taps, height):
            for start in range(0, width, sparse.m):
                left = sparse.n
                for column in range(start, min(start + sparse.m, width)):
                    if left == 0:
                        matrix[tap, row, column] = 0
                    left -= int(matrix[tap, row, column] != 0)
    else:
        rows, columns = sparse.block
        for tap, top, left in np.ndindex(taps, -(-height // rows), -(-width // columns)):
            block = matrix[tap, top * rows : (top + 1) * rows, left * columns : (left + 1) * columns]
            count += int(bool(np.count_nonzero(block)))
    return from_matrix(matrix, weight.shape, sparse.layout, sparse.axis), count


def gap_bytes(weight: np.ndarray) -> int:
    """Return how many bytes the gaps take, by a loop: one per element, and one for every 255 zeros before it."""
    found = zeros = 0
    for value in weight.reshape(-1).tolist():
        if value:
            found += 1 + zeros // 255
            zeros = 0
        else:
            zeros += 1
    return found


def counted(sparse: Sparse, count: int, weight: np.ndarray) -> Sparse:
    index = gap_bytes(weight) if sparse.packing == "gaps" else 0
    return Sparse(sparse.packing, count, block=sparse.block, index=index, layout=sparse.layout, axis=sparse.axis)


@st.composite
def cases(draw):
    """Draw a dtype, bit patterns with a density of zeros, and a form that stores them."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    sparse = draw(patterns(shape))
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    bits = DTYPES[dtype]
    raw = rng.randint(0, 256, (*shape, bits // 8)).astype(np.uint8)  # every bit pattern: NaN with payload, -0.0, …
    elements = raw.reshape(-1).view(f"u{bits // 8}").reshape(shape)
    elements = np.where(rng.rand(*shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), 0, elements)
    elements, count = shaped(elements.astype(f"u{bits // 8}"), sparse)
    if sparse.packing != "n_m":
        sparse = counted(sparse, count, elements)
    return dtype, shape, sparse, torch.from_numpy(elements.view(f"i{bits // 8}").copy()).view(dtype)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_bit_comes_back_from_as_many_bytes_as_the_closed_form_says(case) -> None:
    dtype, shape, sparse, values = case
    stored = to_sparse(values, None, shape, sparse)
    assert stored.dtype == torch.uint8
    assert tuple(stored.shape) == (stored_bytes(sparse, shape, DTYPES[dtype], ""),)
    again = from_sparse(stored, None, shape, dtype, sparse, "w")
    assert (again.dtype, tuple(again.shape)) == (dtype, shape)
    assert not values.numel() or kit.bits(again) == kit.bits(values)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["int8", "uint8", "int4"]), st.integers(0, 2**31), st.data())
def test_integers_come_back_too(kind, seed, data) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    sparse = data.draw(patterns(shape))
    packing = Packing(kind, 4 if kind == "int4" else 8, kind != "uint8", "per_tensor", None, None, "s", None)
    rng = np.random.RandomState(seed)
    integers = rng.randint(packing.low, packing.high + 1, shape) * (rng.rand(*shape) < 0.5)
    integers, count = shaped(integers, sparse)
    if sparse.packing != "n_m":
        sparse = counted(sparse, count, integers)
    scale = torch.tensor(0.25)
    floats = torch.from_numpy(integers.astype(np.float32)) * scale
    dense = to_integers(floats, packing, scale, None, "w")
    stored = to_sparse(dense, packing, shape, sparse)
    bits = 4 if kind == "int4" else 8
    assert len(stored) == stored_bytes(sparse, shape, bits, "")
    again = from_sparse(stored, packing, shape, dense.dtype, sparse, "w")
    assert torch.equal(again, dense)
    assert torch.equal(from_integers(again, packing, shape, torch.float32, scale, None, "w"), floats)


# --- files ---


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "a.safetensors"
    sparse_kit.save_holder(path)
    return path


def test_a_file_brings_every_bit_back_and_says_how_it_holds_it(file) -> None:
    header = inspect(file)
    found = {name: record.sparse for name, record in header.tensors.items() if record.sparse is not None}
    assert {name: sparse.packing for name, sparse in found.items()} == {
        "bits": "bitmap", "rare": "gaps", "blocks": "blocks", "pairs": "n_m", "bytes": "bitmap", "halves": "n_m",
        "kept": "bitmap",
    }  # fmt: skip
    assert header.tensors["dense"].sparse is None
    assert all(header.stored[name].dtype == "uint8" for name in found)
    again = load(file, registry=sparse_kit.registry()).model
    kit.same_state(again, sparse_kit.holder())
    assert again.bits.is_contiguous(memory_format=torch.channels_last)
    assert verify(file).tensors == len(header.stored)


def test_saving_what_was_loaded_gives_the_same_bytes(file, tmp_path) -> None:
    again = load(file, registry=sparse_kit.registry())
    save(again, tmp_path / "b.safetensors", parity=False)
    assert (tmp_path / "b.safetensors").read_bytes() == file.read_bytes()


def test_load_into_and_mapped_loading_unfold_too(file) -> None:
    model = sparse_kit.Holder()
    load_into(file, model)
    kit.same_state(load(file, registry=sparse_kit.registry(), verify=False).model, sparse_kit.holder())
    for name, tensor in sparse_kit.holder().state_dict().items():
        assert kit.bits(model.state_dict()[name]) == kit.bits(tensor)


def test_the_stored_bytes_are_those_of_the_closed_form(file) -> None:
    header, model = inspect(file), sparse_kit.holder()

    def stored(name: str) -> int:
        return header.stored[name].nbytes

    nonzero = int((model.bits.view(torch.int32) != 0).sum())  # a negative zero is a value
    assert stored("bits") == 432 // 8 + 4 * nonzero
    assert header.tensors["bits"].sparse.count == nonzero
    rare = model.rare.detach().numpy()
    assert stored("rare") == gap_bytes(rare) + 4 * int(np.count_nonzero(rare))
    padded = torch.nn.functional.pad(model.blocks, (0, 0, 0, 2)).reshape(8, 4, 5, 8)
    blocks = int((padded != 0).any(3).any(1).sum())
    assert stored("blocks") == 5 + blocks * 32 * 2
    groups = 9 * 2 * 18
    assert stored("pairs") == math.ceil(groups * 3 / 8) + groups * 2 * 8  # C(4, 2) = 6: three bits a group
    assert stored("bytes") == 200 + int((model.bytes != 0).sum())
    groups = 41 * 10
    assert stored("halves") == math.ceil(groups * 2 / 8) + math.ceil(groups * 4 / 8)  # C(4, 1) = 4: two bits


def test_a_file_is_never_larger_for_its_hints(file, tmp_path) -> None:
    sparse_kit.save_holder(tmp_path / "dense.safetensors", key="spares")  # as long, and means nothing
    dense = (tmp_path / "dense.safetensors").stat().st_size
    assert file.stat().st_size < 0.6 * dense


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_no_density_makes_a_file_larger(tmp_path_factory, rows, columns, density, seed) -> None:
    folder = tmp_path_factory.mktemp("density")
    rng = np.random.RandomState(seed)
    weight = torch.from_numpy((rng.randn(rows, columns) * (rng.rand(rows, columns) < density)).astype(np.float32))
    model = nn.Linear(columns, rows, bias=False)
    model.weight = nn.Parameter(weight)
    sizes = []
    for key in ("sparse", "spares"):
        hints = {"weight": {"block": [1, 4], "layout": "flat", "axis": 1}}
        work = Workload(model, (torch.ones(1, columns),)).with_model(model, Transform("test.grid", 1, {key: hints}))
        save(work, folder / f"{key}.safetensors", parity=False)
        sizes.append((folder / f"{key}.safetensors").stat().st_size)
    assert sizes[0] <= sizes[1]
    loaded = load(
        folder / "sparse.safetensors", registry=kit.registry(), factory=lambda: nn.Linear(columns, rows, False)
    )
    assert kit.bits(loaded.model.weight) == kit.bits(weight)


@pytest.mark.parametrize(
    ("share", "packing"),
    [(0.5, "bitmap"), (0.85, "bitmap"), (0.9, "gaps"), (0.98, "gaps"), (0.999, "bitmap"), (0.0, None)],
)
def test_the_smallest_form_is_chosen(share, packing) -> None:
    rng = np.random.RandomState(0)
    elements = (rng.rand(64, 64) >= share).astype(np.uint32)
    chosen = choose(elements, 32, None, elements.nbytes)
    assert (chosen.packing if chosen else None) == packing


def test_a_pattern_that_one_weight_breaks_falls_back_to_the_bitmap() -> None:
    hint = Sparse("n_m", n=2, m=4, layout="flat", axis=1)
    elements = np.tile(np.array([1, 0, 1, 0], np.uint8), (64, 16))
    assert choose(elements, 8, hint, elements.nbytes) == hint
    elements[5, 1] = 1
    assert choose(elements, 8, hint, elements.nbytes).packing == "bitmap"


def test_blocks_beat_single_bits_where_whole_blocks_are_zero() -> None:
    elements = np.kron((np.random.RandomState(0).rand(8, 8) < 0.3).astype(np.uint8), np.ones((8, 8), np.uint8))
    hint = Sparse("blocks", block=(8, 8), layout="flat", axis=1)
    chosen = choose(elements, 8, hint, elements.nbytes)
    assert (chosen.packing, stored_bytes(chosen, (64, 64), 8, "")) == ("blocks", 8 + 64 * chosen.count)


def test_a_form_that_would_unfold_too_far_is_not_written() -> None:
    elements = np.zeros((4096, 64), np.uint32)
    hint = Sparse("blocks", block=(64, 64), layout="flat", axis=1)  # 8 bytes for a megabyte
    assert choose(elements, 32, hint, elements.nbytes).packing == "bitmap"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 800), max_size=12), st.integers(0, 600))
def test_gaps_of_any_length_come_back(zeros, behind) -> None:
    """Runs of zeros around the 255 that a byte cannot say."""
    elements = np.array([value for run in zeros for value in [*([0] * run), 7]] + [0] * behind, np.uint16)
    sparse = Sparse("gaps", len(zeros), index=gap_bytes(elements))
    stored = pack(elements, sparse, 16)
    assert len(stored) == stored_bytes(sparse, elements.shape, 16, "") == sum(1 + run // 255 + 2 for run in zeros)
    assert np.array_equal(unpack(stored, sparse, elements.shape, np.uint16, 16, "w"), elements)


def test_names_that_a_later_step_took_away_are_passed_over(tmp_path) -> None:
    model = nn.Linear(4, 4)
    record = Transform("test.grid", 1, {"sparse": {"gone.weight": {}}})
    save(Workload(model, (torch.ones(1, 4),)).with_model(model, record), tmp_path / "a.safetensors")
    assert inspect(tmp_path / "a.safetensors").tensors["weight"].sparse is None


@pytest.mark.parametrize(
    ("hints", "field"),
    [
        ([], "sparse"),
        ({"w": 1}, "sparse.w"),
        ({"w": {"block": [0, 4], "layout": "flat", "axis": 1}}, "sparse.w.block"),
        ({"w": {"block": [1024, 1024], "layout": "flat", "axis": 1}}, "sparse.w.block"),
        ({"w": {"block": [1, 4]}}, "sparse.w"),
        ({"w": {"n": 4, "m": 4, "layout": "flat", "axis": 1}}, "sparse.w.n"),
        ({"w": {"n": 2, "m": 17, "layout": "flat", "axis": 1}}, "sparse.w.m"),
        ({"w": {"n": 2, "m": 4, "layout": "rows", "axis": 1}}, "sparse.w.layout"),
        ({"w": {"n": 2, "m": 4, "layout": "flat", "axis": 2}}, "sparse.w.axis"),
    ],
)
def test_hints_are_checked_when_they_are_written(tmp_path, hints, field) -> None:
    model = nn.Linear(4, 4)
    work = Workload(model, (torch.ones(1, 4),)).with_model(model, Transform("test.grid", 1, {"sparse": hints}))
    with pytest.raises(CheckpointError) as caught:
        save(work, tmp_path / "a.safetensors")
    assert caught.value.field == f"transforms[0].data.{field}"
    assert list(tmp_path.iterdir()) == []
