"""Runs made of invented records, for tests of what reads runs: nothing is measured and no model is loaded."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from quant.cpu import TIERS, tier_of
from quant.results.record import Anatomy, Between, KeptOp, Kernel, Layer, Load, Machine, Record, Run, columns
from quant.results.target import Row
from quant.suites.registry import BY_NAME, MODELS

__all__ = ["accuracy", "anatomy", "machine", "run", "speed", "suite_run"]

PACKAGES = {"paddlepaddle": "3.3.1", "numpy": "2.3.5", "quant-onednn": "0.1.0"}
FLAGS = {
    "avx2": ("avx2",),
    "avx512_core": ("avx2", "avx512f", "avx512bw"),
    "avx512_vnni": ("avx2", "avx512f", "avx512bw", "avx512_vnni"),
    "amx": ("avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
}
_KERNELS = {
    "avx2": "avx2+jit",
    "avx512_core": "avx512_core",
    "avx512_vnni": "avx512_core_vnni",
    "amx": "avx512_core_amx",
}
_WORDS = 5  # in a sentence, of metrics that count words


def machine(
    tier: str = "avx512_vnni",
    *,
    cpu: str = "Intel(R) Xeon(R) Gold 6271C CPU @ 2.60GHz",
    cores: int = 2,
    packages: Mapping[str, str] = PACKAGES,
) -> Machine:
    return Machine(FLAGS[tier], tier, cores, "3.11.2", dict(packages), cpu)


def _outcomes(metric: str, hits: np.ndarray) -> tuple[str, ...]:
    """The columns of a metric's counts, where a sample is right or has one word wrong."""
    ones = np.ones_like(hits)
    if metric in ("f1", "segmentation_f1", "precision", "recall"):
        return columns(np.stack([_WORDS - ones + hits, _WORDS * ones, _WORDS * ones], 1))
    return columns(np.stack([hits, ones], 1))


def accuracy(
    name: str,
    lost: int = 3,
    won: int = 2,
    *,
    isas: Sequence[str] = ("avx512_vnni",),
    samples: int = 2000,
    score: float = 0.945,
    gap: int = 0,
    share: float = 1.0,
    metrics: Iterable[str] | None = None,
    data: str = "d0",
    **more: Any,
) -> list[Record]:
    """FP32, the simulations and INT8 on each ISA, best first, as `quant.suites.embedded.accuracy` orders them.

    FP32 is right on `score` of the samples; the simulation loses `lost` of these and wins `won` of the others; INT8
    loses `gap` more. `metrics`: by default those of the registry's row, or top1.
    """
    if metrics is None:
        metrics = BY_NAME[name].max_drop if name in BY_NAME else ("top1",)
    right = round(score * samples)
    before = (np.arange(samples) < right).astype(np.int64)
    simulated, after = before.copy(), before.copy()
    for hits, fewer in ((simulated, lost), (after, lost + gap)):
        hits[:fewer] = 0
        hits[right : right + won] = 1

    def of(precision: str, hits: np.ndarray, isa: str, variant: str = "", **found: Any) -> Record:
        values: dict[str, Any] = {"threads": 1, "batch": 50, "samples": samples, "data": data, "overhead": 0.03}
        outcomes = {metric: _outcomes(metric, hits) for metric in metrics}
        return Record(name, precision, isa, outcomes=outcomes, variant=variant, **{**values, **found, **more})

    records = [of("fp32", before, isas[0], int8_share=0.0)]
    variants = {isa: "" if tier_of(isa).vnni else "7bit" for isa in isas}
    for variant in dict.fromkeys(variants.values()):
        near = {"sqnr_db": {"fp32": 34.9}, "cosine": {"fp32": 0.9998}, "int8_share": 0.0}
        records.append(of("quant", simulated, isas[0], variant, **near))
    for isa, variant in variants.items():
        near = {"sqnr_db": {"fp32": 34.8, "quant": 46.8}, "cosine": {"fp32": 0.9998, "quant": 1.0}}
        records.append(of("int8", after, isa, variant, int8_share=share, kernel_isas=(_KERNELS[isa],), **near))
    return records


