"""Datasets on disk -> named arrays, in slices. One format a function; files are mapped, not loaded, where they can be.

A `Dataset` holds columns of one length; slicing it is what reads. So memory doesn't grow with the file, except for text
formats, which are parsed whole. Formats of samples of unequal length are in `quant/datasets/formats.py`.
"""

import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from quant.datasets import user_functions
from quant.datasets.columns import DAMAGE, Array, Column, Dataset, Padded, Ragged, Signature, staged, values_of
from quant.datasets.formats import labels_beside, read_handwriting, read_lac, read_lac_bin, read_pairs
from quant.datasets.tagging import DICTIONARY, dictionary_beside
from quant.datasets.user_reader import check_fit, files_below, read_own
from quant.errors import DataError

__all__ = [
    "FORMATS",
    "Dataset",
    "Padded",
    "Ragged",
    "Signature",
    "batches",
    "by_length",
    "check_ids",
    "check_labels",
    "files_behind",
    "format_of",
    "head",
    "open_data",
    "read_bin",
    "read_npz",
    "take",
    "write_bin",
]

Reader = Callable[[Path, Signature, Path | None], Dataset]


def batches(data: Dataset, size: int, limit: int | None = None, begin: int = 0) -> Iterator[dict[str, Column]]:
    """Slices of `size` samples in order from sample `begin` (the last may be shorter), at most `limit` of them."""
    for number, start in enumerate(range(begin, len(data), size)):
        if limit is not None and number >= limit:
            return
        yield {name: column[start : start + size] for name, column in data.inputs.items()}


def head(data: Dataset, count: int) -> Dataset:
    """The first `count` samples."""
    inputs: dict[str, Column | Padded] = {}
    for name, column in data.inputs.items():
        inputs[name] = Padded(column.ragged[:count]) if isinstance(column, Padded) else column[:count]
    return Dataset(data.path, inputs, None if data.labels is None else data.labels[:count])


def by_length(data: Dataset) -> Dataset:
    """The same samples sorted by the length of their first input, equal lengths in the file's order.

    Dense samples all have one length, so a dataset of them stays as it is. Sorting is a copy.
    """
    first = next(iter(data.inputs.values()))
    if not isinstance(first, Ragged | Padded):
        return data
    return take(data, np.argsort(_ragged(first).lengths, kind="stable"))


def take(data: Dataset, places: Array) -> Dataset:
    """The samples at `places`, int64 [n], in that order, as a copy."""
    inputs: dict[str, Column | Padded] = {}
    for name, column in data.inputs.items():
        inputs[name] = Padded(column.ragged.take(places)) if isinstance(column, Padded) else _reorder(column, places)
    return Dataset(data.path, inputs, None if data.labels is None else _reorder(data.labels, places))


def _ragged(column: Ragged | Padded) -> Ragged:
    return column.ragged if isinstance(column, Padded) else column


def _reorder(column: Column, order: Array) -> Column:
    return column.take(order) if isinstance(column, Ragged) else column[order]


def open_data(
    path: Path,
    signature: Signature,
    format: str | None = None,
    labels: Path | None = None,
    *,
    scored: bool = True,
) -> Dataset:
    """Open a data file for a model: as `format`, a key of FORMATS or a user's reader, or as its suffix tells.

    `labels` is a file of labels, for the format that doesn't carry its own (pairs); when the data is to be `scored`, a
    file beside it is looked for. Raises DataError naming the file and what is wrong.
    """
    own = format is not None and ":" in format
    if not (path.exists() if own else path.is_file()):
        raise DataError(f"{path}: no such data file")
    name = format_of(path, format)
    if own:
        _no_label_file(path, labels)
        return read_own(path, signature, name)
    _, read = FORMATS[name]
    if name == "pairs" and scored and labels is None:
        labels = labels_beside(path)
    return read(path, signature, labels)


def format_of(path: Path, format: str | None = None) -> str:
    """The name of a file's format: `format` itself, or what the suffix tells. DataError when it isn't a known one.

    A user's own reader is a format too: "module:function".
    """
    if format is not None and ":" in format:
        user_functions.check_name(format)
        return format
    name = _SUFFIXES.get(path.suffix) if format is None else format
    if name is None or name not in FORMATS:
        shown = path.suffix if format is None else format
        raise DataError(f"{path}: unknown data format {shown!r}; name one with --format: {', '.join(FORMATS)}")
    return name


def files_behind(path: Path, format: str | None = None, labels: Path | None = None) -> dict[str, Path]:
    """Every file that scored data is read from: role -> file. Beside the data itself those that are there.

    With a user's own reader also the file of its module; and where the data is a directory, all files in it.
    Raises DataError for a label file that the format has no use for.
    """
    name = format_of(path, format)
    if ":" in name:
        _no_label_file(path, labels)
        data = (
            {f"data/{file.relative_to(path)}": file for file in files_below(path)} if path.is_dir() else {"data": path}
        )
        return {**_tags_beside(path, name), **data, "reader": user_functions.source_of(name)}
    beside: dict[str, Path | None] = {}
    if name == "pairs":
        beside = {"labels": labels_beside(path) if labels is None else labels}
    else:
        _no_label_file(path, labels)
    if name == "lac":
        beside = {other: path.with_name(other) for other in ("word.dic", "q2b.dic")}
    there = {role: file for role, file in beside.items() if file is not None and file.is_file()}
    return {"data": path, **_tags_beside(path, name), **there}


def _tags_beside(path: Path, format: str) -> dict[str, Path]:
    """The dictionary that names the tags of labels, where there is one, and the format may hold any."""
    dictionary = dictionary_beside(path)
    return {DICTIONARY: dictionary} if format not in ("images", "pairs") and dictionary.is_file() else {}


