"""``fashion-mnist``: 60,000 training and 10,000 validation pictures of clothes, 28x28 pixels, grey.

Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747; MIT licence. The files are found, never fetched unless that is
asked for.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from slim_core.data import Dataset, TensorSource
from slim_core.errors import DataError
from slim_core.files import atomic_path
from slim_zoo.data.augment import CropFlip, Normalize
from slim_zoo.data.idx import AGAIN, parse_idx, uncompressed

#: Where Debian's package dataset-fashion-mnist puts the files.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PUBLISHER = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
#: file -> sha256 of its uncompressed content, the same for every way of packing it
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SIDE = 28
#: mean and standard deviation of the training pictures in 0..255, at 28x28
MEAN, STD = 72.94035, 90.02118


def fashion_mnist(
    *,
    batch_size: int = 128,
    size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    augment: bool = True,
    folder: str | None = None,
    download: bool = False,
) -> Dataset:
    """Return Fashion-MNIST.

    The files are taken from ``folder`` if it is given; else, if ``SLIM_DATA`` is set, from
    ``$SLIM_DATA/fashion-mnist`` or ``$SLIM_DATA``; else from where Debian's package ``dataset-fashion-mnist`` puts
    them. A place that was named and does not hold them is an error. Training shuffles, shifts by up to an eighth of
    the size and mirrors.

    Args:
        batch_size: samples per batch.
        size: height and width: 28 as published, 32 by two black pixels around, others by bilinear interpolation.
        limit: keep only the first so many training pictures, and at most as many for validation (for tests).
        seed: of the order and the augmentation.
        augment: shift and mirror the training pictures.
        folder: where the four files are, plain or gzipped.
        download: fetch missing files from the publisher into ``folder`` or ``$SLIM_DATA/fashion-mnist``; they are
            checked.

    Raises:
        DataError: the files are not there or are damaged.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, not {limit}")
    place = _download(folder) if download else _find(folder)
    train = _load(place, "train", size, limit)
    val = _load(place, "t10k", size, limit)
    normalize = Normalize(MEAN, STD)
    shift = CropFlip(max(1, size // 8), flip=True, fill=-MEAN / STD)
    return Dataset(
        train=TensorSource(
            *train, batch_size, shuffle=True, seed=seed, prepare=normalize, augment=shift if augment else None
        ),
        val=TensorSource(*val, batch_size, prepare=normalize),
        example_inputs=(normalize(val[0][:1]),),
        num_classes=10,
        input_shape=(1, size, size),
        task_kwargs={"num_classes": 10},
        name=f"fashion-mnist from {_place_name(place, folder)}",
        class_names=CLASSES,
    )


def _load(folder: Path, part: str, size: int, limit: int | None) -> tuple[Tensor, Tensor]:
    images_at = _file(folder, f"{part}-images-idx3-ubyte")
    labels_at = _file(folder, f"{part}-labels-idx1-ubyte")
    images = parse_idx(uncompressed(images_at), str(images_at))
    labels = parse_idx(uncompressed(labels_at), str(labels_at))
    if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise DataError(
            f"the file holds {' x '.join(map(str, images.shape))} values, not N x 28 x 28",
            where=str(images_at),
            hint=AGAIN,
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(
            f"the file holds {labels.size} labels for {len(images)} pictures", where=str(labels_at), hint=AGAIN
        )
    if labels.size and labels.max() >= len(CLASSES):
        raise DataError(
            f"the file holds label {labels.max()}; the largest is {len(CLASSES) - 1}", where=str(labels_at), hint=AGAIN
        )
    pictures = torch.tensor(images[:limit])[:, None]  # (N, 1, 28, 28), uint8
    return resized(pictures, size), torch.tensor(labels[:limit]).long()


def resized(pictures: Tensor, size: int) -> Tensor:
    """Return 28x28 pictures ``(N, 1, 28, 28)`` in another size, still ``uint8``."""
    if size == SIDE:
        return pictures
    if size == SIDE + 4:
        return functional.pad(pictures, (2, 2, 2, 2))
    floats = functional.interpolate(
        pictures.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def _candidates(folder: str | None) -> list[Path]:
    """Return where the files may be. Who names a place gets the data from there or not at all."""
    if folder is not None:
        return [Path(folder)]
    data = os.environ.get("SLIM_DATA")
    return [Path(data) / "fashion-mnist", Path(data)] if data else [SYSTEM_FOLDER]


def _place_name(place: Path, folder: str | None) -> str:
    """Return where the files came from, without a path of this machine."""
    if folder is not None:
        return "the folder that was given"
    return "SLIM_DATA" if os.environ.get("SLIM_DATA") else f"{SYSTEM_FOLDER}"


def _file(folder: Path, name: str) -> Path:
    plain, zipped = folder / name, folder / f"{name}.gz"
    return plain if plain.exists() else zipped


def _find(folder: str | None) -> Path:
    candidates = _candidates(folder)
    for place in candidates:
        missing = [name for name in FILES if not _file(place, name).is_file()]
        if not missing:
            return place
        if len(missing) < len(FILES):
            raise DataError(
                f"Fashion-MNIST is incomplete: {', '.join(missing)} is missing",
                where=str(place),
                hint="put the file there (plain or .gz), or ask for download=True",
            )
    named = "folder" if folder is not None else "SLIM_DATA" if os.environ.get("SLIM_DATA") else ""
    if named == "SLIM_DATA" and not Path(os.environ["SLIM_DATA"]).is_dir():
        what = f"SLIM_DATA is set to '{os.environ['SLIM_DATA']}', which is no folder"
    else:
        what = f"the files of Fashion-MNIST are not there{f', where {named} points to' if named else ''}"
    if named == "SLIM_DATA":
        hint = (
            f"unset SLIM_DATA to use {SYSTEM_FOLDER} (`apt install dataset-fashion-mnist`), put the files into that "
            "folder, or ask for download=True"
        )
    else:
        hint = (
            "set SLIM_DATA to the folder that holds them; or `apt install dataset-fashion-mnist`; or ask for "
            "download=True"
        )
    raise DataError(
        what,
        where=", ".join(map(str, candidates)),
        hint=f"{hint} (about 30 MB); the data set 'digits' needs no files",
    )


def check_files(*, folder: str | None = None, download: bool = False, **_others: object) -> None:
    """Look whether the files are there, without reading them. Takes the arguments of :func:`fashion_mnist`.

    Raises:
        DataError: they are not, or not all of them.
    """
    if not download:
        _find(folder)


def _download(folder: str | None) -> Path:
    data = os.environ.get("SLIM_DATA")
    if folder is None and not data:
        raise DataError(
            "download=True needs to know where to put the files", hint="pass folder=…, or set SLIM_DATA to a folder"
        )
    place = Path(folder) if folder is not None else Path(str(data)) / "fashion-mnist"
    for name, digest in FILES.items():
        if not _file(place, name).is_file():
            _fetch(f"{PUBLISHER}/{name}.gz", place / f"{name}.gz", digest)
    return place


def _fetch(url: str, target: Path, digest: str) -> None:
    """Fetch a gzipped file and keep it only if its content has the expected sha256."""
    with atomic_path(target) as staging:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - a constant http address; the content is checked
                staging.write_bytes(answer.read(1 << 26))
        except OSError as error:
            raise DataError(f"cannot fetch {url}: {error}", hint="fetch it by other means and set SLIM_DATA") from error
        found = hashlib.sha256(uncompressed(staging)).hexdigest()
        if found != digest:
            raise DataError(f"what {url} sent is not the published file: sha256 {found}, expected {digest}")


fashion_mnist.check = check_files  # type: ignore[attr-defined]  # asked when a recipe is checked, before anything is read
