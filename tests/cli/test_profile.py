"""`quant profile` end to end: what it says of a small converted model, of its FP32 model, and of bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quant.cli import main
from quant.diagnosis import profile
from quant.ir.graph import save_dir
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.reports.profile import as_json
from quant.suites import diagnosed
from quant.suites.registry import find
from tests.manifests import write_repository
from tests.nets import Net, residual_net

Say = Callable[..., dict[str, Any]]


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Say:
    """What `quant profile ... --json` prints."""

    def run(*args: object) -> dict[str, Any]:
        capfd.readouterr()
        assert main(["profile", *map(str, args), "--json"]) == 0
        result: dict[str, Any] = json.loads(capfd.readouterr().out)
        return result

    return run


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that `quant profile ...` ends with."""

    def run(*args: object) -> str:
        capfd.readouterr()
        assert main(["profile", *map(str, args)]) == 2
        out, err = capfd.readouterr()
        assert (out, len(err.splitlines())) == ("", 1), err
        return err

    return run


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """The profile of a small INT8 model beside its FP32 model, run as Paddle runs it; the log counts microseconds."""
    subject = profile.ProfileTarget(place / "int8", fp32=place / "fp32")
    result: dict[str, Any] = json.loads(json.dumps(as_json(profile.profile(subject, executor="paddle", batch=64))))
    return result


def test_an_int8_model(found: dict[str, Any]) -> None:
    assert found["precision"] == "int8"
    assert found["runs"] >= 8
    sums = found["sums"]
    assert sums["wall_ms"] > sums["kernel_ms"] > 0
    assert sums["ratio"] == pytest.approx(sums["wall_ms"] / sums["kernel_ms"])
    assert sum(sums["kinds"].values()) == pytest.approx(sums["kernel_ms"])
    assert sums["logged_ms"] > 0
    assert sums["kinds"]["int8"] > 0 == sums["kinds"]["fp32"]
    assert sums["kinds"]["quantize"] > 0
    groups = found["groups"]
    assert sum(group["share"] for group in groups) == pytest.approx(1)
    assert sum(group["count"] for group in groups) == len(found["kernels"])
    multiply = [group for group in groups if group["kind"] == "int8"]
    assert sum(group["count"] for group in multiply) == 6  # five convolutions and the classifier
    assert all("wei:s8" in group["types"] for group in multiply)
    assert sum(group["macs"] for group in multiply) == sum(kernel["macs"] for kernel in found["kernels"]) > 0
    assert found["fp32_kernels"] == []
    assert found["findings"] and all(entry["ms"] > 0 for entry in found["findings"])


def test_its_kernels_belong_to_its_ops_and_its_ops_to_islands(found: dict[str, Any]) -> None:
    assert all(kernel["output"] for kernel in found["kernels"])
    assert sum(op["kernel_ms"] for op in found["ops"]) == pytest.approx(found["sums"]["kernel_ms"])
    body, head = found["islands"]
    assert body["types"] == {"fused_conv2d": 5}
    assert head["types"]["fc"] == 1
    assert body["macs"] + head["macs"] == sum(kernel["macs"] for kernel in found["kernels"])
    assert body["enter_ms"] > 0  # the head's is a kernel of less than a microsecond
    for island in (body, head):
        assert island["enter"] == 1
        assert island["enter_ms"] >= 0 < island["inside_ms"]
        assert island["float_ms"] > 0
        spared = island["float_ms"] - island["inside_ms"] - island["border_ms"]
        assert island["spared_ms"] == pytest.approx(spared)
    products = [kernel for kernel in found["kernels"] if kernel["macs"]]
    assert all(kernel["fp32_ms"] is not None for kernel in products)


def test_an_fp32_model(told: Say, place: Path) -> None:
    found = told(place / "fp32")
    assert found["precision"] == "fp32"
    assert found["islands"] == found["fp32_kernels"] == []
    assert found["sums"]["kinds"]["int8"] == 0 < found["sums"]["kinds"]["fp32"]
    assert any("there is no INT8 kernel: 6 FP32 kernels" in entry["text"] for entry in found["findings"])


def test_an_op_left_out_is_named_with_its_reason(told: Say, place: Path, tmp_path: Path) -> None:
    args = ["--quant-model-path", place / "quant", "--int8-model-save-path", tmp_path / "int8", "--op-ids-to-skip", "1"]
    assert main(["convert", *map(str, args)]) == 0
    [left] = told(tmp_path / "int8")["fp32_kernels"]
    assert left["op"] == "conv2d"
    assert left["kernel"]["isa"].startswith("avx")
    assert "left out on converting" in left["reason"]


