"""What every INT8 row must survive, from bugs that Paddle's INT8 had: runs differ, shapes, threads, memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures import digits
from quant import pipeline
from quant.graph import load_dir, save_dir
from quant.predictor import Predictor, Settings
from quant.registry import ModelSpec

INT8 = Settings("int8")


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    pixels, _ = next(digits.images("test", 50))
    return digits.normalise(pixels)


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Path:
    return pipeline.small_of(spec) / "int8"


@pytest.fixture(scope="module")
def predictor(model: Path) -> Iterator[Predictor]:
    with Predictor(model, INT8) as loaded:
        yield loaded


def scores(predictor: Predictor, batch: np.ndarray) -> np.ndarray:
    return predictor({"image": batch})[predictor.outputs[0]]


def test_run_1_and_run_100_are_bit_equal(predictor: Predictor, images: np.ndarray) -> None:
    first = scores(predictor, images[:4])
    for _ in range(98):
        predictor.run()
    assert np.array_equal(scores(predictor, images[:4]), first)


def test_batch_1_and_batch_50_give_the_same_labels(predictor: Predictor, images: np.ndarray) -> None:
    together = scores(predictor, images)
    alone = np.concatenate([scores(predictor, images[i : i + 1]) for i in range(len(images))])
    assert np.array_equal(together.argmax(1), alone.argmax(1))


def test_one_and_two_threads_give_the_same_labels(model: Path, predictor: Predictor, images: np.ndarray) -> None:
    with Predictor(model, Settings("int8", threads=2)) as threaded:
        assert np.array_equal(scores(threaded, images).argmax(1), scores(predictor, images).argmax(1))


def test_a_shape_change_and_back(predictor: Predictor, images: np.ndarray) -> None:
    before = scores(predictor, images[:7])
    scores(predictor, images[:3])
    scores(predictor, images)
    assert np.array_equal(scores(predictor, images[:7]), before)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def test_memory_is_flat_over_1000_runs(predictor: Predictor, images: np.ndarray) -> None:
    def runs(count: int) -> None:
        for number in range(count):
            scores(predictor, images[: 1 + number % 3])

    runs(100)
    before = resident_mb()
    runs(1000)
    assert resident_mb() - before < 8


def test_save_load_same_output(model: Path, predictor: Predictor, images: np.ndarray, tmp_path: Path) -> None:
    save_dir(load_dir(model), tmp_path, "separate")
    with Predictor(tmp_path, INT8) as again:
        assert np.array_equal(scores(again, images[:5]), scores(predictor, images[:5]))


def test_a_predictor_without_graph_optimisation_gives_the_same(model: Path, images: np.ndarray) -> None:
    """The deployed model needs nothing of the predictor's passes, and they must not harm it."""
    with Predictor(model, INT8) as plain, Predictor(model, Settings("int8", optimise=False)) as bare:
        assert np.array_equal(scores(plain, images), scores(bare, images))
