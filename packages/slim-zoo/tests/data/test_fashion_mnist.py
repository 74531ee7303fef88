from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from slim_core.errors import DataError
from slim_zoo.data import fashion_mnist as fashion_mnist_builder
from slim_zoo.data.idx import parse_idx, read_idx

module = __import__("slim_zoo.data.fashion_mnist", fromlist=["x"])


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


RANDOM = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": RANDOM.integers(0, 256, (30, 28, 28)),
    "train-labels-idx1-ubyte": RANDOM.integers(0, 10, 30),
    "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (12, 28, 28)),
    "t10k-labels-idx1-ubyte": RANDOM.integers(0, 10, 12),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small files in the published format, two of them gzipped."""
    place = tmp_path / "fashion-mnist"
    place.mkdir()
    for number, (name, array) in enumerate(ARRAYS.items()):
        if number % 2:
            (place / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (place / name).write_bytes(idx(array))
    return place


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 28, 28)])
def test_idx_files_are_read_back(tmp_path: Path, shape: tuple[int, ...]):
    array = RANDOM.integers(0, 256, shape).astype(np.uint8)
    for name, data in (("plain", idx(array)), ("zipped", gzip.compress(idx(array)))):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_idx(tmp_path / name), array)


WHOLE = idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "two zero bytes"),
        (b"PK\3\4 something else", "two zero bytes"),
        (WHOLE[:2] + b"\x0d" + WHOLE[3:], "type 0x0d"),
        (WHOLE[:3] + b"\0" + WHOLE[4:], "0 dimensions"),
        (WHOLE[:3] + b"\xff" + WHOLE[4:], "255 dimensions"),
        (WHOLE[:9], "damaged IDX header"),
        (WHOLE[:-1], "5 values, but its header says 2 x 3"),
        (WHOLE + b"\0", "7 values, but its header says 2 x 3"),
        (WHOLE[:4] + b"\xff" * 8 + WHOLE[12:], "its header says"),
    ],
)
def test_what_is_not_exactly_an_idx_file_is_refused(data: bytes, message: str):
    with pytest.raises(DataError, match=message) as caught:
        parse_idx(data, "some/file")
    assert caught.value.what.startswith("the file ")
    assert caught.value.where == "some/file"
    assert caught.value.hint


def test_a_damaged_gzip_file_is_refused(tmp_path: Path):
    zipped = gzip.compress(WHOLE * 100)
    for length in (2, 12, len(zipped) - 4):
        (tmp_path / "x.gz").write_bytes(zipped[:length])
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(tmp_path / "x.gz")


def test_the_files_are_found_in_slim_data(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for place in (folder, folder.parent):
        monkeypatch.setenv("SLIM_DATA", str(place))
        data = fashion_mnist_builder(size=28)
        assert np.array_equal(data.train.inputs[:, 0].numpy(), ARRAYS["train-images-idx3-ubyte"])
        assert np.array_equal(data.val.targets.numpy(), ARRAYS["t10k-labels-idx1-ubyte"])


@pytest.mark.parametrize("made", [True, False])
def test_a_place_that_was_named_is_not_passed_over_for_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
):
    monkeypatch.setattr(module, "SYSTEM_FOLDER", folder)  # the data would be here
    named = tmp_path / "named"
    if made:
        named.mkdir()
    monkeypatch.setenv("SLIM_DATA", str(named))
    for look in (fashion_mnist_builder, fashion_mnist_builder.check):
        with pytest.raises(DataError, match="SLIM_DATA") as caught:
            look()
        assert str(named) in caught.value.where
        assert "unset SLIM_DATA" in caught.value.hint
    monkeypatch.delenv("SLIM_DATA")
    fashion_mnist_builder.check(size=28)


def test_the_name_says_where_the_files_came_from(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert fashion_mnist_builder(folder=str(folder)).name == "fashion-mnist from the folder that was given"
    monkeypatch.setenv("SLIM_DATA", str(folder))
    assert fashion_mnist_builder().name == "fashion-mnist from SLIM_DATA"


def test_pictures_stay_bytes_in_memory_and_come_out_normalized(folder: Path):
    data = fashion_mnist_builder(folder=str(folder), size=28, augment=False, batch_size=30)
    assert data.train.inputs.dtype == torch.uint8
    inputs, _ = next(iter(data.val))
    expected = (ARRAYS["t10k-images-idx3-ubyte"] - module.MEAN) / module.STD
    np.testing.assert_allclose(inputs[:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data.example_inputs[0], inputs[:1])


def test_size_32_is_two_black_pixels_around(folder: Path):
    data = fashion_mnist_builder(folder=str(folder), size=32)
    padded = np.pad(ARRAYS["train-images-idx3-ubyte"], ((0, 0), (2, 2), (2, 2)))
    assert np.array_equal(data.train.inputs[:, 0].numpy(), padded)


def test_another_size_is_interpolated(folder: Path):
    data = fashion_mnist_builder(folder=str(folder), size=14)
    means = ARRAYS["train-images-idx3-ubyte"].reshape(30, 14, 2, 14, 2).mean((2, 4))
    assert data.train.inputs.shape == (30, 1, 14, 14)
    assert np.corrcoef(data.train.inputs[:, 0].numpy().ravel(), means.ravel())[0, 1] > 0.9


def test_limit_keeps_the_first_ones(folder: Path):
    data = fashion_mnist_builder(folder=str(folder), limit=5)
    assert data.train.targets.tolist() == ARRAYS["train-labels-idx1-ubyte"][:5].tolist()
    assert len(data.val.inputs) == 5


def test_a_folder_that_is_not_there_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="are not there") as caught:
        fashion_mnist_builder(folder=str(tmp_path / "nowhere"))
    assert "SLIM_DATA" in str(caught.value)
    assert "download=True" in str(caught.value)
    monkeypatch.delenv("SLIM_DATA", raising=False)
    monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "none")
    with pytest.raises(DataError, match="are not there"):
        fashion_mnist_builder()


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(29), "29 labels for 30 pictures"),
        ("train-labels-idx1-ubyte", np.full(30, 10), "label 10"),
        ("train-images-idx3-ubyte", np.zeros((30, 28, 27)), "30 x 28 x 27"),
        ("t10k-labels-idx1-ubyte", np.zeros((12, 1)), "12 labels"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(folder: Path, name: str, array: np.ndarray, message: str):
    (folder / name).write_bytes(idx(array))
    with pytest.raises(DataError, match=message):
        fashion_mnist_builder(folder=str(folder))


def test_a_missing_file_is_named(folder: Path):
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="incomplete: t10k-images-idx3-ubyte is missing"):
        fashion_mnist_builder(folder=str(folder))


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A server of the four files on this machine, in the publisher's place."""
    published = folder.parent / "published"
    published.mkdir()
    for name, array in ARRAYS.items():
        (published / f"{name}.gz").write_bytes(gzip.compress(idx(array)))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setattr(module, "PUBLISHER", f"http://127.0.0.1:{running.server_port}")
        digests = {name: hashlib.sha256(idx(array)).hexdigest() for name, array in ARRAYS.items()}
        monkeypatch.setattr(module, "FILES", digests)
        yield published
        running.shutdown()
        thread.join()


