"""One case per row and tier: is the INT8 model still accurate, and did INT8 kernels do the work?"""

from collections.abc import Callable
from functools import cache

import pytest

from quant import cpu, pipeline
from quant.registry import ModelSpec
from quant.report import Comparison, comparisons

Compare = Callable[[ModelSpec, cpu.Tier], Comparison]


@pytest.fixture(scope="session")
def compared(request: pytest.FixtureRequest) -> Compare:
    """(row, tier) -> its INT8 record against FP32 and simulation; a row is measured once."""
    samples = 50_000 if request.config.getoption("--full") else None
    isa = request.config.getoption("--isa")

    @cache
    def measure(spec: ModelSpec) -> dict[str, Comparison]:
        return {c.int8.isa: c for c in comparisons(pipeline.accuracy(spec, isa=isa, samples=samples))}

    return lambda spec, tier: measure(spec)[tier.name]


def test_fp32_is_above_its_floor_and_not_saturated(spec: ModelSpec, tier: cpu.Tier, compared: Compare) -> None:
    score = compared(spec, tier).fp32.score(spec.metric)
    assert spec.floor <= score <= 0.97


def test_drop_is_within_the_limit(spec: ModelSpec, tier: cpu.Tier, compared: Compare) -> None:
    found = compared(spec, tier)
    assert found.drop.drop <= spec.max_drop, str(found.verdict)
    assert found.verdict.result != "FAIL"


def test_int8_agrees_with_the_simulation(spec: ModelSpec, tier: cpu.Tier, compared: Compare) -> None:
    found = compared(spec, tier)
    assert abs(found.engine.drop) <= spec.max_engine_gap
    # What is left is float32 rounding that now and then crosses a rounding boundary. A wrong scale anywhere costs
    # tens of dB: Paddle's own conversion of these models reaches 20 to 30.
    assert found.int8.sqnr_db["quant"] > 40


def test_int8_kernels_did_the_work(spec: ModelSpec, tier: cpu.Tier, compared: Compare) -> None:
    found = compared(spec, tier)
    assert found.int8.int8_share is not None
    assert found.int8.int8_share >= spec.min_int8_share
    assert found.fp32.int8_share == 0.0
    assert found.quant.int8_share == 0.0
    families = {isa.partition("_")[0] for isa in found.int8.kernel_isas} - {"jit"}
    assert families == {tier.cap.lower().partition("_")[0]}
