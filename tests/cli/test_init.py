"""quant init: a manifest of models that it inspects, valid once its paths are; nothing is overwritten."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from quant.cli import main
from quant.ir.graph import save_dir
from quant.suites.manifest.inspection import survey
from quant.suites.manifest.schema import read
from tests.nets import Net


def init(*args: object) -> int:
    return main(["init", *map(str, args)])


@pytest.fixture
def shop(place: Path, tmp_path: Path) -> Path:
    """One model at three precisions, another as it is, and one that is damaged."""
    for name in ("fp32", "quant", "int8"):
        shutil.copytree(place / name, tmp_path / "models" / "net" / name)
    shutil.copytree(place / "other", tmp_path / "models" / "other")
    shutil.copytree(place / "other", tmp_path / "models" / "damaged")
    [params] = (tmp_path / "models" / "damaged").glob("*.pdiparams")
    params.write_bytes(params.read_bytes()[:-7])
    (tmp_path / "models" / "no model").mkdir()
    (tmp_path / "models" / ".hidden").symlink_to(place / "fp32")
    shutil.copy(place / "data.npz", tmp_path)
    np.savez(tmp_path / "calibration.npz", x=np.ones((3, 8, 8, 8), np.float32))
    return tmp_path


def test_a_manifest_of_what_is_there(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = shop / "quant.toml"
    given = ("--data", shop / "data.npz", "--calibration", shop / "calibration.npz")
    assert init(shop / "models", "--output", output, *given) == 0
    out, err = capsys.readouterr()
    assert f"{output}: 2 models: net, other\nnext: quant suite --manifest {output}\n" == out
    assert err.startswith("warning: ") and "damaged" in err and err.count("\n") == 1
    net, other = read(output).models
    models = shop / "models"
    assert (net.fp32, net.quant, net.int8) == (models / "net/fp32", models / "net/quant", models / "net/int8")
    assert (other.fp32, other.calibration) == (models / "other", shop / "calibration.npz")
    text = output.read_text()
    assert "# Inputs: x float32[-1, 8, 8, 8]\n" in text and "# Not usable: " in text
    assert "# INT8 are: fused_conv2d" in text and "# INT8 will be: " in text


def test_what_is_not_known_is_to_be_filled_in(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(shop / "models" / "other", "--output", shop / "quant.toml") == 0
    out = capsys.readouterr().out
    assert "quant.toml: 1 model: other\n" in out
    assert "to be filled in: " in out and "key data: " in out and "test.bin: no such file; and 1 more" in out
    for name in ("test.bin", "calibration.bin"):
        (shop / name).write_text(name)
    [entry] = read(shop / "quant.toml").models
    assert (entry.name, entry.metrics) == ("other", ("top1",))


def test_what_will_be_int8_is_what_becomes_int8(place: Path) -> None:
    """Told without calibrating; the converted model has it so."""
    [fp32], [quant], [int8] = (survey(str(place / name), 127) for name in ("fp32", "quant", "int8"))
    assert [one["kind"] for one in (fp32, quant, int8)] == ["fp32", "quant", "int8"]
    assert fp32["int8"] == quant["int8"] and fp32["fp32"] == quant["fp32"]
    assert quant["int8"]["conv2d"] == int8["int8"]["fused_conv2d"] > 0
    assert fp32["inputs"] == int8["inputs"] and fp32["outputs"] == quant["outputs"]
    assert int8["bytes"] < fp32["bytes"]


def test_a_model_that_nothing_can_be_made_of(tmp_path: Path) -> None:
    net = Net()
    (tmp_path / "model").mkdir()
    save_dir(net.graph(net.act("x")), tmp_path / "model")
    [found] = survey(str(tmp_path / "model"), 127)
    assert found["int8"] == {} and found["why"] == "it has no convolution or product with a constant weight"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("models", "--output", "there.toml"), "there.toml: exists already; nothing was written"),
        (("models", "--output", "link.toml"), "link.toml: exists already; nothing was written"),
        (("models", "--output", "absent/quant.toml"), "absent/quant.toml: can't be written"),
        (("absent", "--output", "quant.toml"), "absent: no such model directory"),
        (("models/no model", "--output", "quant.toml"), "models/no model: no program (inference.pdmodel,"),
        (("models/damaged", "--output", "quant.toml"), "models/damaged/"),
        (("data.npz", "--output", "quant.toml"), "data.npz: no such model directory"),
        (("models", "--output", "quant.toml", "--data", "absent.npz"), "--data: absent.npz: no such file"),
        (("models", "--output", "quant.toml", "--calibration", "absent.npz"), "--calibration: absent.npz: no such"),
    ],
)
def test_what_is_refused(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(shop)
    (shop / "there.toml").write_text("mine")
    (shop / "link.toml").symlink_to(shop / "nowhere")
    before = sorted(shop.iterdir())
    assert init(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"quant: {told}") and err.count("\n") == 1
    assert sorted(shop.iterdir()) == before and (shop / "there.toml").read_text() == "mine"
