"""What one run of a model spends its time on: kernels by kind, the ops that ran them, and the sums.

Pure functions from parsed logs and times to values; times are in milliseconds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from quant.errors import ModelError
from quant.runtime.verbose_log import Kernel

__all__ = [
    "KINDS",
    "Average",
    "Group",
    "Step",
    "Sums",
    "groups",
    "kind_of",
    "lowest",
    "middle",
    "moved",
    "per_op",
    "steps_of",
    "sums_of",
    "typical",
]

# Kind of kernel -> what it is called in tables.
KINDS = {
    "int8": "INT8 convolutions, products, recurrent layers",
    "bf16": "bfloat16 convolutions, products, recurrent layers",
    "fp32": "FP32 convolutions, products, recurrent layers",
    "quantize": "between float32 and int8",
    "reorder": "other reorders: layout, copies",
    "other": "other: pooling, softmax, sums, ...",
}

Average = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_INTEGERS = {"s8", "u8"}


def kind_of(kernel: Kernel) -> str:
    """The key of KINDS for a kernel."""
    types = [entry.partition(":")[2] for entry in kernel.types]
    if kernel.weighted:
        return "int8" if kernel.int8 else "bf16" if "bf16" in types else "fp32"
    if kernel.op != "reorder":
        return "other"
    return "quantize" if len(_INTEGERS.intersection(types)) == 1 and not _INTEGERS.issuperset(types) else "reorder"


def middle(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the middle half along the first axis.

    As deaf to outliers as a median is, but oneDNN's clock ticks in microseconds and many kernels take one or two: the
    median of such readings is off by up to half of what it measures, their mean isn't.
    """
    ordered = np.sort(samples, axis=0)
    cut = len(ordered) // 4
    result: NDArray[np.float64] = ordered[cut : len(ordered) - cut].mean(axis=0)
    return result


