"""Datasets: read what was written; refuse the rest with the file and what is wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures import digits
from quant.datasets.readers import batches, check_labels, open_data, write_bin
from quant.errors import DataError

SIGNATURE = {"image": ((3, 4, 4), "float32")}


def write(path: Path, count: int = 5, shape: tuple[int, ...] = (3, 4, 4)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.standard_normal((count, *shape)).astype(np.float32)
    labels = random.integers(0, 9, count)
    write_bin(path, iter([(images[:2], labels[:2]), (images[2:], labels[2:])]), count)
    return images, labels


def test_an_image_binary_round_trips(tmp_path: Path) -> None:
    images, labels = write(tmp_path / "a.bin")
    data = open_data(tmp_path / "a.bin", SIGNATURE)
    assert np.array_equal(data.inputs["image"], images)
    assert np.array_equal(check_labels(data, 9), labels)
    sizes = [len(batch["image"]) for batch in batches(data, 2)]
    assert sizes == [2, 2, 1]
    assert [len(batch["image"]) for batch in batches(data, 2, 1)] == [2]


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda b: b[:3], "truncated"),
        (lambda b: b[:-1], "truncated or a wrong count"),
        (lambda b: struct.pack("<q", 6) + b[8:], "wrong count"),
        (lambda b: struct.pack("<q", -1) + b[8:], "wrong count"),
        (lambda b: struct.pack("<q", 2**60) + b[8:], "wrong count"),
        (lambda b: b"", "truncated"),
    ],
)
def test_damaged_binaries(edit, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write(path)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(DataError, match=told) as caught:
        open_data(path, SIGNATURE)
    assert str(path) in str(caught.value)


def test_a_binary_of_another_dimension(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", shape=(3, 5, 5))
    with pytest.raises(DataError, match="75 values each, but the model reads"):
        open_data(tmp_path / "a.bin", SIGNATURE)


def test_labels_out_of_range(tmp_path: Path) -> None:
    _, labels = write(tmp_path / "a.bin")
    data = open_data(tmp_path / "a.bin", SIGNATURE)
    with pytest.raises(DataError, match="out of range"):
        check_labels(data, int(labels.max()))


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.zeros((4, 3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"other": IMAGES}, "no array for the model's input 'image'"),
        ({"image": IMAGES.astype(np.float64)}, "float64, but the model reads float32"),
        ({"image": IMAGES[:, 0]}, r"holds samples of \[4, 4\], the model reads \[3, 4, 4\]"),
        (
            {"image": IMAGES, "label": np.zeros(3, np.int64)},
            r"a\.npz: array 'label' is int64\[3\], but there are 4 samples",
        ),
        ({"image": IMAGES, "label": np.int64(3)}, r"array 'label' is int64\[\], but there are 4 samples"),
        ({"image": IMAGES, "label": np.zeros((2, 4))}, r"array 'label' is float64\[2, 4\], but there are 4 samples"),
        ({"image": IMAGES, "label": np.array(["a"] * 4)}, r"array 'label' is <U1, not numbers"),
        ({"image": IMAGES, "label": np.zeros(4, np.complex64)}, "array 'label' is complex64, not numbers"),
        ({"image": IMAGES, "label": np.full(4, 1 << 63, np.uint64)}, "holds 9223372036854775808, which is no int64"),
        ({"image": IMAGES[:0]}, "number above 0"),
        ({"image": np.array([{}], object)}, "pickled"),
    ],
)
def test_unfit_archives(arrays: dict[str, np.ndarray], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        open_data(save(tmp_path / "a.npz", **arrays), SIGNATURE)


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (np.arange(4, dtype=np.uint8), np.int64),
        (np.arange(4)[:, None], np.int64),
        (np.arange(20, dtype=np.int32).reshape(4, 5), np.int64),  # a class for each step
        (np.full((4, 2), -100), np.int64),
        (np.random.default_rng(0).random((4, 1, 6, 6), np.float32), np.float32),  # maps
        (np.array([True, False, True, True]), np.int64),
        (np.arange(4.0), np.float64),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else None,
)
def test_labels_of_any_shape(labels: np.ndarray, kept: type, tmp_path: Path) -> None:
    data = open_data(save(tmp_path / "a.npz", image=IMAGES, label=labels), SIGNATURE)
    assert isinstance(data.labels, np.ndarray)
    assert data.labels.dtype == kept and np.array_equal(data.labels, labels)
    assert np.array_equal(check_labels(data, 10**6), labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [np.array([0, 1, 5, 2]), np.array([[0], [1], [5], [2]]), np.array([0, 1, -5, 2])])
def test_classes_are_checked(labels: np.ndarray, tmp_path: Path) -> None:
    data = open_data(save(tmp_path / "a.npz", image=IMAGES, label=labels), SIGNATURE)
    with pytest.raises(DataError, match=r"a\.npz: label -?5 of sample 2 is out of range 0\.\.4"):
        check_labels(data, 5)


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"PK\x03\x04 nonsense", b"\x80\x04cos\nsystem\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz"):
            open_data(path, SIGNATURE)
    with pytest.raises(DataError, match="no such data file"):
        open_data(tmp_path / "b.npz", SIGNATURE)
    (tmp_path / "c.txt").touch()
    with pytest.raises(
        DataError, match=r"unknown data format '\.txt'; name one with --format: images, npz, pairs, lac"
    ):
        open_data(tmp_path / "c.txt", SIGNATURE)


def test_a_format_given_by_name_and_what_it_has_no_use_for(tmp_path: Path) -> None:
    images, _ = write(tmp_path / "a.dat")
    assert np.array_equal(open_data(tmp_path / "a.dat", SIGNATURE, "images").inputs["image"], images)
    with pytest.raises(DataError, match="carries its labels itself"):
        open_data(tmp_path / "a.dat", SIGNATURE, "images", tmp_path / "labels")
    with pytest.raises(DataError, match=r"a\.dat: an image binary feeds one input"):
        open_data(tmp_path / "a.dat", {**SIGNATURE, "other": ((), "int64")}, "images")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one array"):
        write_bin(tmp_path / "a.bin", iter([]), 0)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse 20 GB file: opening it and reading a slice touches a slice."""
    path = tmp_path / "big.bin"
    count = 20_000_000_000 // (4 * 3 * 224 * 224 + 8)
    with path.open("wb") as file:
        file.write(struct.pack("<q", count))
        file.truncate(8 + count * (4 * 3 * 224 * 224 + 8))
    before = _resident_mb()
    data = open_data(path, {"image": ((3, 224, 224), "float32")})
    total = sum(float(batch["image"].sum()) for batch in batches(data, 50, 4))
    last = np.asarray(data.inputs["image"][-1]).sum()
    assert (len(data), total, last) == (count, 0.0, 0.0)
    assert _resident_mb() - before < 400


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_splits_share_no_digit() -> None:
    """By identity and by content: no test digit occurs, pixel for pixel, among the others."""
    bounds = [digits.SPLITS[split] for split in ("train", "calibration", "test")]
    places = [set(range(1797)[bound]) for bound in bounds]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    assert set.union(*places) == set(range(1797))
    seen = [{digit.tobytes() for digit in digits.digits_of(split)[0]} for split in ("train", "calibration", "test")]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_images_are_the_same_bytes_on_every_machine() -> None:
    import hashlib

    pixels, labels = zip(*digits.images("test", 300), strict=True)
    content = np.concatenate(pixels).tobytes() + np.concatenate(labels).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "489945dfe3059523"


@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 700), count=st.integers(1, 300))
def test_any_slice_is_a_slice_of_the_whole(start: int, count: int) -> None:
    whole = np.concatenate([pixels for pixels, _ in digits.images("calibration", 1000)])
    some = np.concatenate([pixels for pixels, _ in digits.images("calibration", count, start)])
    assert np.array_equal(some, whole[start : start + count])


def test_there_are_50000_images_and_no_more() -> None:
    pixels, labels = next(digits.images("test", 1, digits.MAX_IMAGES - 1))
    assert pixels.shape == (1, *digits.SHAPE) and 0 <= labels[0] < digits.CLASSES
    with pytest.raises(ValueError, match="not within"):
        next(digits.images("test", 2, digits.MAX_IMAGES - 1))
