"""Data that a user's own function reads: what it may give, and what of that a model can be fed."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from quant.datasets import user_functions
from quant.datasets.columns import Array, Column, Dataset, Padded, Ragged, Signature, offsets_of
from quant.errors import DataError

__all__ = ["check_fit", "files_below", "read_own"]


def check_fit(path: Path, name: str, array: Array, shape: tuple[int, ...], dtype: str) -> None:
    """Raise DataError unless an array [N, ...] has a model's type, and samples as many dimensions as its input.

    Sizes may be others than the model declares: `quant.datasets.data_shapes` knows whether it takes them.
    """
    if str(array.dtype) != dtype:
        raise DataError(f"{path}: array {name!r} is {array.dtype}, but the model reads {dtype}")
    if array.ndim != 1 + len(shape):
        raise DataError(
            f"{path}: array {name!r} holds samples of {list(array.shape[1:])}, the model reads {list(shape)}"
        )


def _fits(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(given) == len(wanted) and all(w in (-1, g) for w, g in zip(wanted, given, strict=True))


def _dense(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether arrays of one shape are samples, if not of the declared size; (1,) may be that of a sequence's steps."""
    return _fits(given, wanted) or (len(given) == len(wanted) and wanted != (1,))


def files_below(directory: Path) -> list[Path]:
    """All files in a directory, sorted; links to directories are followed, once each."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, inside, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside.sort()
        found.extend(Path(place, name) for name in names)
    return sorted(file for file in found if file.is_file())


def read_own(path: Path, signature: Signature, name: str) -> Dataset:
    """Data by a user's function: f(path) -> (inputs, labels).

    `inputs`: model input -> array [N, ...] of the model's type, or a list of N arrays, of unequal length too. `labels`:
    numbers [N, ...], or a list of N sequences of them, or None.
    """
    function = user_functions.function_of(name)
    with user_functions.calling(name):
        found = function(path)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Mapping)):
        raise DataError(f"{path}: {name} gave {type(found).__name__}, not ({{input: array}}, labels)")
    inputs: dict[str, Column | Padded] = {}
    for key, wanted in signature.items():
        if key not in found[0]:
            raise DataError(f"{path}: no array for the model's input {key!r}; {name} gave {sorted(map(str, found[0]))}")
        inputs[key] = _own_input(path, key, found[0][key], *wanted)
    labels = None if found[1] is None else _own_labels(path, found[1])
    lengths = {len(column) for column in [*inputs.values(), *([] if labels is None else [labels])]}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: what {name} gave holds {sorted(lengths)} samples; one number above 0 is needed")
    return Dataset(path, inputs, labels)


def _own_input(path: Path, name: str, given: object, shape: tuple[int, ...], dtype: str) -> Column | Padded:
    """An array, or a list of arrays: of one shape, sequences that the model reads padded, or sequences (LoD)."""
    if not isinstance(given, list):
        array = np.ascontiguousarray(_numbers(path, name, given))
        check_fit(path, name, array, shape, dtype)
        return array
    if not given:
        raise DataError(f"{path}: no samples in {name!r}")
    arrays = [_numbers(path, name, one) for one in given]
    if len({one.shape for one in arrays}) == 1 and _dense(arrays[0].shape, shape):
        array = np.stack(arrays)
        check_fit(path, name, array, shape, dtype)
        return array
    for number, one in enumerate(arrays):
        if str(one.dtype) != dtype:
            raise DataError(f"{path}: sample {number} of {name!r} is {one.dtype}, but the model reads {dtype}")
        if not one.size:
            raise DataError(f"{path}: sample {number} of {name!r} is empty")
    if shape[:1] == (-1,) and all(_fits(one.shape, shape) for one in arrays):
        return Padded(Ragged.of(arrays))
    if shape == (1,):
        arrays = [one[:, None] if one.ndim == 1 else one for one in arrays]
    for number, one in enumerate(arrays):
        if one.ndim < 1 or not _fits(one.shape[1:], shape):
            raise DataError(
                f"{path}: sample {number} of {name!r} is {list(one.shape)}; the model reads {list(shape)}, or "
                f"sequences of these"
            )
    return Ragged.of(arrays)


def _own_labels(path: Path, given: object) -> Column:
    """Numbers [N, ...], integers as int64; or a list of sequences."""
    if isinstance(given, list) and given and all(isinstance(one, (list, np.ndarray)) for one in given):
        arrays = [_numbers(path, "labels", one) for one in given]
        if len({one.shape for one in arrays}) > 1:
            filled = [one for one in arrays if one.size]  # what is empty has no type of its own
            if len({one.shape[1:] for one in filled}) > 1 or any(one.ndim != filled[0].ndim for one in arrays):
                raise DataError(f"{path}: labels differ in more than their length")
            return Ragged(_whole(np.concatenate(filled)), offsets_of([len(one) for one in arrays]))
    array = _whole(_numbers(path, "labels", given))
    if not array.ndim:
        raise DataError(f"{path}: labels are one number, not one a sample")
    return array


def _numbers(path: Path, name: str, given: object) -> Array:
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise DataError(f"{path}: {name!r} is no array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name!r} is {array.dtype}, not numbers")
    return array


def _whole(array: Array) -> Array:
    return array if array.dtype.kind == "f" else array.astype(np.int64)
