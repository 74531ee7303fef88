"""Inputs drawn from a signature or read from a file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

from slim_core.errors import MeasureError
from slim_core.tensors import TensorSpec
from slim_latency.inputs import draw, read

PICTURE = TensorSpec("x", (None, 3, 8, 8), "float32", "input")
TOKENS = TensorSpec("ids", (None, None), "int64", "input")


def test_the_batch_fills_a_free_first_dimension() -> None:
    drawn = draw([PICTURE], batch=5)["x"]
    assert drawn.shape == (5, 3, 8, 8)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() < 1


def test_a_fixed_first_dimension_stays() -> None:
    assert draw([TensorSpec("x", (1, 4), "float32", "input")], batch=5)["x"].shape == (1, 4)


def test_integers_are_small_enough_for_any_table() -> None:
    drawn = draw([TOKENS], shapes={"ids": (2, 50)})["ids"]
    assert drawn.dtype == torch.int64
    assert set(drawn.flatten().tolist()) == {0, 1}


def test_the_same_seed_draws_the_same() -> None:
    assert torch.equal(draw([PICTURE], seed=3)["x"], draw([PICTURE], seed=3)["x"])
    assert not torch.equal(draw([PICTURE], seed=3)["x"], draw([PICTURE], seed=4)["x"])


def test_another_free_dimension_must_be_given() -> None:
    with pytest.raises(MeasureError, match=r"input 'ids' has the shape \(any, any\)") as caught:
        draw([TOKENS])
    assert "--shape ids=" in (caught.value.hint or "")


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 4, 8, 8), (0, 3, 8, 8)])
def test_a_shape_must_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeasureError, match="does not fit input 'x'"):
        draw([PICTURE], shapes={"x": shape})


def test_a_shape_for_nobody() -> None:
    with pytest.raises(MeasureError, match="no input 'y'"):
        draw([PICTURE], shapes={"y": (1,)})


def test_arrays_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", a=np.arange(3), b=np.ones((2, 2), np.float32))
    found = read(tmp_path / "in.npz")
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"].dtype == torch.float32


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "single.npy", np.ones(2))
    np.savez(tmp_path / "objects.npz", a=np.array([{"no": "pickle"}], dtype=object))
    for name in ("text.npz", "single.npy", "objects.npz", "absent.npz"):
        with pytest.raises(MeasureError, match="cannot read inputs") as caught:
            read(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)


def test_every_cut_and_many_flipped_bytes_of_a_file_are_one_clear_error_or_arrays(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez_compressed(path, a=np.arange(40), b=np.ones((2, 2), np.float32))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(MeasureError, match="cannot read inputs"):
            read(path)
    for position in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
            with contextlib.suppress(MeasureError):
                read(path)
