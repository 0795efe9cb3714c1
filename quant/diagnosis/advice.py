"""What an INT8 island costs, and what keeps a model from being faster, in sentences with the milliseconds behind them.

Pure functions of measured values.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quant.diagnosis.kernel_table import Step, Sums, groups, kind_of, per_op
from quant.results.record import Between
from quant.runtime.verbose_log import Kernel

__all__ = [
    "Crossings",
    "Finding",
    "FloatKernel",
    "IslandCost",
    "findings",
    "float_kernels",
    "float_ms_of",
    "island_costs",
]

_WORTH = 0.005  # of a run; what costs less is no finding
_NAMED = 3  # ops that a finding names
_IN_VAIN = 0.8  # an INT8 kernel that takes more than this share of the FP32 one's time gains next to nothing
_SLOW = ("ref", "ref_int8")  # implementations that oneDNN falls back on when it has none for a case


@dataclass(frozen=True)
class IslandCost:
    """An INT8 island, numbered from 1.

    `types`: INT8 op type -> how many; `first` and `last`: their outputs; `macs`: multiply-accumulates. Times: the
    kernels of its ops (`inside_ms`) and what the executor takes beside those; the kernels of the `enter` quantize and
    `leave` dequantize ops at its borders, and what the executor takes beside them. `float_ms`: the kernels of the same
    products in the FP32 model, None when that isn't known.
    """

    number: int
    types: Mapping[str, int]
    first: str
    last: str
    macs: int
    inside_ms: float
    beside_ms: float
    enter: int
    enter_ms: float
    leave: int
    leave_ms: float
    border_beside_ms: float
    float_ms: float | None = None

    @property
    def ops(self) -> int:
        return sum(self.types.values())

    @property
    def border_ms(self) -> float:
        """What would be spared if there were no island: quantize and dequantize ops, kernels and dispatch."""
        return self.enter_ms + self.leave_ms + self.border_beside_ms

    @property
    def spared_ms(self) -> float | None:
        """What INT8 spares: the FP32 kernels less its own and its borders; negative when it loses."""
        return None if self.float_ms is None else self.float_ms - self.inside_ms - self.border_ms


@dataclass(frozen=True)
class FloatKernel:
    """A float32 kernel that multiplies, in a model with INT8 ones: the op it belongs to, and why that is float32."""

    op_type: str
    output: str
    reason: str
    kernel: Kernel


@dataclass(frozen=True)
class Crossings:
    """Of a converted graph, for one sample: the float32 ops between INT8 ops, most bytes first; `bytes` that quantize
    and dequantize ops read and write."""

    between: tuple[Between, ...]
    bytes: int

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Crossings":
        """The inverse of `dataclasses.asdict`."""
        return Crossings(tuple(Between(**entry) for entry in content["between"]), content["bytes"])


@dataclass(frozen=True)
class Finding:
    """`ms`: what it costs in one run."""

    ms: float
    text: str


def float_kernels(steps: Sequence[Step], program: Mapping[str, object]) -> tuple[FloatKernel, ...]:
    """The float32 kernels that multiply; `program`: what quant.diagnosis.profile_worker tells of it."""
    outputs, types, floats = program["outputs"], program["types"], program["floats"]
    assert isinstance(outputs, Sequence) and isinstance(types, Sequence) and isinstance(floats, Mapping)
    found = []
    for step in steps:
        for kernel in step.kernels:
            if kind_of(kernel) != "fp32":
                continue
            source, why = floats.get(str(step.program), (None, "Paddle's own fusion made this op"))
            name = step.outputs[0] if source is None else outputs[source]
            found.append(FloatKernel(step.type if source is None else types[source], name, why, kernel))
    return tuple(found)


def _problem(kernel: Kernel) -> object:
    return kernel.problem


def _work(kernel: Kernel) -> object:
    return kernel.macs


def float_ms_of(kernels: Sequence[Kernel], others: Sequence[Kernel]) -> tuple[float | None, ...]:
    """For each kernel that multiplies, the time of its counterpart in the FP32 model; None for all others.

    Counterparts have the same problem, those of one problem follow each other in the same order. Where not all find
    one so (a product may be described in two or four dimensions), the number of multiply-accumulates takes the
    problem's place; where not all find one even then, nothing is said of any.
    """
    theirs = [kernel for kernel in others if kernel.weighted]
    ours = [kernel for kernel in kernels if kernel.weighted]
    for key in (_problem, _work):
        if Counter(map(key, ours)) == Counter(map(key, theirs)):
            waiting: dict[object, list[float]] = {}
            for kernel in reversed(theirs):
                waiting.setdefault(key(kernel), []).append(kernel.ms)
            return tuple(waiting[key(kernel)].pop() if kernel.weighted else None for kernel in kernels)
    return (None,) * len(kernels)


def island_costs(
    steps: Sequence[Step], program: Mapping[str, object], float_ms: Sequence[float | None] = ()
) -> tuple[IslandCost, ...]:
    """The islands with what was measured of their ops; `float_ms`: of each kernel, as `float_ms_of` gives it."""
    outputs, types, told = program["outputs"], program["types"], program["islands"]
    assert isinstance(outputs, Sequence) and isinstance(types, Sequence) and isinstance(told, Sequence)
    by_op: dict[int, list[Step]] = {}
    theirs: dict[Step, float | None] = {}
    at = 0
    for step in steps:
        if step.program is not None:
            by_op.setdefault(step.program, []).append(step)
        own = [
            float_ms[at + place] if float_ms else None for place, kernel in enumerate(step.kernels) if kernel.weighted
        ]
        known = [value for value in own if value is not None]
        theirs[step] = sum(known) if len(known) == len(own) else None
        at += len(step.kernels)
    result = []
    for number, island in enumerate(told, 1):
        inside, enter, leave = (
            [step for op in island[part] for step in by_op.get(op, ())] for part in ("ops", "enter", "leave")
        )
        floats = [theirs[step] for step in inside]
        known = [value for value in floats if value is not None]
        result.append(
            IslandCost(
                number=number,
                types=dict(Counter(types[op] for op in island["ops"])),
                first=outputs[island["ops"][0]],
                last=outputs[island["ops"][-1]],
                macs=sum(kernel.macs for step in inside for kernel in step.kernels),
                inside_ms=sum(step.kernel_ms for step in inside),
                beside_ms=sum(step.beside_ms for step in inside),
                enter=len(island["enter"]),
                enter_ms=sum(step.kernel_ms for step in enter),
                leave=len(island["leave"]),
                leave_ms=sum(step.kernel_ms for step in leave),
                border_beside_ms=sum(step.beside_ms for step in (*enter, *leave)),
                float_ms=sum(known) if float_ms and known and len(known) == len(floats) else None,
            )
        )
    return tuple(result)


def findings(
    kernels: Sequence[Kernel],
    steps: Sequence[Step],
    sums: Sums,
    islands: Sequence[IslandCost],
    floats: Sequence[FloatKernel],
    float_ms: Sequence[float | None] = (),
) -> tuple[Finding, ...]:
    """What costs time beside INT8 arithmetic, what costs most first; INT8 arithmetic itself where it is slow.

    `float_ms`: of each kernel, as `float_ms_of` gives it.
    """
    found = [*_overhead(steps, sums), *_conversions(kernels), *_in_float(kernels, floats), *_lonely(islands)]
    found += _others(kernels) + _references(kernels) + _in_vain(kernels, float_ms)
    least = _WORTH * sums.wall_ms
    return tuple(sorted((entry for entry in found if entry.ms >= least), key=lambda entry: -entry.ms))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _overhead(steps: Sequence[Step], sums: Sums) -> list[Finding]:
    each = 1e3 * sums.dispatch_ms / max(sums.kernel_ops, 1)
    share = _percent(sums.dispatch_ms, sums.wall_ms)
    found = [
        Finding(
            sums.dispatch_ms,
            f"the executor's overhead around kernels is {share} of a run, {sums.dispatch_ms:.3f} ms: "
            f"{_plural(sums.kernel_ops, 'op')} at {each:.1f} us each",
        )
    ]
    for type, count, _, beside in per_op([step for step in steps if not step.kernels]):
        each = 1e3 * beside / count
        text = f"{_plural(count, f'{type} op')} outside oneDNN: {beside:.3f} ms, {each:.1f} us each"
        found.append(Finding(beside, text))
    return found


def _conversions(kernels: Sequence[Kernel]) -> list[Finding]:
    found = []
    for kind, told in (("quantize", "between float32 and int8"), ("reorder", "within one type (layout, copies)")):
        members = [kernel for kernel in kernels if kind_of(kernel) == kind]
        ms = sum(kernel.ms for kernel in members)
        if members:
            most = max(members, key=lambda kernel: kernel.ms)
            text = f"{_plural(len(members), 'reorder')} {told}: {ms:.3f} ms; the longest, {most.problem}, {most.ms:.3f}"
            found.append(Finding(ms, text))
    return found


def _in_float(kernels: Sequence[Kernel], floats: Sequence[FloatKernel]) -> list[Finding]:
    """FP32 kernels in a model with INT8 ones, by reason."""
    total = sum(kernel.ms for kernel in kernels)
    if not any(kind_of(kernel) == "int8" for kernel in kernels):
        single = [kernel.ms for kernel in kernels if kind_of(kernel) == "fp32"]
        text = f"there is no INT8 kernel: {_plural(len(single), 'FP32 kernel')} take {_percent(sum(single), total)}"
        return [Finding(sum(single), f"{text} of kernel time")] if single else []
    found = []
    for reason in dict.fromkeys(entry.reason for entry in floats):
        members = sorted((e for e in floats if e.reason == reason), key=lambda e: -e.kernel.ms)
        ms = sum(entry.kernel.ms for entry in members)
        names = ", ".join(f"{entry.op_type} {entry.output!r}" for entry in members[:_NAMED])
        more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
        count = _plural(len(members), "FP32 kernel")
        found.append(
            Finding(ms, f"{count}: {ms:.3f} ms, {_percent(ms, total)} of kernel time: {names}{more} ({reason})")
        )
    return found


def _lonely(islands: Sequence[IslandCost]) -> list[Finding]:
    """Islands that lose against float32, or, where that isn't known, whose borders cost more than what they hold."""
    found = []
    for island in islands:
        held = f"{_plural(island.ops, 'op')} of {island.inside_ms:.3f} ms"
        where = f"{island.first!r}" if island.ops == 1 else f"{island.first!r} to {island.last!r}"
        edges = f"{_plural(island.enter, 'quantize op')}, {_plural(island.leave, 'dequantize op')}"
        borders = f"{island.border_ms:.3f} ms at its borders ({edges})"
        if island.spared_ms is not None:
            if island.spared_ms < 0:
                text = f"island {island.number} loses against float32 ({island.float_ms:.3f} ms): {held}, {borders}"
                found.append(Finding(-island.spared_ms, f"{text}: leave {where} in float32"))
        elif island.border_ms > island.inside_ms:
            text = f"island {island.number}: {held}, but {borders}: {where} may be faster in float32"
            found.append(Finding(island.border_ms, text))
    return found


