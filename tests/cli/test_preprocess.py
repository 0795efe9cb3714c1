"""A folder of images becomes an image binary: same numbers as the seeds' script, resumable, clear about bad files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quant.cli import main
from quant.errors import OutputError
from quant.places import taken
from quant.preprocess import MEAN, preprocess
from quant.readers import open_data


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


def test_a_run_that_was_cut_off_goes_on(folder: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.bin", tmp_path / "a.bin"
    preprocess(folder, folder / "val_list.txt", whole)
    image_bytes = 3 * 224 * 224 * 4
    part = tmp_path / "a.bin.part"
    kept = whole.read_bytes()[: 8 + 2 * image_bytes]
    part.write_bytes(kept + b"half an image")
    seen: list[int] = []
    (folder / "val" / "image 0.png").write_bytes(b"decoded already, so never opened again")
    assert preprocess(folder, folder / "val_list.txt", output, progress=lambda done, total: seen.append(done)) == 4
    assert output.read_bytes() == whole.read_bytes()
    assert seen == [4]
    assert not part.exists()


def test_a_second_run_on_one_part_file_is_told_so(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "a.bin.part").open("wb") as file:
        assert taken(file)
        with pytest.raises(OutputError, match=r"a\.bin\.part: another run is writing there"):
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
        assert not (tmp_path / "a.bin").exists()
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
