"""Models timed against each other: in one child, in pairs, in fresh processes; and the records of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from quant import cpu
from quant.process import isolate
from quant.results.record import Record
from quant.results.target import Case
from quant.timing import rounds as turns
from quant.timing.baseline import fp32_variants, variants

__all__ = ["bench", "in_pairs", "in_processes", "timed_records"]

Progress = isolate.Progress
S = TypeVar("S")
T = TypeVar("T")


def bench(
    contenders: Sequence[Sequence[Mapping[str, Any]]],
    *,
    isa: str | None = None,
    threads: int = 1,
    budget_s: float = 6.0,
    progress: Progress | None = None,
    **feed: Any,
) -> list[dict[str, Any]]:
    """Time contenders against each other in one child, on what `feed` describes; see worker.bench and Feed."""
    arguments = {
        "contenders": [list(runs) for runs in contenders],
        "threads": threads,
        "budget_s": budget_s,
        **feed,
    }
    result: list[dict[str, Any]] = isolate.call(
        "quant.timing.worker:bench", arguments, isa=isa, threads=threads, progress=progress
    )
    return result


def in_pairs(
    name: str,
    fp32: Path,
    int8: Path,
    feed: Mapping[str, Any],
    case: Case,
    *,
    isa: str | None = None,
    threads: int = 1,
    budget_s: float = 2.5,
    progress: Progress | None = None,
) -> list[Record]:
    """FP32 (its fastest variant) and INT8 records of two models, measured in pairs; `feed`: see worker.Feed."""
    contenders = [fp32_variants(fp32), [{"model": str(int8), "precision": "int8"}]]
    timed = bench(contenders, isa=isa, threads=threads, budget_s=budget_s, progress=progress, **feed)
    return timed_records(name, timed, case, cpu.tier_of(isa), threads)


def in_processes(
    name: str,
    fp32: Path,
    int8: Path,
    feed: Mapping[str, Any],
    case: Case,
    *,
    isa: str | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    **how: Any,
) -> list[Record]:
    """FP32 and INT8 records of two models, the INT8 one with a twin, in fresh processes.

    `how`: rounds, laps and job; see quant.timing.rounds.in_fresh_processes.
    """
    quick = variants(int8, "int8")
    contenders = [fp32_variants(fp32), quick, quick]
    timed = turns.in_fresh_processes(contenders, threads=threads, isa=isa, progress=progress, **how, **feed)
    rounds = how.get("rounds", turns.ROUNDS)
    records = timed_records(name, timed[:2], case, cpu.tier_of(isa), threads)
    before, after = (replace(record, processes=rounds) for record in records)
    return [before, replace(after, twin_s=tuple(timed[2]["seconds"]))]


def timed_records(
    name: str, timed: Sequence[Mapping[str, Any]], case: Case, tier: cpu.Tier, threads: int
) -> list[Record]:
    """What `bench` gave for a row."""
    return [
        Record(
            model=name,
            precision=entry["run"]["precision"],
            isa=tier.name,
            threads=threads,
            ran_threads=entry["run"].get("threads"),
            batch=case.batch,
            latency_s=tuple(entry["seconds"]),
            variant=_variant(entry["run"], threads),
            repeat=case.repeat,
            by_length=case.by_length,
        )
        for entry in timed
    ]


def _variant(run: Mapping[str, Any], threads: int) -> str:
    """Who called which kernels, and on how many threads where that isn't what was asked for."""
    ran = run.get("threads", threads)
    few = "" if ran == threads else f", {ran} thread{'s' * (ran != 1)}"
    if run.get("executor") == "direct":
        return f"oneDNN direct{few}"
    return ("oneDNN" if run.get("onednn", True) else "native") + " unfused" * (not run.get("optimise", True)) + few