def _others(kernels: Sequence[Kernel]) -> list[Finding]:
    """Kernels that neither multiply nor convert, by op and data types."""
    whole = sum(kernel.ms for kernel in kernels)
    merged: dict[tuple[str, str], tuple[int, float]] = {}
    for group in groups([kernel for kernel in kernels if kind_of(kernel) == "other"]):
        types = "float32" if not {"s8", "u8"} & {entry.partition(":")[2] for entry in group.types} else "int8"
        count, ms = merged.get((group.op, types), (0, 0.0))
        merged[group.op, types] = (count + group.count, ms + group.ms)
    return [
        Finding(ms, f"{_plural(count, f'{op} kernel')} in {types}: {ms:.3f} ms, {_percent(ms, whole)} of kernel time")
        for (op, types), (count, ms) in merged.items()
    ]


def _references(kernels: Sequence[Kernel]) -> list[Finding]:
    slow = [kernel for kernel in kernels if kernel.weighted and kernel.implementation.partition(":")[0] in _SLOW]
    if not slow:
        return []
    ms, most = sum(kernel.ms for kernel in slow), max(slow, key=lambda kernel: kernel.ms)
    text = f"{_plural(len(slow), 'kernel')} of oneDNN's reference code: {ms:.3f} ms; the longest {most.problem}"
    return [Finding(ms, text)]


def _in_vain(kernels: Sequence[Kernel], float_ms: Sequence[float | None]) -> list[Finding]:
    """INT8 kernels that are hardly faster than those of the FP32 model."""
    pairs = [(kernel, theirs) for kernel, theirs in zip(kernels, float_ms, strict=bool(float_ms)) if theirs is not None]
    slow = [(kernel, theirs) for kernel, theirs in pairs if kernel.int8 and kernel.ms > _IN_VAIN * theirs]
    if not slow:
        return []
    ms, theirs = sum(kernel.ms for kernel, _ in slow), sum(theirs for _, theirs in slow)
    most = max((kernel for kernel, _ in slow), key=lambda kernel: kernel.ms)
    count = _plural(len(slow), "INT8 kernel")
    text = f"{count} hardly faster than in FP32 ({theirs:.3f} ms): {ms:.3f} ms; the longest {most.op} {most.problem}"
    return [Finding(ms, text)]
