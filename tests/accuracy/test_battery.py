"""What every INT8 row must survive, from bugs that Paddle's INT8 had: runs differ, shapes, threads, memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from quant.datasets.columns import Column, values_of
from quant.datasets.readers import Dataset, Padded, Ragged, open_data
from quant.ir.graph import load_dir, save_dir
from quant.runtime import inputs
from quant.runtime.predictor import Predictor, Settings
from quant.suites import embedded
from quant.suites.registry import ModelSpec

INT8 = Settings("int8")
Batch = Mapping[str, Column]


@pytest.fixture(scope="module")
def model(measured: ModelSpec) -> Path:
    return embedded.small_of(measured) / "int8"


@pytest.fixture(scope="module")
def samples(measured: ModelSpec, model: Path) -> Dataset:
    return open_data(embedded.data_of(measured, measured.test), inputs.signature(load_dir(model)), measured.format)


@pytest.fixture(scope="module")
def predictor(model: Path) -> Iterator[Predictor]:
    with Predictor(model, INT8) as loaded:
        yield loaded


def some(samples: Dataset, start: int, stop: int) -> Batch:
    return {name: column[start:stop] for name, column in samples.inputs.items()}


def values(predictor: Predictor, batch: Batch) -> list[np.ndarray]:
    """All outputs, sequences as their values."""
    return [values_of(out) for out in predictor(batch).values()]


def decisions(predictor: Predictor, batch: Batch) -> np.ndarray:
    """The first output's classes."""
    first = values(predictor, batch)[0]
    return first.argmax(1) if first.dtype.kind == "f" else first


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [1, 4])
def test_run_1_and_run_100_are_bit_equal(predictor: Predictor, samples: Dataset, count: int) -> None:
    first = values(predictor, some(samples, 0, count))
    for _ in range(98):
        predictor.run()
    assert same(values(predictor, some(samples, 0, count)), first)


def test_both_executors_give_the_same_bits(model: Path, predictor: Predictor, samples: Dataset) -> None:
    """Run directly or by Paddle's executor, its first run and its hundredth."""
    values(predictor, some(samples, 0, 1))
    assert predictor.executor == "direct"
    with Predictor(model, Settings("int8", executor="paddle")) as paddle:
        for batch in (*(some(samples, place, place + 1) for place in range(5)), some(samples, 0, 50)):
            expected = values(predictor, batch)
            assert same(values(paddle, batch), expected)
        for _ in range(98):
            paddle.run()
        assert same([values_of(out) for out in paddle.read().values()], expected)


def test_batch_1_and_batch_50_give_the_same_labels(predictor: Predictor, samples: Dataset) -> None:
    together = decisions(predictor, some(samples, 0, 50))
    alone = np.concatenate([decisions(predictor, some(samples, i, i + 1)) for i in range(50)])
    assert np.array_equal(together, alone)


def test_one_and_two_threads_give_the_same_labels(model: Path, predictor: Predictor, samples: Dataset) -> None:
    batch = some(samples, 0, 50)
    with Predictor(model, Settings("int8", threads=2)) as threaded:
        assert np.array_equal(decisions(threaded, batch), decisions(predictor, batch))


def test_a_shape_change_and_back(predictor: Predictor, samples: Dataset) -> None:
    before = values(predictor, some(samples, 0, 7))
    predictor(some(samples, 0, 3))
    predictor(some(samples, 0, 50))
    assert same(values(predictor, some(samples, 0, 7)), before)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def test_memory_is_flat_over_1000_runs(predictor: Predictor, samples: Dataset) -> None:
    def runs(count: int) -> None:
        for number in range(count):
            predictor(some(samples, 0, 1 + number % 3))

    runs(100)
    before = resident_mb()
    runs(1000)
    assert resident_mb() - before < 8


def of_length(samples: Dataset, length: int) -> Batch:
    """One made-up sample of that length: the first samples' steps, over and over."""
    batch: dict[str, Column] = {}
    for name, column in samples.inputs.items():
        ragged = column.ragged if isinstance(column, Padded) else column
        assert isinstance(ragged, Ragged)
        steps = np.resize(ragged.values[:200], (length, *ragged.values.shape[1:]))
        batch[name] = steps[None] if isinstance(column, Padded) else Ragged.of([steps])
    return batch


def test_memory_is_bounded_over_many_lengths(model: Path, samples: Dataset) -> None:
    """500 lengths of a recurrent model (an encoder: all that it has positions for), met twice: what is kept for each
    must not pile up. Paddle as it comes keeps 1.7 MB for each length of the GRU, or prepares all weights anew."""
    first = next(iter(samples.inputs.values()))
    if not isinstance(first, Ragged | Padded):
        pytest.skip("this row's samples are of one size")
    most = 500 if isinstance(first, Ragged) else int(first.ragged.lengths.max())
    grown = []
    with Predictor(model, INT8) as predictor:
        predictor(of_length(samples, 1))
        before = resident_mb()
        for _ in range(2):
            for length in range(1, most + 1):
                predictor(of_length(samples, length))
            grown.append(resident_mb() - before)
    assert grown[0] < 400
    assert grown[1] - grown[0] < 60


def test_sequences_in_one_batch_do_not_touch_each_other(predictor: Predictor, samples: Dataset) -> None:
    """As many steps in as many ways: a batch's outputs are those of its sequences, however they were cut before."""
    first = next(iter(samples.inputs.values()))
    if not isinstance(first, Ragged):
        pytest.skip("this row's samples are no sequences of steps")
    [name] = samples.inputs
    steps = first.values[:12]
    for cut in ([12], [6, 6], [4, 4, 4], [5, 5, 2], [5, 4, 2, 1], [12]):
        parts = np.split(steps, np.cumsum(cut)[:-1])
        together = predictor({name: Ragged.of(parts)})
        alone = [predictor({name: Ragged.of([part])}) for part in parts]
        for output, found in together.items():
            joined = [one[output] for one in alone]
            if isinstance(found, Ragged):
                one_by_one = np.concatenate([part.values for part in joined])
                kept = one_by_one >= 0 if one_by_one.dtype.kind == "i" else np.ones(len(one_by_one), bool)
                assert np.allclose(found.values, one_by_one[kept].reshape(found.values.shape), atol=1e-3), (cut, output)
            else:
                assert np.allclose(found, np.concatenate(joined), atol=1e-3), (cut, output)


def test_save_load_same_output(model: Path, predictor: Predictor, samples: Dataset, tmp_path: Path) -> None:
    save_dir(load_dir(model), tmp_path, "separate")
    with Predictor(tmp_path, INT8) as again:
        assert same(values(again, some(samples, 0, 5)), values(predictor, some(samples, 0, 5)))


def test_a_predictor_without_graph_optimisation_gives_the_same(
    measured: ModelSpec, model: Path, samples: Dataset
) -> None:
    """The deployed model needs nothing of the predictor's passes, and they must not harm it."""
    batch = some(samples, 0, 50)
    with Predictor(model, INT8) as plain, Predictor(model, Settings("int8", optimise=False)) as bare:
        if measured.min_engine_sqnr < 40:  # float32 sums in another order move an encoder's values across boundaries
            assert (decisions(plain, batch) == decisions(bare, batch)).mean() > 0.97
        else:
            assert same(values(plain, batch), values(bare, batch))
