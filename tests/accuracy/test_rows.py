"""One case per row and tier: is the INT8 model still accurate, and did INT8 kernels do the work?"""

from collections.abc import Callable
from pathlib import Path

import pytest

from quant import cpu
from quant.errors import QuantError, log_of
from quant.process import parallel
from quant.reports.tables import failed_lines
from quant.results.comparison import Comparison, comparisons
from quant.results.record import Failure
from quant.suites import embedded
from quant.suites.registry import BY_NAME, ModelSpec

Compare = Callable[[ModelSpec, cpu.Tier], list[Comparison]]


@pytest.fixture(scope="session")
def compared(request: pytest.FixtureRequest) -> Compare:
    """(row, tier) -> its INT8 record against FP32 and simulation, by metric; all rows are measured at once.

    A row that can't be measured, because Paddle crashes on it, say, fails its own cases.
    """
    samples = 50_000 if request.config.getoption("--full") else None
    isa = request.config.getoption("--isa")
    here = [item.callspec.params["judged"] for item in request.session.items if item.path == Path(__file__)]
    specs = list(dict.fromkeys(spec for spec, _ in here))
    best = cpu.detect()

    def measured(spec: ModelSpec) -> list[Comparison] | QuantError:
        alone = isa or (best.cap.lower() if {tier for one, tier in here if one is spec} == {best} else None)
        try:
            return comparisons(embedded.accuracy(spec, isa=alone, samples=samples), BY_NAME)
        except QuantError as error:
            return error

    rows = dict(zip(specs, parallel.each(specs, measured), strict=True))

    def of(spec: ModelSpec, tier: cpu.Tier) -> list[Comparison]:
        found = rows[spec]
        if isinstance(found, QuantError):
            failure = Failure(spec.title, str(found), log_of(found))
            pytest.fail("\n".join(failed_lines([failure])), pytrace=False)
        return [one for one in found if one.int8.isa == tier.name] or pytest.fail(
            f"{spec.name}: not measured on {tier.name}"
        )

    return of


def test_fp32_is_above_its_floor_and_not_saturated(judged: tuple[ModelSpec, cpu.Tier], compared: Compare) -> None:
    spec, tier = judged
    for found in compared(spec, tier):
        assert spec.floor <= found.fp32.score(found.metric) <= 0.97, found.metric


def test_drop_is_within_the_limit(judged: tuple[ModelSpec, cpu.Tier], compared: Compare) -> None:
    spec, tier = judged
    for found in compared(spec, tier):
        assert found.drop.drop <= spec.max_drop[found.metric], f"{found.metric}: {found.verdict}"


def test_int8_agrees_with_the_simulation(judged: tuple[ModelSpec, cpu.Tier], compared: Compare) -> None:
    spec, tier = judged
    for found in compared(spec, tier):
        assert found.engine is not None and abs(found.engine.drop) <= spec.max_engine_gap, found.metric
    # What is left is float32 rounding that now and then crosses a rounding boundary. A wrong scale anywhere costs
    # tens of dB: Paddle's own conversion of the image models reaches 20 to 30, of encoders less than 0.
    assert found.int8.sqnr_db["quant"] > spec.min_engine_sqnr
    assert found.int8.cosine["quant"] > 0.995


def test_int8_kernels_did_the_work(judged: tuple[ModelSpec, cpu.Tier], compared: Compare) -> None:
    spec, tier = judged
    found = compared(spec, tier)[0]
    assert found.int8.int8_share is not None
    assert found.int8.int8_share >= spec.int8_share_due(found.int8.variant)
    assert found.fp32.int8_share == 0.0
    assert found.quant is not None and found.quant.int8_share == 0.0
    families = {isa.partition("_")[0] for isa in found.int8.kernel_isas}
    # Without AVX-512 products run in oneDNN's GEMM, which names no ISA ("jit"); ERNIE has no other kernels.
    due = [{"avx2", "jit"}, {"jit"}] if tier.name == "avx2" else [{"avx512"}]
    assert families in due
