"""Sparse tensors of damaged and hostile files: ``CheckpointError`` and nothing else, in memory that the file bounds."""

from __future__ import annotations

import copy
import subprocess
import sys
from textwrap import dedent

import checkpoint_kit as kit
import numpy as np
import pytest
import sparse_kit
from test_hostile import WRONG, at, named, refusal, replaced, walk

from slim_core.checkpoint import inspect, load, verify
from slim_core.checkpoint.sparse import Sparse, choose, stored_bytes, unfolded, unpack
from slim_core.errors import CheckpointError

SPARSE = ("bits", "rare", "blocks", "pairs", "bytes", "halves", "kept")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "a.safetensors"
    sparse_kit.save_holder(path)
    return path


@pytest.fixture(scope="module")
def parts(file):
    return kit.split(file.read_bytes())


@pytest.fixture
def attempt(tmp_path):
    path = tmp_path / "hostile.safetensors"
    registry = sparse_kit.registry()

    def read(raw: bytes) -> str | None:
        path.write_bytes(raw)
        for name, reader in (("inspect", inspect), ("verify", verify), ("load", lambda p: load(p, registry=registry))):
            if refusal(reader, path) is not None:
                return name
        return None

    return read


@pytest.mark.slow
def test_every_field_of_a_sparse_record_replaced_or_deleted(parts, attempt) -> None:
    container, slim, data = parts
    assert attempt(kit.joined(*parts)) is None
    accepted = set()
    for name in SPARSE:
        start = ("tensors", name)
        for path in walk(at(slim, start), start):
            if path[-1] == "sha256":
                continue
            old = at(slim, path)
            for new in WRONG:
                if (type(new) is not type(old) or new != old) and attempt(
                    kit.joined(container, replaced(slim, path, new), data)
                ) is None:
                    accepted.add((named(path), repr(new)))
            fresh = copy.deepcopy(slim)
            del at(fresh, path[:-1])[path[-1]]
            if attempt(kit.joined(container, fresh, data)) is None:
                accepted.add((named(path), "deleted"))
            if isinstance(old, dict):
                fresh = copy.deepcopy(slim)
                at(fresh, path)["unknown"] = 1
                if attempt(kit.joined(container, fresh, data)) is None:
                    accepted.add((named(path), "unknown key"))
    # What is not said of a tensor has its default: it is row-major, it takes a gradient.
    assert accepted == {("tensors.bits.layout", "deleted"), ("tensors.halves.frozen", "deleted")}


@pytest.mark.parametrize("name", SPARSE)
def test_counts_sizes_and_shapes_that_do_not_make_the_stored_bytes_are_refused_unread(parts, attempt, name) -> None:
    container, slim, data = parts
    record = slim["tensors"][name]
    forms = [{**record["sparse"], key: value + step} for key, value in record["sparse"].items()
             if type(value) is int and key != "axis" for step in (-1, 1)]  # fmt: skip
    for form in forms:
        changed = replaced(slim, ("tensors", name, "sparse"), form)
        assert attempt(kit.joined(container, changed, data)) in ("inspect", "load"), form
    for shape in ([2**40, 2**20], [record["shape"][0] * 64, *record["shape"][1:]], [], [0]):
        changed = replaced(slim, ("tensors", name, "shape"), shape)
        assert attempt(kit.joined(container, changed, data)) == "inspect", shape
    for dtype in ("int8", "bool", "int64"):
        assert attempt(kit.joined(container, replaced(slim, ("tensors", name, "dtype"), dtype), data)) == "inspect"


def test_hints_of_a_file_are_checked_when_it_is_read(parts, attempt) -> None:
    container, slim, data = parts
    accepted = set()
    start = ("transforms", 0, "data", "sparse")
    for path in walk(at(slim, start), start):
        old = at(slim, path)
        for new in WRONG:
            if (type(new) is not type(old) or new != old) and attempt(
                kit.joined(container, replaced(slim, path, new), data)
            ) is None:
                accepted.add((named(path[4:]), repr(new)))
    # No hint at all, and no pattern, are hints too; so is the other axis, which only the writer looks at.
    named_ones = ("blocks", "pairs", "bytes", "halves")
    assert accepted == {("", "{}")} | {(name, "{}") for name in named_ones} | {
        (f"{name}.axis", "0") for name in named_ones[:3]
    }


def test_without_verification_a_changed_byte_still_raises_nothing_else(file, tmp_path) -> None:
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    path, registry = tmp_path / "a.safetensors", sparse_kit.registry()
    refused = 0
    for position in range(start, len(raw), 23):
        flipped = bytearray(raw)
        flipped[position] ^= 0xFF
        path.write_bytes(bytes(flipped))
        refused += refusal(lambda item: load(item, registry=registry, verify=False), path) is not None
    assert refused > 10  # changed bitmaps do not have the right number of bits


