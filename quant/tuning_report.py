"""What `quant tune` found (tuning.json, see quant.tuning_run) -> a table of accuracy and latency, and sentences."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.report import Table

__all__ = ["sentences", "table"]

_SHOWN = 8  # op ids of a model


def table(found: Mapping[str, Any]) -> Table:
    """FP32, then each model that was run on the whole set, in the order it was found."""
    fp32 = found["fp32"]
    rows = [("FP32", "all", "", f"{100 * fp32['score']:.2f}%", "", "", _ms(fp32["median_ms"]), "1.00", "")]
    for point in found["points"]:
        notes = [name for name in ("chosen", "pareto") if point[name]]
        rows.append(
            (
                "INT8",
                _named([str(number) for number in point["op_ids"]]) or "none",
                _algorithms(point),
                f"{100 * point['score']:.2f}%",
                f"{100 * point['drop']:+.2f} [{100 * point['low']:+.2f}, {100 * point['high']:+.2f}]",
                "met" if point["met"] else "missed",
                _ms(point["median_ms"]),
                _speedup(point),
                ", ".join(notes),
            )
        )
    columns = (
        "Model",
        "Ops in FP32",
        "Algorithm",
        found["metric"],
        "Drop, points [95%]",
        "Target",
        "ms",
        "FP32 / this",
    )
    note = "pareto: no other model here is as good in drop and time, and better in one"
    return Table("Accuracy and latency", (*columns, ""), tuple(rows), note)


def sentences(found: Mapping[str, Any], output: Path, resumable: bool) -> list[str]:
    """What was chosen and why, what it is judged on, how the search ended, where things are."""
    [point] = [point for point in found["points"] if point["chosen"]]
    limit = f"{100 * found['max_drop']:.2f} points"
    ops = [f"{op['op_type']}({op['op_id']}) {op['output']}" for op in point["ops"]]
    kept = f"{len(point['op_ids'])} op{'s' * (len(point['op_ids']) != 1)} in FP32"
    listed = f": {_named(ops)}" if ops else ""
    lines = [f"INT8 by {_algorithms(point)}, {kept}{listed}"]
    met = "met" if point["met"] else "missed"
    lines.append(
        f"its drop is {100 * point['drop']:.2f} points of {found['metric']} on {found['samples']:,} samples; the "
        f"target of {limit} is {met} by the estimate, {found['verdict']} by its 95% interval"
    )
    if point["speedup"] is not None and point["speedup"]["low"] <= 1:
        lines.append(f"on this CPU it isn't surely faster than FP32: {_speedup(point)} times as fast")
    tried = f"{len(found['trials'])} trials in {found['spent_s']:.0f} of at most {found['budget_s']:.0f} s"
    failed = sum(bool(trial["failed"]) for trial in found["trials"])
    lines.append(tried + (f", {failed} of them failed (tuning.json says why)" if failed else ""))
    if resumable:
        lines.append("the time ended before the search did: the same command with --resume goes on")
    lines.append(f"{output}: int8, quant (its simulation), tuning.json, quant.toml (its manifest entry)")
    return lines


def _algorithms(point: Mapping[str, Any]) -> str:
    own = len(point["tensors"])
    return str(point["algo"]) + (f", {own} tensor{'s' * (own > 1)} otherwise" if own else "")


def _named(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _speedup(point: Mapping[str, Any]) -> str:
    found = point["speedup"]
    return "" if found is None else f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
