"""A profile -> tables and JSON. Never runs a model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quant.diagnosis.advice import Crossings
from quant.diagnosis.kernel_table import KINDS, groups, kind_of, per_op
from quant.diagnosis.profile import Profile
from quant.reports.tables import Table
from quant.runtime.verbose_log import Kernel

__all__ = ["as_json", "tables"]

_BUSY = 0.2  # share of interrupted runs that is worth a word


def tables(profile: Profile, *, each: bool = False) -> tuple[Table, ...]:
    """Kernels in groups (with `each`, also one by one), sums, ops, islands, findings."""
    found = [_groups(profile), _sums(profile)]
    if each:
        found.insert(0, _each(profile))
    found.append(_ops(profile))
    if profile.islands:
        found.append(_islands(profile))
    if profile.crossings is not None and profile.crossings.between:
        found.append(_between(profile.crossings))
    rows = tuple((f"{entry.ms:.3f}", entry.text) for entry in profile.findings)
    return (*found, Table("Findings: what costs time, most first", ("ms", "What"), rows))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _rate(macs: int, ms: float) -> str:
    return f"{macs / ms / 1e6:.0f}" if macs and ms else "-"


def _title(profile: Profile) -> str:
    return (
        f"{profile.model} {profile.precision}, executor {profile.executor}, {profile.isa}, "
        f"threads {profile.threads}, batch {profile.batch}, {profile.runs} runs"
    )


def _owners(profile: Profile) -> list[str]:
    """For each kernel the first output of its op."""
    return [step.outputs[0] for step in profile.steps for _ in step.kernels]


def _flag(profile: Profile, kind: str) -> str:
    """What is float32 among INT8 kernels."""
    return "FP32" if kind == "fp32" and any(kind_of(kernel) == "int8" for kernel in profile.kernels) else ""


def _groups(profile: Profile) -> Table:
    rows = [
        (
            group.op,
            group.implementation,
            " ".join(group.types),
            str(group.count),
            _ms(group.ms),
            f"{100 * group.share:.1f}%",
            _rate(group.macs, group.ms),
            _flag(profile, group.kind),
        )
        for group in groups(profile.kernels)
    ]
    columns = ("Kernel", "Implementation", "Data types", "Count", "ms", "Share", "GMAC/s", "Flag")
    return Table(_title(profile), columns, tuple(rows))


def _each(profile: Profile) -> Table:
    """Every kernel in the order of execution, with the op that it belongs to."""
    owner = _owners(profile)
    theirs = profile.float_ms or (None,) * len(profile.kernels)
    rows = [
        (
            str(number),
            kernel.op,
            kernel.implementation,
            " ".join(kernel.types),
            kernel.problem,
            _ms(kernel.ms),
            _rate(kernel.macs, kernel.ms),
            _ms(float_ms),
            name,
            _flag(profile, kind_of(kernel)),
        )
        for number, (kernel, name, float_ms) in enumerate(zip(profile.kernels, owner, theirs, strict=True), 1)
    ]
    columns = ("", "Kernel", "Implementation", "Data types", "Problem", "ms", "GMAC/s", "FP32 ms", "Output", "Flag")
    return Table("Kernels in order", columns, tuple(rows))


def _sums(profile: Profile) -> Table:
    sums = profile.sums
    shown = {kind: told for kind, told in KINDS.items() if sums.kinds[kind] or kind != "bf16"}
    rows = [(told, _ms(sums.kinds[kind]), _share(sums.kinds[kind], sums.wall_ms)) for kind, told in shown.items()]
    rows.append(("all kernels", _ms(sums.kernel_ms), _share(sums.kernel_ms, sums.wall_ms)))
    outside, around = f"ops outside oneDNN ({sums.outside_ops})", f"around the kernels of {sums.kernel_ops} ops"
    rows.append((outside, _ms(sums.outside_ms), _share(sums.outside_ms, sums.wall_ms)))
    rows.append((around, _ms(sums.dispatch_ms), _share(sums.dispatch_ms, sums.wall_ms)))
    rows.append(("a run", _ms(sums.wall_ms), "100.0%"))
    note = (
        f"Wall / kernel time {sums.ratio:.2f}. A run is timed without oneDNN's log; with it, it takes "
        f"{sums.logged_ms / sums.wall_ms:.2f} times as long."
    )
    if profile.crossings is not None:
        crossing, reorders = profile.moved
        note += f" INT8 is {_share(sums.int8_share, 1.0)} of the time of kernels and of ops outside oneDNN; "
        note += f"{crossing:,} bytes a sample go between float32 and int8, {reorders:,} through other reorders."
    if profile.interrupted > _BUSY:
        note += f" This machine is busy: other processes took the CPU in {100 * profile.interrupted:.0f}% of the runs."
    if profile.interrupted == 1.0:
        note += " So a run's CPU time stands for its time."
    return Table("Where a run's time goes", ("What", "ms", "Of a run"), tuple(rows), note)


def _ops(profile: Profile) -> Table:
    rows = [
        (type, str(count), _ms(inside), _ms(beside), f"{1e3 * beside / count:.1f}")
        for type, count, inside, beside in per_op(profile.steps)
    ]
    columns = ("Executed op", "Count", "ms in kernels", "ms beside", "us beside, each")
    return Table("Ops", columns, tuple(rows), "Beside: executor and work outside oneDNN, less what telling them costs.")


def _islands(profile: Profile) -> Table:
    rows = []
    for island in profile.islands:
        types = ", ".join(f"{count} {type}" for type, count in island.types.items())
        ends = island.first if island.ops == 1 else f"{island.first} ... {island.last}"
        border = f"{island.enter} in, {island.leave} out"
        inside = (f"{island.macs / 1e6:.1f}", _ms(island.inside_ms), _ms(island.beside_ms))
        outside = (border, _ms(island.enter_ms + island.leave_ms), _ms(island.border_beside_ms))
        rows.append((str(island.number), types, ends, *inside, *outside, _ms(island.float_ms), _ms(island.spared_ms)))
    columns = (
        *("Island", "INT8 ops", "Outputs", "MMACs", "ms inside", "ms beside", "Border ops", "ms in those"),
        *("ms beside those", "Same in FP32, ms", "Spared, ms"),
    )
    note = "Spared: the FP32 model's kernels for the same products, less the island's own and its borders."
    return Table("INT8 islands", columns, tuple(rows), note)


def _between(found: Crossings) -> Table:
    rows = tuple((entry.type, entry.output, f"{entry.bytes:,}", entry.reason) for entry in found.between)
    columns = ("Op", "Output", "Bytes a sample", "Pass that would take it: why it did not")
    return Table("FP32 ops between INT8 ops, most bytes first", columns, rows)


def as_json(profile: Profile) -> dict[str, Any]:
    """All of it as one object; milliseconds."""
    sums = profile.sums
    owner = _owners(profile)
    theirs: Sequence[float | None] = profile.float_ms or (None,) * len(profile.kernels)
    return {
        "model": str(profile.model),
        "precision": profile.precision,
        "executor": profile.executor,
        "isa": profile.isa,
        "threads": profile.threads,
        "batch": profile.batch,
        "runs": profile.runs,
        "interrupted": profile.interrupted,
        "int8_time_share": sums.int8_share,
        "crossing_bytes": profile.moved[0],
        "reorder_bytes": profile.moved[1],
        "crossings": asdict(profile.crossings) if profile.crossings else None,
        "groups": [asdict(group) for group in groups(profile.kernels)],
        "kernels": [
            {**_kernel(kernel), "output": name, "fp32_ms": float_ms}
            for kernel, name, float_ms in zip(profile.kernels, owner, theirs, strict=True)
        ],
        "sums": {**asdict(sums), "overhead_ms": sums.overhead_ms, "ratio": sums.ratio},
        "ops": [
            {"type": type, "count": count, "kernel_ms": inside, "beside_ms": beside}
            for type, count, inside, beside in per_op(profile.steps)
        ],
        "islands": [
            {**asdict(island), "border_ms": island.border_ms, "spared_ms": island.spared_ms}
            for island in profile.islands
        ],
        "fp32_kernels": [
            {"op": entry.op_type, "output": entry.output, "reason": entry.reason, "kernel": _kernel(entry.kernel)}
            for entry in profile.floats
        ],
        "findings": [asdict(entry) for entry in profile.findings],
    }


def _kernel(kernel: Kernel) -> dict[str, Any]:
    return {**asdict(kernel), "kind": kind_of(kernel), "isa": kernel.isa}
