"""A folder of images becomes an image binary: same numbers as the seeds' script, resumable, clear about bad files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quant.cli import main
from quant.datasets.preprocess import MEAN, preprocess
from quant.datasets.readers import open_data
from quant.errors import DataError, OptionError, OutputError
from quant.storage.checkpoint import Journal

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """imagenet_user/ as the seeds lay it out: val/*.jpg and val_list.txt; one image is grey, one has a space."""
    root = tmp_path / "imagenet_user"
    (root / "val").mkdir(parents=True)
    random = np.random.default_rng(0)
    lines = []
    for number, (size, mode) in enumerate(
        [((300, 400), "RGB"), ((500, 260), "RGB"), ((256, 256), "L"), ((80, 90), "RGB")]
    ):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        name = f"val/image {number}.png"
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8), mode).save(root / name)
        lines.append(f"{name} {number * 3}")
    (root / "val_list.txt").write_text("\n".join(lines) + "\n")
    return root


def seeds_own(path: Path, side: int) -> np.ndarray:
    """The published script's steps, one by one."""
    image = Image.open(path)
    percent = 256.0 / min(image.size)
    image = image.resize((round(image.size[0] * percent), round(image.size[1] * percent)), Image.Resampling.LANCZOS)
    left, top = (image.size[0] - side) / 2, (image.size[1] - side) / 2
    image = image.crop((left, top, left + side, top + side)).convert("RGB")
    pixels = np.array(image).astype("float32").transpose((2, 0, 1)) / 255
    return (pixels - np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / np.array([0.229, 0.224, 0.225]).reshape(
        3, 1, 1
    )


def test_the_binary_holds_what_the_seeds_script_would_write(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "val.bin"
    assert main(["preprocess", "--data_dir", str(folder), "--output_file", str(output)]) == 0
    data = open_data(output, {"image": ((3, 224, 224), "float32")})
    assert data.labels is not None and data.labels.tolist() == [0, 3, 6, 9]
    for number in range(4):
        expected = seeds_own(folder / f"val/image {number}.png", 224)
        np.testing.assert_allclose(data.inputs["image"][number], expected, atol=1e-5)


def test_another_dimension(folder: Path, tmp_path: Path) -> None:
    assert preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin", 299) == 4
    data = open_data(tmp_path / "a.bin", {"image": ((3, 299, 299), "float32")})
    black = (0 - MEAN) / 0.225
    assert float(np.asarray(data.inputs["image"]).min()) > black.min() - 1


class CutOffError(Exception):
    pass


def cut_off(folder: Path, output: Path, side: int = 224, after: int = 1) -> None:
    """A run that ends after some chunks of two images; it leaves half an image more."""

    def stop(done: int, total: int) -> None:
        if done >= 2 * after:
            raise CutOffError

    with pytest.raises(CutOffError):
        preprocess(folder, folder / "val_list.txt", output, side, stop)
    with output.with_name(f"{output.name}.part").open("ab") as file:
        file.write(b"half an image")


@pytest.fixture
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.datasets.preprocess._CHUNK", 2)


@pytest.mark.usefixtures("chunks_of_two")
def test_a_run_that_was_cut_off_goes_on(folder: Path, tmp_path: Path, call: Call) -> None:
    whole, output = tmp_path / "whole.bin", tmp_path / "a.bin"
    preprocess(folder, folder / "val_list.txt", whole)
    cut_off(folder, output)
    seen: list[int] = []
    told: list[str] = []
    state = (folder / "val" / "image 0.png").stat()
    (folder / "val" / "image 0.png").write_bytes(b"x" * state.st_size)  # decoded already, so never opened again
    os.utime(folder / "val" / "image 0.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.utime(folder / "val_list.txt")  # the same list, written anew
    progress = lambda done, total: seen.append(done)  # noqa: E731
    assert preprocess(folder, folder / "val_list.txt", output, progress=progress, tell=told.append) == 4
    assert output.read_bytes() == whole.read_bytes()
    assert seen == [4]
    assert told == [f"{tmp_path}/a.bin.part.json: 2 images of a run that was cut off are reused; --fresh starts anew"]
    assert sorted(tmp_path.glob("a.bin*")) == [output]


@pytest.mark.usefixtures("chunks_of_two")
def test_a_run_that_was_cut_off_before_its_end_was_renamed(folder: Path, tmp_path: Path) -> None:
    """Nothing is decoded again: the labels alone may be missing."""
    cut_off(folder, tmp_path / "a.bin", after=2)
    seen: list[int] = []
    preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin", progress=lambda done, total: seen.append(done))
    preprocess(folder, folder / "val_list.txt", tmp_path / "whole.bin")
    assert seen == [] and (tmp_path / "a.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def another_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "val_list.txt").write_text((folder / "val_list.txt").read_text().replace("0.png 0", "0.png 1"))


def another_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(folder / "val" / "image 1.png", folder / "val" / "image 0.png")


def another_mean(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.datasets.preprocess.MEAN", np.float32(MEAN / 2))


@pytest.mark.usefixtures("chunks_of_two")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "--data-dim (224, now 112)"),
        (another_list, "--label-list"),
        (another_image, "images"),
        (another_mean, "mean"),
    ],
)
def test_other_inputs_are_refused(
    change: Callable[..., None] | None,
    told: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
) -> None:
    output, side = tmp_path / "a.bin", 224 if change else 112
    cut_off(folder, output)
    if change:
        change(folder, monkeypatch)
    part = (tmp_path / "a.bin.part").read_bytes()
    options = ["preprocess", "--data-dir", folder, "--output-file", output, "--data-dim", side]
    code, out, err = call(*options)
    assert (code, out) == (2, "")
    left = f"{tmp_path}/a.bin.part.json: left by a run that was cut off, with other inputs: {told}"
    assert err == f"quant: {left}; --fresh starts anew\n"
    assert (tmp_path / "a.bin.part").read_bytes() == part, "nothing is thrown away"
    code, out, err = call(*options, "--fresh")
    assert (code, err) == (0, "")
    preprocess(folder, folder / "val_list.txt", tmp_path / "right.bin", side)
    assert output.read_bytes() == (tmp_path / "right.bin").read_bytes()


@pytest.mark.usefixtures("chunks_of_two")
def test_an_image_that_was_not_reached_may_be_mended(folder: Path, tmp_path: Path) -> None:
    broken = folder / "val" / "image 3.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"image 3\.png: not a readable image"):
        preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin")
    broken.write_bytes(whole)
    told: list[str] = []
    preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin", tell=told.append)
    assert "2 images of a run that was cut off are reused" in told[0]


def test_a_part_of_unknown_origin_is_refused(folder: Path, tmp_path: Path) -> None:
    part = tmp_path / "a.bin.part"
    part.write_bytes(b"left by somebody")
    for _ in range(2):
        with pytest.raises(OptionError, match=r"a\.bin\.part\.json: .* whose inputs can't be read; --fresh starts"):
            preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin")
        assert list(tmp_path.glob("a.bin*")) == [part]
        part.with_name("a.bin.part.json").write_text("nonsense")
        with pytest.raises(OptionError, match="whose inputs can't be read"):
            preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin")
        part.with_name("a.bin.part.json").unlink()
    assert preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin", fresh=True) == 4


def test_a_second_run_on_one_part_file_is_told_so(folder: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "a.bin.part.json", {}), pytest.raises(OutputError, match=": another run is writing there"):
        preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin")
    assert preprocess(folder, folder / "val_list.txt", tmp_path / "a.bin") == 4


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listing = folder / "val_list.txt"
    good = listing.read_text()

    def fails(text: str) -> str:
        listing.write_text(text)
        code = main(["preprocess", "--data-dir", str(folder), "--output-file", str(tmp_path / "a.bin")])
        captured = capsys.readouterr()
        assert (code, captured.out, captured.err.count("\n")) == (2, "", 1)
        assert not list(tmp_path.glob("a.bin*"))
        return captured.err

    assert "val_list.txt:2: no such image" in fails(good.splitlines()[0] + "\nval/none.png 3\n")
    assert "val_list.txt:1: not 'path label'" in fails("val/image 0.png\n")
    assert "val_list.txt:1: not 'path label'" in fails("val/image 0.png -4\n")
    assert "val_list.txt:1: not 'path label'" in fails(f"val/image 0.png {2**63}\n")
    assert "lists no image" in fails("\n")
    (folder / "val" / "image 1.png").write_bytes(b"not an image")
    assert "image 1.png: not a readable image" in fails(good)
    (tmp_path / "exists.bin").write_text("precious")
    listing.write_text(good)
    assert main(["preprocess", "--data-dir", str(folder), "--output-file", str(tmp_path / "exists.bin")]) == 2
    assert (tmp_path / "exists.bin").read_text() == "precious"
