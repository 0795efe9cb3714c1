"""The embedded models as what a suite or a gate measures."""

from collections.abc import Sequence
from functools import partial

from quant import cpu
from quant.evaluation.parts import Store
from quant.results.record import Anatomy, Record
from quant.results.speed_ratio import settled
from quant.results.target import Row
from quant.suites import embedded
from quant.suites.diagnosed import anatomy_of_row
from quant.suites.measure import Progress, Subject, Timing
from quant.suites.registry import ModelSpec
from quant.timing import side_by_side

__all__ = ["gated", "whole"]


def whole(spec: ModelSpec, samples: int | None = None) -> Subject:
    """All of a row: accuracy on every reachable tier, speed in one process, what the model consists of.

    Its first case is timed on each tier at one thread, and on the best at two; its other cases on the best alone.
    """
    tiers = [tier.name for tier in cpu.reachable()]
    best = tiers[0]
    first, *others = spec.cases
    timings = [
        *(Timing(first, 1, tier) for tier in tiers),
        *([Timing(first, 2, best)] if cpu.cores() > 1 else []),
        *(Timing(case, 1, best) for case in others),
    ]

    def accuracy(progress: Progress) -> list[Record]:
        return embedded.accuracy(spec, samples=samples)

    def speed(timing: Timing, progress: Progress) -> list[Record]:
        isa = cpu.tier_of(timing.isa).cap.lower()
        measure = partial(embedded.speed, spec, timing.case, isa=isa, threads=timing.threads, progress=progress)
        return settled(spec, measure)

    def anatomy(progress: Progress) -> Anatomy:
        return anatomy_of_row(spec, progress=progress)

    return Subject(Row.of(spec), accuracy, speed, tuple(timings), partial(embedded.full_of, spec), anatomy)


def gated(spec: ModelSpec, threads: Sequence[int], store: Store | None) -> Subject:
    """What the gate looks at: accuracy on this machine's own tier, the first case's speed in fresh processes."""
    tier = cpu.detect()
    isa = tier.cap.lower()

    def accuracy(progress: Progress) -> list[Record]:
        return embedded.accuracy(spec, isa=isa, store=store)

    def speed(timing: Timing, progress: Progress) -> list[Record]:
        fp32, int8 = (embedded.timed_of(spec, precision, isa) for precision in ("fp32", "int8"))
        feed = embedded.feed_of(spec, timing.case, progress)
        return side_by_side.in_processes(
            spec.name, fp32, int8, feed, timing.case, isa=isa, threads=timing.threads, progress=progress
        )

    counts = [count for count in threads if count <= cpu.cores()]
    timings = tuple(Timing(spec.cases[0], count, tier.name) for count in counts)
    return Subject(Row.of(spec), accuracy, speed, timings, partial(embedded.full_of, spec))
