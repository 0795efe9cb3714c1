"""The peers' workers, where the peers are installed: a small network from its export through INT8 to its outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers.compare import Load, take_turns
from bench.peers.export import describe, export_onnx
from bench.peers.protocol import opened, thread_environment
from quant.datasets.readers import batches
from quant.evaluation.parts import unpack
from quant.metrics.scores import sqnr
from quant.process import isolate
from quant.runtime.predictor import Predictor, Settings
from quant.suites import embedded
from quant.suites.registry import find

WHY = "the peers aren't installed: pip install '.[peers]'"
ENGINES = ("openvino", "onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnx/ of a trained row, generated input beside it, and fp32, which is ours."""
    for package in ("paddle2onnx", "onnx"):
        pytest.importorskip(package, reason=WHY)
    root = tmp_path_factory.mktemp("peers")
    (root / "onnx").mkdir()
    (root / "fp32").symlink_to(embedded.small_of(find("mobilenet_v1")) / "fp32")
    describe(str(root / "fp32"), str(root), generated=True, full_input="")
    export_onnx(str(root / "fp32"), str(root / "onnx"), masked=False)
    return root


def data_in(root: Path, name: str) -> dict[str, Any]:
    signature = json.loads((root / "about.json").read_text())["signature"]
    return {"path": str(root / f"{name}.npz"), "format": "npz", "signature": signature}


def load_of(engine: str, model: Path, precision: str, data: dict[str, Any] | None) -> Load:
    given = {"model": str(model), "precision": precision, "threads": 1, "form": engine}
    timed = {"data": data, "batch": 1} if data else None
    return Load(f"{engine}-{precision}", thread_environment(1), f"bench.peers.{engine}_engine", given, timed)


@pytest.mark.parametrize("engine", ENGINES)
def test_fp32_is_ours_and_int8_is_near_it(engine: str, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip(engine, reason=WHY)
    data = data_in(exported, "calibration")
    given = {"model": str(exported / "onnx"), "data": data, "transformer": False, "output": str(tmp_path)}
    isolate.call(f"bench.peers.{engine}_engine:build_int8", given)
    with Predictor(exported / "fp32", Settings()) as predictor:
        [due, *_] = predictor(next(batches(opened(data), 50))).values()
    for model, precision, least in ((exported / "onnx", "fp32", 100), (tmp_path, "int8", 15)):
        worker, _ = load_of(engine, model, precision, None).start()
        with worker:
            count = worker.ask(outputs={"data": data, "file": str(tmp_path / "outputs.npz")})["count"]
        [found, *_] = unpack((tmp_path / "outputs.npz").read_bytes(), count)[0]
        assert found.shape == due.shape
        assert sqnr(due, np.asarray(found)) > least, precision
    timed = take_turns([load_of(engine, tmp_path, "int8", data_in(exported, "timing"))], budget_s=0, repeat=1)
    [cell] = timed.values()
    assert cell.error == "" and len(cell.seconds) == 8
    int8, every = cell.facts["int8"]
    assert 0 < int8 <= every


def test_openvino_is_not_left_to_emulate_bf16() -> None:
    pytest.importorskip("openvino", reason=WHY)
    from bench.peers.openvino_engine import _without_bf16
    from quant.cpu import TIERS

    assert [_without_bf16(tier.cap) for tier in TIERS] == [True, True, True, False]
    assert not _without_bf16("")
