"""Quantization-aware training of the rows: near FP32, and not below calibration alone."""

from pathlib import Path

import pytest

from quant.ir.graph import model_size
from quant.reports.tables import tuned_misses
from quant.suites import embedded
from quant.suites.registry import MODELS, ModelSpec

QUICK = ("mobilenet_v1",)  # a minute or two on two cores; the others, up to ten each, with --full


@pytest.fixture(params=[spec for spec in MODELS if spec.tuning], ids=lambda spec: spec.name, scope="module")
def tuned(request: pytest.FixtureRequest) -> tuple[ModelSpec, Path]:
    spec, option = request.param, request.config.getoption
    if spec.name not in (option("--model") or [spec.name]):
        pytest.skip("not among --model")
    if spec.name not in QUICK and not option("--full"):
        pytest.skip("trained with --full only")
    return spec, embedded.tuned_of(spec)


@pytest.mark.timeout(1800)
def test_a_trained_row_is_near_fp32_and_not_below_calibration(
    tuned: tuple[ModelSpec, Path], request: pytest.FixtureRequest
) -> None:
    spec, directory = tuned
    samples = 50_000 if request.config.getoption("--full") else min(spec.most, 10_000)
    records = embedded.judge_tuned(spec, directory, samples=samples)
    _, _, quant, int8 = records
    assert tuned_misses(records) == []
    assert int8.int8_share is not None and int8.int8_share >= spec.min_int8_share
    assert abs(int8.score(spec.metric) - quant.score(spec.metric)) <= spec.max_engine_gap
    assert int8.sqnr_db["quant"] > spec.min_engine_sqnr


def test_a_trained_row_is_stored_as_int8(tuned: tuple[ModelSpec, Path]) -> None:
    spec, directory = tuned
    fp32 = model_size(embedded.small_of(spec) / "fp32")
    assert model_size(directory / "int8") <= 0.30 * fp32
