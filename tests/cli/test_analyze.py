"""`quant analyze` end to end, and the anatomy of a model for reports: of a small model, and of bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from quant.diagnosis.composition import anatomy_of
from quant.diagnosis.drift import DriftTarget, analyze
from quant.errors import OptionError
from quant.ir.graph import load_dir, save_dir
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.reports.page.sections import section_of
from quant.results.record import Anatomy
from quant.suites.diagnosed import to_analyze
from tests.manifests import write_repository

Call = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


def arguments(place: Path) -> tuple[object, ...]:
    models = ("--fp32-model", place / "fp32", "--quant-model", place / "quant")
    return ("analyze", place / "int8", *models, "--data", place / "data.npz", "--samples", 20)


def test_json_and_chart(place: Path, call: Call, tmp_path: Path) -> None:
    code, out, err = call(*arguments(place), "--json", "--chart", tmp_path / "chart.svg", "--executor", "paddle")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["executor"], found["samples"]) == ("paddle", 20)
    assert [finding for finding in found["findings"] if finding["kind"] == "engine"] == []
    assert all(op["local_db"] > 60 for op in found["ops"])
    assert sorted(op["place"] for op in found["ops"]) == list(range(1, len(found["ops"]) + 1))
    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")


def test_the_file_for_the_report(place: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "why.json"
    code, out, err = call(*arguments(place), "--json", "--output", file)
    assert (code, err) == (0, "")
    assert json.loads(file.read_text()) == json.loads(out)
    section = section_of(file)
    assert (section.topic, section.model) == ("Why accuracy drops", str(place / "int8"))
    code, out, _ = call(*arguments(place), "--output", file)
    assert code == 0 and "Findings" in out  # the tables are printed all the same


MANIFEST = """
[[model]]
name = "net"
title = "Their net"
fp32 = "models/fp32"
data = "test.npz"
calibration = "calibration.npz"
"""


def test_a_model_of_a_manifest(place: Path, cache: Path, call: Call, refused: Refused, tmp_path: Path) -> None:
    """INT8 is made as the suite makes it; its place in the cache is nothing that a user knows."""
    file = write_repository(place, tmp_path / "users") / "quant.toml"
    file.write_text(MANIFEST)
    code, out, err = call("analyze", "net", "--manifest", file, "--samples", 20, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["title"] == "Their net" and all(op["local_db"] > 60 for op in found["ops"])
    assert "did you mean 'net'?" in refused("analyze", "nett", "--manifest", file)
    told = refused("analyze", "net", "--manifest", file, "--data", place / "data.npz")
    assert f"--data: the entry in {file} says this" in told
    file.write_text(MANIFEST.replace("calibration.npz", "leaks.npz"))
    assert "a model isn't tested on what it was calibrated with" in refused("analyze", "net", "--manifest", file)


def test_saturated_sums_are_found_where_they_occur(place: Path, tmp_path: Path) -> None:
    """The engine's own fault below VNNI: pairs of products of 8-bit weights don't fit 16 bits, 7-bit ones do."""
    graph, data = load_dir(place / "fp32"), place / "data.npz"
    with np.load(data) as stored:
        simulated = calibrate(graph, [{"x": stored["x"][:200]}], algo="mse", weight_levels=63)
    for name, model in (("quant", lower_quantizers(simulated)), ("int8", convert(simulated)[0])):
        (tmp_path / name).mkdir()
        save_dir(model, tmp_path / name)
    wide = analyze(DriftTarget(place / "int8", place / "fp32", place / "quant", data), samples=20, isa="avx2")
    narrow = analyze(DriftTarget(tmp_path / "int8", place / "fp32", tmp_path / "quant", data), samples=20, isa="avx2")
    assert [finding for finding in narrow.findings if finding.kind == "engine"] == []
    assert wide.findings[0].kind == "engine" and wide.ranked[0].type == "fused_conv2d"


def test_markdown_without_a_simulation(place: Path, call: Call) -> None:
    models = ("--fp32-model", place / "fp32", "--data", place / "data.npz")
    code, out, _ = call("analyze", place / "int8", *models, "--samples", 5, "--markdown", "--each")
    assert code == 0
    assert out.startswith("## Findings")
    row = r"\| fused_conv2d \| u8 \| conv2d \+ batch_norm \+ relu \| \d+ \| not asked for, or without a simulation \|"
    assert re.search(row, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("resnet5",), "unknown model 'resnet5'; did you mean 'resnet50'?"),
        (("{place}/int8",), "--fp32-model and --data say what it was made of"),
        (("{place}/int8", "--data", "{place}/data.npz"), "--fp32-model is missing"),
        (("{place}/int8", "--fp32-model", "{place}/fp32"), "--data is missing"),
        (("resnet50", "--quant-model", "{place}/quant"), "--fp32-model is missing"),
        (("{place}/int8", "--fp32-model", "{place}/fp32", "--data", "{place}/none.npz"), "none.npz: no such data file"),
        (("{place}/fp32", "--fp32-model", "{place}/fp32", "--data", "{place}/data.npz"), "fp32: holds no INT8 op"),
        (("{place}/int8", "--fp32-model", "{place}/none", "--data", "{place}/data.npz"), "no such model directory"),
        (("resnet50", "--chart", "{place}/none/chart.svg"), "--chart: {place}/none is not a directory"),
        (("resnet50", "--output", "{place}/none/why.json"), "--output: {place}/none is not a directory"),
        (("resnet50", "--executor", "other"), "unknown executor 'other'"),
        (("resnet50", "--samples", "0"), "--samples"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, refused: Callable[..., str], options: tuple[str, ...], message: str
) -> None:
    assert message.format(place=place) in refused("analyze", *(option.format(place=place) for option in options))


def test_a_row_knows_its_models_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quant.suites.diagnosed.small_of", lambda spec, progress: Path("small") / spec.name)
    monkeypatch.setattr("quant.suites.diagnosed.data_of", lambda spec, which, progress: Path(f"{spec.format}-{which}"))
    subject = to_analyze("ernie", 64, "avx512_core_vnni")
    assert (subject.model, subject.quant) == (Path("small/ernie/int8"), Path("small/ernie/quant"))
    assert (subject.fp32, subject.format) == (Path("small/ernie/fp32"), "pairs")
    assert subject.title.startswith("ERNIE")
    assert subject.data == Path("pairs-('test', 64)")
    below = to_analyze("ernie", 64, "avx2")
    assert (below.model, below.quant) == (Path("small/ernie/int8-7bit"), Path("small/ernie/quant-7bit"))
    with pytest.raises(OptionError, match="unknown model"):
        to_analyze("nothing-like-it", 1)


def test_an_anatomy(place: Path) -> None:
    int8 = place / "int8"
    found = anatomy_of(int8, {}, place / "fp32", place / "quant", int8, place / "data.npz", samples=20)
    assert found.int8["fused_conv2d"] == 5
    assert [(kept.type, "average" in kept.why) for kept in found.fp32] == [("pool2d", True)]
    assert sum(kernel.share for kernel in found.kernels) == pytest.approx(1)
    assert found.kernels[0].ms > 0 and any("s8" in kernel.types for kernel in found.kernels)
    db = [layer.fp32_db for layer in found.layers]
    assert db == sorted(db) and len(db) == 7
    assert all(layer.quant_db and layer.quant_db > 35 for layer in found.layers)
    assert {layer.type for layer in found.layers} == {"fused_conv2d", "pool2d", "fc"}
    assert Anatomy.from_json(json.loads(json.dumps(found, default=vars))) == found


def test_an_anatomy_without_data_or_a_simulation(place: Path) -> None:
    int8 = place / "int8"
    found = anatomy_of(int8, {}, place / "fp32", None, int8, None)
    assert (found.layers, found.int8["fc"]) == ((), 1)
