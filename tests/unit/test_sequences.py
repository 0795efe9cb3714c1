"""Columns of samples of unequal length: slicing, joining, sorting, batches; what is wrong in them is told by record."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.datasets.columns import Dataset, Padded, Ragged
from quant.datasets.readers import batches, by_length, check_ids, check_labels
from quant.errors import DataError
from tests.columns import ragged, sequences

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=8)


# --- columns


@given(sizes=lengths, start=st.none() | st.integers(-9, 9), stop=st.none() | st.integers(-9, 9))
def test_a_slice_of_sequences_is_those_sequences(sizes: list[int], start: int | None, stop: int | None) -> None:
    whole = ragged(sizes, 2)
    part = whole[start:stop]
    assert sequences(part) == sequences(whole)[start:stop]
    assert len(part) == len(part.lengths) and part.lengths.tolist() == sizes[start:stop]
    assert part.offsets[0] == 0 and part.offsets.dtype == np.int64
    assert not len(part.values) or np.shares_memory(part.values, whole.values)
    padded = Padded(whole)[start:stop]
    assert padded.shape == (len(part), max(sizes[start:stop], default=0), 2)
    for row, sequence in zip(padded, sequences(part), strict=True):
        assert row[: len(sequence)].tolist() == sequence and not row[len(sequence) :].any()


@given(sizes=lengths, cut=st.integers(0, 8), seed=st.integers(0, 99))
def test_joining_and_taking(sizes: list[int], cut: int, seed: int) -> None:
    whole = ragged(sizes)
    joined = Ragged.join([whole[:cut], whole[cut:]])
    assert np.array_equal(joined.values, whole.values) and np.array_equal(joined.offsets, whole.offsets)
    order = np.random.default_rng(seed).permutation(len(sizes))
    assert sequences(whole.take(order)) == [sequences(whole)[place] for place in order]
    owners = [number for number, size in enumerate(sizes, 1) for _ in range(size)]
    assert [whole.record(place) for place in range(len(whole.values))] == owners


def test_sequences_are_taken_by_slices_of_step_1() -> None:
    column = ragged([1, 2])
    for bad in (column, Padded(column)):
        with pytest.raises(ValueError, match="step 1"):
            bad[::2]
        with pytest.raises(TypeError, match="slices"):
            bad[0]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            column.sequence(index)


@given(sizes=lengths)
def test_sorting_by_length_is_stable_and_moves_samples_whole(sizes: list[int]) -> None:
    numbers = np.arange(len(sizes))
    inputs = {"a": Padded(ragged(sizes, 1)), "b": ragged(sizes), "c": numbers}
    data = Dataset(Path("data"), inputs, ragged(sizes))
    ordered = by_length(data)
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    assert ordered.inputs["c"].tolist() == order
    for column in (ordered.inputs["a"].ragged, ordered.inputs["b"], ordered.labels):
        assert [np.ravel(s).tolist() for s in sequences(column)] == [sequences(ragged(sizes))[i] for i in order]
    assert isinstance(ordered.inputs["a"], Padded)


def test_dense_samples_are_sorted_already() -> None:
    data = Dataset(Path("data"), {"c": np.zeros((3, 2))}, None)
    assert by_length(data) is data
    mixed = by_length(Dataset(Path("data"), {"a": ragged([2, 1])}, np.array([7, 8])))
    assert mixed.labels.tolist() == [8, 7] and by_length(mixed).labels.tolist() == [8, 7]


def test_batches_of_sequences() -> None:
    data = Dataset(Path("data"), {"a": Padded(ragged([1, 3, 2], 1)), "b": ragged([1, 3, 2])}, None)
    first, second = batches(data, 2)
    assert first["a"].shape == (2, 3, 1) and second["a"].shape == (1, 2, 1)
    assert sequences(first["b"]) == [[1], [2, 3, 4]] and sequences(second["b"]) == [[5, 6]]


# --- labels and ids


def test_ids_lie_in_their_vocabulary() -> None:
    data = Dataset(
        Path("data"), {"a": ragged([2, 2]), "p": Padded(ragged([1, 3], 1)), "d": np.array([[0, 1], [2, 3]])}, None
    )
    check_ids(data, {"a": 5, "p": 5, "d": 4})
    for vocabulary, told in (
        ({"a": 4}, "data: record 2: id 4 of input 'a' is outside its vocabulary of 4"),
        ({"p": 1}, "data: record 1: id 1 of input 'p' "),
        ({"a": 9, "p": 3}, "data: record 2: id 3 of input 'p' "),
        ({"d": 3}, "data: record 2: id 3 of input 'd' "),
    ):
        with pytest.raises(DataError, match=told):
            check_ids(data, vocabulary)
    with pytest.raises(DataError, match="record 3: id -1 "):
        check_ids(Dataset(Path("data"), {"a": Ragged(np.array([5, -1]), np.array([0, 1, 1, 2]))}, None), {"a": 6})


def test_labels_of_sequences_are_checked() -> None:
    data = Dataset(Path("data"), {"a": ragged([2, 2])}, ragged([2, 2]))
    assert sequences(check_labels(data, 5)) == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match=r"data: label 3 of record 2 is out of range 0\.\.2"):
        check_labels(data, 3)
    with pytest.raises(DataError, match="no labels"):
        check_labels(Dataset(Path("data"), data.inputs, None), 3)