@pytest.mark.parametrize("executor", ["paddle", "direct"])
def test_either_executor_tells_which_ops_its_kernels_belong_to(told: Say, tmp_path: Path, executor: str) -> None:
    """The classifier's flattening does nothing on 1x1, and runs no kernel: the one before is the quantize op's."""
    net = Net(side=2)
    graph = net.graph(net.head(net.pool(net.act(net.bias(net.conv("x", 8))), "avg")))
    converted = convert(lower_quantizers(calibrate(graph, net.batches(), algo="abs_max")))[0]
    save_dir(converted, tmp_path)
    found = told(tmp_path, "--executor", executor)
    assert found["executor"] == executor
    owners = [kernel["output"] for kernel in found["kernels"] if kernel["kind"] == "quantize"]
    assert owners == [op.output("Output") for op in converted.ops if op.type == "quantize"]
    assert [island["enter"] for island in found["islands"]] == [1, 1]


def test_data_and_the_batch(told: Say, place: Path) -> None:
    found = told(place / "int8", "--data", place / "data.npz", "--batch-size", 5)
    assert found["batch"] == 5
    problems = [kernel["problem"] for kernel in found["kernels"] if kernel["op"] == "convolution"]
    assert problems and all(problem.startswith("mb5_") for problem in problems)


def test_a_model_of_a_manifest(told: Say, fails: Callable[..., str], place: Path, cache: Path, tmp_path: Path) -> None:
    file = write_repository(place, tmp_path / "users") / "quant.toml"
    file.write_text(
        '[[model]]\nname = "net"\nfp32 = "models/fp32"\ndata = "test.npz"\ncalibration = "calibration.npz"\n'
    )
    found = told("net", "--manifest", file, "--batch-size", 3)
    assert (found["precision"], found["batch"]) == ("int8", 3) and found["islands"]
    assert "--data: the entry in" in fails("net", "--manifest", file, "--data", place / "data.npz")


def test_tables(capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["profile", str(place / "int8"), "--each"]) == 0
    out = capfd.readouterr().out
    for word in (
        "mb1_ic8oc8",
        "Kernels in order",
        "Where a run's time goes",
        "INT8 islands",
        "Findings",
        "convolution",
    ):
        assert word in out


def test_bad_input(fails: Callable[..., str], place: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'}: no such model directory" in fails(tmp_path / "absent")
    assert f"{tmp_path}: no program" in fails(tmp_path)
    assert "did you mean 'resnet50'" in fails("resnet5")
    assert "unknown ISA 'sse9'" in fails(place / "int8", "--isa", "sse9")
    assert "unknown precision 'int4'" in fails(place / "int8", "--precision", "int4")
    assert "unknown executor" in fails(place / "int8", "--executor", "magic")
    assert "absent.npz" in fails(place / "int8", "--data", tmp_path / "absent.npz")
    assert "absent" in fails(place / "int8", "--fp32-model", tmp_path / "absent")


def test_open_shapes_are_asked_for(fails: Callable[..., str], told: Say, tmp_path: Path) -> None:
    net = Net()
    graph = net.graph(net.conv("x", 8))
    save_dir(replace(graph, vars={**graph.vars, "x": graph.vars["x"]._replace(shape=(-1, 8, -1, -1))}), tmp_path)
    assert "--input-shape x=" in fails(tmp_path)
    assert "is not name=" in fails(tmp_path, "--input-shape", "x")
    assert "ih16" in told(tmp_path, "--input-shape", "x=1,8,16,16")["kernels"][-1]["problem"]


def test_a_model_that_kills_paddle(fails: Callable[..., str], tmp_path: Path) -> None:
    graph = residual_net()
    ops = tuple(replace(op, inputs={"X": op.inputs["X"]}) if op.type == "matmul_v2" else op for op in graph.ops)
    save_dir(graph.evolve(ops), tmp_path)
    assert str(tmp_path) in fails(tmp_path)


def test_a_model_without_kernels_of_onednn(fails: Callable[..., str], tmp_path: Path) -> None:
    net = Net()
    save_dir(net.graph(net.act("x", "floor")), tmp_path)
    assert "runs no kernel of oneDNN's" in fails(tmp_path)


def test_rows_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The model for the tier, its input, and the FP32 model it was made of; nothing is built here."""
    monkeypatch.setattr(diagnosed, "full_of", lambda spec, progress: tmp_path / spec.name)
    monkeypatch.setattr(diagnosed, "data_of", lambda spec, which, progress: tmp_path / f"{spec.name}.data")
    monkeypatch.chdir(tmp_path)
    image = diagnosed.to_profile("resnet50", "avx2")
    assert (image.model, image.fp32) == (tmp_path / "resnet50" / "int8", tmp_path / "resnet50" / "fp32")
    ernie = diagnosed.to_profile("ernie", "avx2")
    assert ernie.model == tmp_path / "ernie" / "int8-7bit"
    assert ernie.feed == {"full_input": find("ernie").full_input}
    gru = diagnosed.to_profile("gru", "avx512_vnni")
    assert gru.model == tmp_path / "gru" / "int8"
    assert gru.feed == {"data": str(tmp_path / "gru.data"), "format": "lac"}
    (tmp_path / "vgg16").mkdir()
    assert diagnosed.to_profile("vgg16").model == Path("vgg16")  # a directory of that name comes first