def _read_images(path: Path, signature: Signature) -> Dataset:
    """An image binary (`read_bin`) for a model with one input."""
    if len(signature) != 1:
        raise DataError(f"{path}: an image binary feeds one input, but the model has {sorted(signature)}")
    [(name, (shape, _))] = signature.items()
    return read_bin(path, name, shape)


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
    labels = []
    with staged(path) as file:
        file.write(struct.pack("<q", count))
        for images, some in parts:
            file.write(np.ascontiguousarray(images, "<f4").data)
            labels.append(np.asarray(some, "<i8"))
        file.write(np.concatenate(labels).data)


def read_npz(path: Path, signature: Signature) -> Dataset:
    """An .npz with one array per model input, samples first, and optionally `label`: numbers [N, ...].

    Integers become int64. One integer a sample is a class, for `check_labels`; what others are, a metric knows.
    """
    arrays: dict[str, Array] = {}
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file, or damaged")
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                arrays[name] = stored[name]
    except (OSError, *DAMAGE) as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error).lower()
        why = "holds pickled objects, which are not loaded" if pickled else "not an .npz file, or damaged"
        raise DataError(f"{path}: {why}") from error
    except MemoryError as error:
        raise DataError(f"{path}: its arrays don't fit into memory, or it is damaged") from error
    labels = arrays.pop("label", None)
    for name, wanted in signature.items():
        if name not in arrays:
            raise DataError(f"{path}: no array for the model's input {name!r}; it has {sorted(arrays)}")
        check_fit(path, name, arrays[name], *wanted)
    chosen = {name: arrays[name] for name in signature}
    lengths = {len(array) for array in chosen.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: its arrays hold {sorted(lengths)} samples; one number above 0 is needed")
    return Dataset(path, chosen, None if labels is None else _labels(path, labels, *lengths))


def _labels(path: Path, labels: Array, samples: int) -> Array:
    """Labels [samples, ...], integers and truth values as int64."""
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{path}: array 'label' is {labels.dtype}, not numbers")
    if labels.shape[:1] != (samples,):
        raise DataError(f"{path}: array 'label' is {labels.dtype}{list(labels.shape)}, but there are {samples} samples")
    if labels.dtype.kind == "u" and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{path}: array 'label' holds {int(labels.max())}, which is no int64")
    return labels if labels.dtype.kind == "f" else labels.astype(np.int64)


def check_labels(data: Dataset, classes: int) -> Column:
    """The labels, in memory. Raises DataError when there are none, or one lies outside 0..classes-1.

    Real numbers, and several numbers a sample, are no classes: a user's own metric knows what they are.
    The message counts samples from 0, and the records of sequences, as their readers do, from 1.
    """
    if data.labels is None:
        raise DataError(f"{data.path}: has no labels (an array named 'label', or a label file given with --labels)")
    labels = data.labels
    values = values_of(labels)
    if values.dtype.kind not in "iu" or values.shape not in ((len(values),), (len(values), 1)):
        return labels if isinstance(labels, Ragged) else values
    bad = np.flatnonzero((values < 0) | (values >= classes))
    if bad.size:
        place = f"record {labels.record(bad[0])}" if isinstance(labels, Ragged) else f"sample {bad[0]}"
        raise DataError(f"{data.path}: label {values.flat[bad[0]]} of {place} is out of range 0..{classes - 1}")
    return Ragged(values, labels.offsets) if isinstance(labels, Ragged) else values


def check_ids(data: Dataset, vocabulary: Mapping[str, int]) -> None:
    """Raise DataError when an id of an input lies outside 0..size-1; `vocabulary`: input -> size.

    Records are counted from 1 in the order of `data`: check before sorting by length.
    """
    for name, size in vocabulary.items():
        column = data.inputs[name]
        ragged = _ragged(column) if isinstance(column, Ragged | Padded) else None
        values = np.asarray(column if ragged is None else ragged.values)
        bad = np.argwhere((values < 0) | (values >= size))
        if bad.size:
            place = tuple(bad[0])
            record = place[0] + 1 if ragged is None else ragged.record(place[0])
            raise DataError(
                f"{data.path}: record {record}: id {values[place]} of input {name!r} is outside its vocabulary "
                f"of {size} (0..{size - 1})"
            )


def _labelled(read: Callable[[Path, Signature], Dataset]) -> Reader:
    """A reader of a format that carries its labels itself, and so refuses a label file."""

    def reader(path: Path, signature: Signature, labels: Path | None) -> Dataset:
        _no_label_file(path, labels)
        return read(path, signature)

    return reader


def _no_label_file(path: Path, labels: Path | None) -> None:
    if labels is not None:
        raise DataError(f"{path}: its format carries its labels itself; {labels} can't be used (--labels)")


# Name -> (what it is, reader).
FORMATS: Mapping[str, tuple[str, Reader]] = {
    "images": ("image binary of Paddle's INT8 tutorials (int8_full_val.bin)", _labelled(_read_images)),
    "npz": ("one array per model input, and `label`", _labelled(read_npz)),
    "pairs": ("text: one sentence pair a line as ids, `shape:values;...` (1.8w.bs1)", read_pairs),
    "lac": ("Baidu LAC's TSV of characters and tags, its dictionaries beside it", _labelled(read_lac)),
    "lac_bin": ("binary of word ids and labels (GRU_eval_data)", _labelled(read_lac_bin)),
    "handwriting": ("binary of feature sequences and labels (quant_lstm_input_data)", _labelled(read_handwriting)),
}
_SUFFIXES = {".bin": "images", ".npz": "npz", ".tsv": "lac", ".bs1": "pairs"}