def speed(
    name: str,
    ratio: float,
    spread: float = 0.01,
    processes: int = 1,
    *,
    isa: str = "avx512_vnni",
    threads: int = 1,
    batch: int = 1,
    ms: float = 10.0,
    rounds: int = 20,
    seed: int = 0,
    **more: Any,
) -> list[Record]:
    """FP32 and INT8 timed against each other: INT8 takes `ms` a batch, FP32 `ratio` times that.

    `spread`: standard deviation of the logarithm of each timing; `rounds` in each of the `processes`.
    """
    random = np.random.default_rng([seed, *map(ord, name), threads, batch])
    found = []
    for precision, variant, typical in (("fp32", "oneDNN direct", ratio * ms), ("int8", "direct", ms)):
        seconds = typical / 1e3 * np.exp(spread * random.standard_normal(rounds * processes))
        values: dict[str, Any] = {"latency_s": tuple(seconds.tolist()), "processes": processes, "variant": variant}
        found.append(Record(name, precision, isa, threads, batch, **{**values, **more}))
    return found


def anatomy() -> Anatomy:
    """A small residual network's: three convolutions in INT8, a softmax that isn't."""
    return Anatomy(
        int8={"conv2d": 53, "pool2d": 1, "fc": 1},
        fp32=(KeptOp("softmax_0.tmp_0", "softmax", "has no INT8 kernel"), KeptOp("pool_1", "pool2d", "averages")),
        kernels=(
            Kernel("convolution", "brgconv_1x1:avx512_core_vnni", "u8 s8 u8", 36, 5.21, 0.52),
            Kernel("convolution", "brgconv:avx512_core_vnni", "u8 s8 u8", 17, 4.11, 0.41),
            Kernel("pooling", "jit:avx512_core", "u8 u8", 1, 0.32, 0.03),
            Kernel("reorder", "jit:uni", "f32 u8", 1, 0.08, 0.01),
        ),
        layers=(
            Layer("res5c_branch2c.tmp_1", "conv2d", 24.3, 46.0),
            Layer("res5b_branch2c.tmp_1", "conv2d", 25.9, 47.2),
            Layer("fc_0.tmp_2", "fc", 34.8, None),
            Layer("conv1.tmp_1", "conv2d", 41.7, 140.0),
        ),
        mac_share=1.0,
        uncounted=("custom",),
        time_share=0.93,
        outside_share=0.02,
        crossing_bytes=752_640,
        reorder_bytes=1_204_224,
        between=(Between("softmax", "softmax_0.tmp_0", 8000, "no pass takes softmax into an INT8 kernel"),),
    )


def run(
    exact: Iterable[Record] = (),
    timed: Iterable[Record] = (),
    *,
    rows: Mapping[str, Row] = BY_NAME,
    **more: Any,
) -> Run:
    """A run of these records; `more` are fields of `record.Run`. A row that isn't in `rows` is its name alone."""
    records = (*exact, *timed)
    known = {name: Row.of(rows[name]) if name in rows else Row(name, name, ()) for name in _names(records, more)}
    values: dict[str, Any] = {
        "machine": machine(),
        "rows": known,
        "records": records,
        "started": "2026-11-21T21:57:09+00:00",
        "seconds": 312.5,
        "commit": "19e416a0c5b1f20b0c2e8b8f7a1d3e4f5a6b7c8d",
        "load": Load(0.12, 0.001, 421),
    }
    return Run(**{**values, **more})


def _names(records: Sequence[Record], more: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*(record.model for record in records), *more.get("anatomy", {})]))


def suite_run(names: Iterable[str] = tuple(spec.name for spec in MODELS), *, slower: float = 1.0, **more: Any) -> Run:
    """What a whole suite on a CPU with VNNI looks like: ratios are a little above what is due, over `slower`."""
    tiers = [tier.name for tier in reversed(TIERS[:3])]
    exact, timed = [], []
    for place, spec in enumerate(BY_NAME[name] for name in names):
        samples = spec.test[1]
        exact += accuracy(spec.name, 3 + place % 3, 2 + place % 4, isas=tiers, samples=samples, score=0.95 - place / 99)
        ms = 2.0 + 3.0 * place
        for case in spec.cases:
            alike = {"batch": case.batch, "repeat": case.repeat, "by_length": case.by_length, "ms": ms * case.batch}
            for number, tier in enumerate(tiers if case is spec.cases[0] else tiers[:1]):
                ratio = (1.04 + place % 4 / 20) * case.due_on(tier) * (1.0, 1.9, 1.4)[number] / slower
                timed += speed(spec.name, ratio, isa=tier, **alike)
        timed += speed(spec.name, 0.97 * spec.cases[0].due_on(tiers[0]) / slower, threads=2, ms=0.6 * ms)
    return run(exact, timed, **{"anatomy": {name: anatomy() for name in names}, **more})
