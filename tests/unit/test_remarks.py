"""Input data that nothing can be learned of, or that look wrong, are told of before a model is made of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.datasets.columns import Column, Dataset, Padded, Ragged
from quant.datasets.remarks import calibrating, remarks
from quant.errors import DataError

random = np.random.default_rng(0)
NOISE = random.standard_normal((240, 3, 8, 8)).astype(np.float32)


def data(**inputs: Column | Padded) -> Dataset:
    return Dataset(Path("calibration.npz"), inputs, None)


def sequences(make: Any) -> Ragged:
    return Ragged.of([make((length, 4)).astype(np.float32) for length in (3, 9, 5)])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (data(x=np.full_like(NOISE, 0.5)), ["every value of input 'x' is 0.5", "all 240 samples are the same"]),
        (data(x=np.repeat(NOISE[:1], 240, 0)), ["all 240 samples are the same"]),
        (data(x=np.repeat(NOISE[:3], 80, 0)), ["of 240 samples only 3 differ"]),
        (
            data(x=random.integers(0, 256, NOISE.shape).astype(np.float32)),
            ["input 'x' has whole numbers from 0 to 255, as pixels that were not normalized have"],
        ),
        (data(x=NOISE, y=np.zeros_like(NOISE)), ["every value of input 'y' is 0"]),
    ],
)
def test_what_is_odd_is_told(given: Dataset, told: list[str]) -> None:
    found = calibrating(given)
    assert len(found) == len(told)
    assert all(line.startswith(f"calibration.npz: {text}") for line, text in zip(found, told, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        data(x=NOISE),
        data(x=NOISE, scale=np.ones((240, 2), np.float32)),  # sizes and scales are the same for all images
        data(x=NOISE, kind=np.zeros((240, 128), np.int64)),  # so may be ids
        data(x=(NOISE > 0).astype(np.float32)),
        data(ids=random.integers(0, 99, (240, 16))),
        data(x=sequences(random.standard_normal)),
        data(x=Padded(sequences(random.standard_normal))),
        data(x=NOISE[:1]),
    ],
)
def test_nothing_is_told_of_usual_data(given: Dataset) -> None:
    assert calibrating(given) == remarks(given) == []


@pytest.mark.parametrize("zeros", [np.zeros_like(NOISE), sequences(np.zeros), Padded(sequences(np.zeros))])
def test_zeros_calibrate_nothing(zeros: Any) -> None:
    with pytest.raises(DataError, match=r"^calibration\.npz: every value of 'x' is 0: that calibrates nothing$"):
        calibrating(data(x=zeros))
    assert remarks(data(x=zeros))[0] == "calibration.npz: every value of input 'x' is 0"


def test_only_the_samples_that_are_used_count() -> None:
    late = np.concatenate([np.zeros((150, 3, 8, 8), np.float32), NOISE])
    with pytest.raises(DataError, match="calibrates nothing"):
        calibrating(data(x=late), 150)
    assert calibrating(data(x=late[100:]), None) == []
