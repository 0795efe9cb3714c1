"""Latency of the full-size rows. The paired case asserts a ratio; absolute times are recorded, never asserted."""

import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from quant import cpu
from quant.datasets.columns import values_of
from quant.datasets.readers import open_data
from quant.ir.graph import load_dir, model_size
from quant.results.benchmark_files import extra_info
from quant.results.record import Record
from quant.results.speed_ratio import pairs, settled
from quant.results.target import Case, Row
from quant.runtime.inputs import sample_input, signature
from quant.runtime.predictor import Arrays, Precision, Predictor, Settings
from quant.suites import embedded
from quant.suites.registry import ModelSpec

ROUNDS = 8


def test_int8_takes_little_room(spec: ModelSpec) -> None:
    """Bytes of program and parameters, INT8 against FP32."""
    built = embedded.full_of(spec)
    assert model_size(built / "int8") <= spec.max_size * model_size(built / "fp32")


def one_batch(spec: ModelSpec, directory: Path, batch: int) -> Arrays:
    """What a row is timed on: its data's first samples, its own input, or generated images."""
    if not spec.full:
        data = open_data(embedded.data_of(spec, spec.test), signature(load_dir(directory)), spec.format)
        return {name: column[:batch] for name, column in data.inputs.items()}
    if spec.full_input:
        made: Arrays = pkgutil.resolve_name(spec.full_input)(batch)
        return made
    return sample_input(load_dir(directory), batch, {})


@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
def test_latency(
    benchmark: BenchmarkFixture, measured: ModelSpec, precision: Precision, threads: int, batch: int
) -> None:
    """Row x precision x threads x batch, in this process, which runs under this machine's own ISA.

    What pytest-benchmark keeps of it is for comparing runs; outputs are looked at, times are not judged.
    """
    if precision == "bf16" and "avx512_bf16" not in cpu.flags():
        pytest.skip("this CPU lacks avx512_bf16")
    directory: Path = embedded.full_of(measured) / ("int8" if precision == "int8" else "fp32")
    with Predictor(directory, Settings(precision, threads=threads)) as predictor:
        predictor.feed(one_batch(measured, directory, batch))
        benchmark.extra_info.update(model=measured.name, precision=precision, threads=threads, batch=batch)
        benchmark.pedantic(predictor.run, rounds=ROUNDS, warmup_rounds=2)
        found = [values_of(out) for out in predictor.read().values()]
        assert all(np.isfinite(values).all() for values in found)


def test_int8_against_fp32(benchmark: BenchmarkFixture, timing: tuple[ModelSpec, Case, cpu.Tier]) -> None:
    """FP32 (its fastest variant) and INT8 alternate in a child capped to the tier; the ratio against what is due."""
    spec, case, tier = timing
    check_ratio(benchmark, spec, partial(embedded.speed, spec, case, isa=tier.cap.lower()))


def check_ratio(benchmark: BenchmarkFixture, row: Row, measure: Callable[..., list[Record]]) -> None:
    """Judge the ratio of what `measure` times (`budget_s` in seconds -> FP32 and INT8 records); see speed_ratio.

    One that isn't reached is an expected failure, with its figures in the summary, when it comes close, and a failure
    when it doesn't (see Pair.result) or INT8 is slower.
    """
    [pair] = pairs(benchmark.pedantic(settled, (row, measure), rounds=1), {row.name: row})
    benchmark.extra_info.update(extra_info(pair.row, (pair.fp32, pair.int8), "pytest bench"))
    told = f"FP32 / INT8 is {pair.ratio:.2f} [{pair.low:.2f}, {pair.high:.2f}], due {pair.due}"
    assert pair.result != "FAILED", told
    assert pair.high >= 1.0, told
    if pair.result == "MISSED":
        pytest.xfail(told)