def test_a_bitmap_with_another_number_of_bits_is_refused() -> None:
    stored = np.array([0b0000_0111, 1, 2], np.uint8)
    with pytest.raises(CheckpointError, match="3 bits set, and 2 values"):
        unpack(stored, Sparse("bitmap", 2), (8,), np.uint8, 8, "tensors.w")


def test_bits_behind_a_bitmap_are_refused() -> None:
    stored = np.array([0b1000_0001, 1, 2], np.uint8)
    with pytest.raises(CheckpointError, match="unused bits"):
        unpack(stored, Sparse("bitmap", 2), (7,), np.uint8, 8, "tensors.w")


def test_a_code_that_no_combination_has_is_refused() -> None:
    sparse = Sparse("n_m", n=2, m=4, layout="flat", axis=1)
    with pytest.raises(CheckpointError, match="a code is 7; 2:4 has 6"):
        unpack(np.array([7, 1, 2], np.uint8), sparse, (1, 4), np.uint8, 8, "tensors.w")


@pytest.mark.parametrize(
    ("index", "count", "words"),
    [
        ([0, 3], 1, "lead to 2 places, and 1 values"),
        ([0, 8], 2, "do not end inside"),
        ([255, 0], 1, "do not end inside"),
        ([3, 255], 1, "do not end inside"),
        ([], 1, "lead to 0 places"),
    ],
)
def test_gaps_that_lead_elsewhere_are_refused(index, count, words) -> None:
    stored = np.array([*index, *range(1, count + 1)], np.uint8)
    with pytest.raises(CheckpointError, match=words):
        unpack(stored, Sparse("gaps", count, index=len(index)), (9,), np.uint8, 8, "tensors.w")


def test_values_in_the_padding_are_refused() -> None:
    sparse = Sparse("blocks", 1, block=(2, 2), layout="flat", axis=1)
    with pytest.raises(CheckpointError, match="padding"):
        unpack(np.array([1, 1, 0, 3, 0], np.uint8), sparse, (1, 2), np.uint8, 8, "tensors.w")


@pytest.mark.parametrize(
    ("shape", "block", "count"),
    [
        ([2**19, 2**19], [64, 64], 0),  # a terabyte of zeros in blocks
        ([1, 2**26], [64, 64], 64),  # 256 MB in 1.2 MB, and 16 GB with the padding of its blocks
        ([2**22, 1], [1, 4096], 0),  # 16 MB in half a megabyte, and 64 GB with the padding
    ],
)
def test_a_file_that_would_unfold_to_more_than_256_times_its_bytes_is_refused_in_little_memory(
    parts, tmp_path, shape, block, count
) -> None:
    """Forms whose bytes add up, and that are small, in a process with 1 GB to spare."""
    container, slim, data = parts
    form = {"packing": "blocks", "count": count, "block": block, "layout": "flat", "axis": 1}
    stored = stored_bytes(Sparse("blocks", count, block=tuple(block), layout="flat", axis=1), shape, 32, "")
    slim = replaced(
        slim, ("tensors", "dense"), {**slim["tensors"]["dense"], "dtype": "float32", "shape": shape, "sparse": form}
    )
    offsets = container["dense"]["data_offsets"]
    grown = stored - (offsets[1] - offsets[0])
    container = copy.deepcopy(container)
    for item in container.values():
        if "data_offsets" in item and item["data_offsets"][0] >= offsets[1]:
            item["data_offsets"] = [value + grown for value in item["data_offsets"]]
    container["dense"] = {"dtype": "U8", "shape": [stored], "data_offsets": [offsets[0], offsets[0] + stored]}
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(kit.joined(container, slim, data[: offsets[0]] + bytes(stored) + data[offsets[1] :]))
    code = f"""
        import resource, sys
        from slim_core.checkpoint import inspect
        from slim_core.errors import CheckpointError
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        try:
            inspect({str(path)!r})
        except CheckpointError as error:
            print(error.field, error.what)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, timeout=60, check=True)
    assert "slim.tensors.dense.sparse" in done.stdout
    assert "more than 256 times" in done.stdout


def test_a_pattern_whose_blocks_are_nearly_all_padding_is_not_chosen() -> None:
    weight = np.zeros((1, 2**16), np.uint32)
    weight[0, :4096] = 1
    hint = Sparse("blocks", block=(64, 64), layout="flat", axis=1)
    chosen = choose(weight, 32, hint, weight.nbytes)
    assert chosen is not None
    assert 4 * unfolded(chosen, weight.shape) <= 256 * stored_bytes(chosen, weight.shape, 32, "")
