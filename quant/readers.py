"""Datasets on disk -> named arrays, in slices. One format a function; files are mapped, not loaded, where they can be.

A `Dataset` holds array-likes of one length; slicing it is what reads. So memory doesn't grow with the file.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import DataError

__all__ = ["Dataset", "batches", "check_labels", "open_data", "read_bin", "read_npz", "write_bin"]

Array = NDArray[Any]
# Model input -> (shape of one sample with -1 for open dimensions, dtype).
Signature = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Dataset:
    """`inputs`: model input -> array [N, ...]; `labels`: int64 [N], or None."""

    path: Path
    inputs: Mapping[str, Array]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def batches(data: Dataset, size: int, limit: int | None = None) -> Iterator[dict[str, Array]]:
    """Slices of `size` samples in order (the last one may be shorter), at most `limit` of them."""
    for number, start in enumerate(range(0, len(data), size)):
        if limit is not None and number >= limit:
            return
        yield {name: array[start : start + size] for name, array in data.inputs.items()}


def open_data(path: Path, signature: Signature) -> Dataset:
    """Open a .bin or .npz file as data for a model. Raises DataError naming the file and what is wrong."""
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    if path.suffix == ".npz":
        return read_npz(path, signature)
    if path.suffix == ".bin":
        if len(signature) != 1:
            raise DataError(f"{path}: an image binary feeds one input, but the model has {sorted(signature)}")
        [(name, (shape, _))] = signature.items()
        return read_bin(path, name, shape)
    raise DataError(f"{path}: unknown data format {path.suffix!r}; known: .bin (image binary), .npz")


def read_bin(path: Path, name: str, shape: tuple[int, ...]) -> Dataset:
    """The seeds' image binary: int64 count | count float32 images [C, H, W] | count int64 labels, little endian.

    Source: paddle/fluid/inference/tests/api/full_ILSVRC2012_val_preprocess.py. `shape` is one image's; open
    dimensions (-1) are refused, since the file doesn't tell them.
    """
    if any(size < 0 for size in shape):
        raise DataError(f"{path}: the model leaves the image shape open ({list(shape)}); the file doesn't tell it")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
    if len(head) < 8:
        raise DataError(f"{path}: truncated: {size} bytes, not even a count")
    (count,) = struct.unpack("<q", head)
    each = 4 * int(np.prod(shape)) + 8
    if count < 1 or count > size // 8:
        raise DataError(f"{path}: not an image binary, or a wrong count: says {count} images in {size} bytes")
    if size != 8 + count * each:
        whole, rest = divmod(size - 8 - 8 * count, 4 * count)
        if rest == 0 and whole > 0:
            raise DataError(
                f"{path}: {count} images of {whole} values each, but the model reads {list(shape)} "
                f"({int(np.prod(shape))} values)"
            )
        raise DataError(
            f"{path}: truncated or a wrong count: {count} images need {8 + count * each} bytes, it has {size}"
        )
    images = np.memmap(path, "<f4", "r", offset=8, shape=(count, *shape))
    labels = np.memmap(path, "<i8", "r", offset=8 + count * (each - 8), shape=(count,))
    return Dataset(path, {name: images}, labels)


def write_bin(path: Path, parts: Iterator[tuple[Array, Array]], count: int) -> None:
    """Write an image binary of `count` images from parts of (float32 images, int64 labels), atomically."""
    staging = path.with_name(f".{path.name}.part")
    labels = []
    try:
        with staging.open("wb") as file:
            file.write(struct.pack("<q", count))
            for images, some in parts:
                file.write(np.ascontiguousarray(images, "<f4").data)
                labels.append(np.asarray(some, "<i8"))
            file.write(np.concatenate(labels).data)
        staging.rename(path)
    finally:
        staging.unlink(missing_ok=True)


def read_npz(path: Path, signature: Signature) -> Dataset:
    """An .npz with one array per model input, samples first, and optionally `label` (integers [N])."""
    arrays: dict[str, Array] = {}
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or damaged")
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                arrays[name] = stored[name]
    except ValueError as error:
        why = "holds pickled objects, which are not loaded" if "pickle" in str(error).lower() else "damaged"
        raise DataError(f"{path}: {why}") from error
    except (OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise DataError(f"{path}: not an .npz file, or damaged") from error
    labels = arrays.pop("label", None)
    for name, (shape, dtype) in signature.items():
        if name not in arrays:
            raise DataError(f"{path}: no array for the model's input {name!r}; it has {sorted(arrays)}")
        array = arrays[name]
        if str(array.dtype) != dtype:
            raise DataError(f"{path}: array {name!r} is {array.dtype}, but the model reads {dtype}")
        fits = array.ndim == len(shape) + 1 and all(w in (-1, g) for w, g in zip(shape, array.shape[1:], strict=True))
        if not fits:
            raise DataError(
                f"{path}: array {name!r} holds samples of {list(array.shape[1:])}, the model reads {list(shape)}"
            )
    chosen = {name: arrays[name] for name in signature}
    lengths = {len(array) for array in chosen.values()} | (
        {len(labels)} if labels is not None and labels.ndim else set()
    )
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: its arrays hold {sorted(lengths)} samples; one number above 0 is needed")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise DataError(f"{path}: 'label' is {labels.dtype}{list(labels.shape)}, not one integer a sample")
    return Dataset(path, chosen, None if labels is None else labels.astype(np.int64))


def check_labels(data: Dataset, classes: int) -> Array:
    """The labels, in memory. Raises DataError when there are none, or one lies outside 0..classes-1."""
    if data.labels is None:
        raise DataError(f"{data.path}: has no labels (an array named 'label')")
    labels = np.asarray(data.labels)
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if bad.size:
        raise DataError(f"{data.path}: label {labels[bad[0]]} of sample {bad[0]} is out of range 0..{classes - 1}")
    return labels