def test_download_fetches_what_is_missing_once(server: Path, tmp_path: Path):
    place = tmp_path / "new"
    data = fashion_mnist_builder(folder=str(place), download=True, size=28)
    assert np.array_equal(data.train.inputs[:, 0].numpy(), ARRAYS["train-images-idx3-ubyte"])
    assert sorted(path.name for path in place.iterdir()) == sorted(f"{name}.gz" for name in ARRAYS)
    for path in server.iterdir():
        path.unlink()
    assert fashion_mnist_builder(folder=str(place), download=True).num_classes == 10


def test_a_download_with_another_content_is_not_kept(server: Path, tmp_path: Path):
    (server / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(12))))
    with pytest.raises(DataError, match="not the published file"):
        fashion_mnist_builder(folder=str(tmp_path / "new"), download=True)
    assert not (tmp_path / "new" / "t10k-labels-idx1-ubyte.gz").exists()


def test_a_failed_download_says_what_to_do(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (server / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="cannot fetch"):
        fashion_mnist_builder(folder=str(tmp_path / "new"), download=True)
    monkeypatch.delenv("SLIM_DATA", raising=False)
    with pytest.raises(DataError, match="where to put the files"):
        fashion_mnist_builder(download=True)


@pytest.mark.skipif(not module.SYSTEM_FOLDER.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_the_real_files_have_the_recorded_checksums_and_statistics():
    data = fashion_mnist_builder(folder=str(module.SYSTEM_FOLDER), size=28)
    assert (len(data.train.inputs), len(data.val.inputs)) == (60_000, 10_000)
    assert torch.bincount(data.train.targets).tolist() == [6000] * 10
    values = data.train.inputs.double()
    assert (values.mean().item(), values.std().item()) == (
        pytest.approx(module.MEAN, 1e-6),
        pytest.approx(module.STD, 1e-6),
    )
    from slim_zoo.data.idx import uncompressed

    for name, digest in module.FILES.items():
        assert hashlib.sha256(uncompressed(module.SYSTEM_FOLDER / f"{name}.gz")).hexdigest() == digest