def lowest(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the lowest quarter along the first axis: for readings most of which other processes have spoilt."""
    ordered = np.sort(samples, axis=0)
    result: NDArray[np.float64] = ordered[: -(-len(ordered) // 4)].mean(axis=0)
    return result


def typical(runs: Sequence[Sequence[Kernel]], average: Average = middle) -> tuple[Kernel, ...]:
    """The kernels of one run, each with its average time over all runs.

    Raises ModelError when the runs aren't of the same kernels in the same order.
    """
    sequences = {tuple(replace(kernel, ms=0.0) for kernel in run) for run in runs}
    if len(sequences) != 1:
        raise ModelError("the model doesn't run the same kernels each time, so their times can't be put together")
    ms = average(np.array([[kernel.ms for kernel in run] for run in runs]))
    return tuple(replace(kernel, ms=float(value)) for kernel, value in zip(runs[0], ms, strict=True))


@dataclass(frozen=True)
class Group:
    """Kernels of one op, implementation (with its ISA) and data types. `macs`: multiply-accumulates of all of them."""

    kind: str
    op: str
    implementation: str
    types: tuple[str, ...]
    count: int
    ms: float
    share: float  # of the time of all kernels
    macs: int


def groups(kernels: Sequence[Kernel]) -> tuple[Group, ...]:
    """The kernels of a run in groups, the one that takes longest first."""
    total = sum(kernel.ms for kernel in kernels)

    def key(kernel: Kernel) -> tuple[str, str, str, tuple[str, ...]]:
        return kind_of(kernel), kernel.op, kernel.implementation, kernel.types

    result = []
    for (kind, op, implementation, types), found in groupby(sorted(kernels, key=key), key):
        members = list(found)
        ms, macs = sum(kernel.ms for kernel in members), sum(kernel.macs for kernel in members)
        result.append(Group(kind, op, implementation, types, len(members), ms, ms / total if total else 0.0, macs))
    return tuple(sorted(result, key=lambda group: -group.ms))


def moved(kernels: Iterable[Kernel], samples: int) -> tuple[int, int]:
    """Bytes a sample that a run's reorders read and write: between float32 and int8, and within one of those."""
    found = {"quantize": 0, "reorder": 0}
    for kernel in kernels:
        if kernel.op == "reorder":
            found[kind_of(kernel)] += kernel.moved
    return found["quantize"] // samples, found["reorder"] // samples


@dataclass(frozen=True, eq=False)
class Step:
    """One op that was executed: the variables that it wrote, its kernels, and its time beside those.

    `program` is the number of the op of the model's program that writes one of those variables, None for what Paddle's
    own fusion made up.
    """

    type: str
    outputs: tuple[str, ...]
    program: int | None
    kernels: tuple[Kernel, ...]
    beside_ms: float

    @property
    def kernel_ms(self) -> float:
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def ms(self) -> float:
        return self.kernel_ms + self.beside_ms


def steps_of(
    written: Sequence[tuple[str, str]],
    before: Sequence[int],
    ms: Sequence[float],
    kernels: Sequence[Kernel],
    writers: Mapping[str, int],
) -> tuple[Step, ...]:
    """The executed ops, from what Predictor.watch told.

    `written`: (op type, variable) for each output; `before`: how many kernels had run by then; `ms`: the time since the
    output before (or the beginning). `writers`: variable -> number of the op of the program that writes it. An op with
    several outputs is told of several times in a row.
    """
    found: list[tuple[str, list[str], int | None, int, float]] = []
    for (type, variable), ran, time in zip(written, before, ms, strict=True):
        writer = writers.get(variable)
        if found:
            last, outputs, program, had, spent = found[-1]
            same = last == type and ran == had and (program is None or writer is None or program == writer)
            if same:
                found[-1] = (last, [*outputs, variable], writer if program is None else program, had, spent + time)
                continue
        found.append((type, [variable], writer, ran, time))
    steps, start = [], 0
    for type, outputs, program, end, time in found:
        own = tuple(kernels[start:end])
        beside = max(time - sum(kernel.ms for kernel in own), 0.0)
        steps.append(Step(type, tuple(outputs), program, own, beside))
        start = end
    return tuple(steps)


def per_op(steps: Iterable[Step]) -> tuple[tuple[str, int, float, float], ...]:
    """(op type, how many, ms in kernels, ms beside) of the executed ops, the type that takes longest first."""
    table: dict[str, tuple[int, float, float]] = {}
    for step in steps:
        count, inside, beside = table.get(step.type, (0, 0.0, 0.0))
        table[step.type] = (count + 1, inside + step.kernel_ms, beside + step.beside_ms)
    rows = ((type, *values) for type, values in table.items())
    return tuple(sorted(rows, key=lambda row: -(row[2] + row[3])))


@dataclass(frozen=True)
class Sums:
    """Where the time of a run goes; `wall_ms` is measured without oneDNN's log.

    `kinds` (a key of KINDS -> ms) add up to `kernel_ms`. Of the rest, `outside_ms` is spent by `outside_ops` ops that
    run no kernel of oneDNN's, and `dispatch_ms` by the `kernel_ops` that do, beside their kernels.
    """

    wall_ms: float
    logged_ms: float
    kinds: Mapping[str, float]
    kernel_ms: float
    kernel_ops: int
    dispatch_ms: float
    outside_ops: int
    outside_ms: float

    @property
    def told_ms(self) -> float:
        """The time of all kernels, and of ops that run none."""
        return self.kernel_ms + self.outside_ms

    @property
    def int8_share(self) -> float:
        """The share of INT8 kernels that multiply in `told_ms`."""
        return self.kinds["int8"] / self.told_ms if self.told_ms else 0.0

    @property
    def overhead_ms(self) -> float:
        """All time that isn't a kernel's."""
        return self.wall_ms - self.kernel_ms

    @property
    def ratio(self) -> float:
        """Wall / kernel time."""
        return self.wall_ms / self.kernel_ms if self.kernel_ms else float("inf")


def sums_of(kernels: Sequence[Kernel], steps: Sequence[Step], wall_ms: float, logged_ms: float) -> Sums:
    kinds = {name: sum((kernel.ms for kernel in kernels if kind_of(kernel) == name), 0.0) for name in KINDS}
    total = sum(kinds.values())
    outside = [step for step in steps if not step.kernels]
    outside_ms = sum((step.ms for step in outside), 0.0)
    # What is left belongs to nothing else: times of single ops are rough, and all of them don't quite make the whole.
    dispatch = max(wall_ms - total - outside_ms, 0.0)
    return Sums(wall_ms, logged_ms, kinds, total, len(steps) - len(outside), dispatch, len(outside), outside_ms)
