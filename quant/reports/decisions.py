"""What `quant convert --optimize speed` decided (decisions.json, see search.for_speed) -> a table and sentences."""

from collections.abc import Mapping
from typing import Any

from quant.reports.tables import Table

__all__ = ["sentences", "table"]

_SHOWN = 8  # op ids of a trial


def table(decisions: Mapping[str, Any]) -> Table:
    """A row for each trial, in order."""
    rows = []
    for trial in decisions["tried"]:
        ids = trial["op_ids"]
        named = ", ".join(map(str, ids[:_SHOWN])) + ", ..." * (len(ids) > _SHOWN)
        gain, ratio = f"{trial['gain_ms']:.3f}", _interval(trial)
        rows.append((str(len(ids)), named, gain, ratio, "kept" if trial["kept"] else "not faster"))
    columns = ("Ops", "Op ids", "Expected gain, ms", "Best so far / this [95%]", "Result")
    return Table("Tried in FP32", columns, tuple(rows))


def sentences(decisions: Mapping[str, Any]) -> list[str]:
    """What was chosen, why, and what it was measured on."""
    ratios, place = decisions["ratios"], decisions["cpu"]
    best = "optimised" if "optimised" in decisions["median_ms"] else "int8"
    against = f"{_interval(ratios[f'fp32/{best}'])} times as fast as FP32"
    told = {
        "optimised": f"INT8, but for {_ops(decisions['left_in_fp32'])} that it slowed down: {against}",
        "int8": f"INT8 wherever it can be: {_interval(ratios['fp32/int8'])} times as fast as FP32",
        "fp32": f"INT8 doesn't pay on this CPU, the FP32 model was written: the best INT8 model found is {against}",
    }
    lines = [told[decisions["choice"]]]
    if best == "optimised":
        whole = _interval(ratios["int8/optimised"])
        if decisions["choice"] == "optimised":
            lines.append(f"INT8 wherever it can be takes {whole} times as long")
        else:
            lines.append(f"what was kept was not confirmed at the end: without it a run takes {whole} times as long")
    cores = f"{place['threads']} thread" + "s" * (place["threads"] > 1)
    spent = f"{decisions['spent_s']:.0f} of {decisions['budget_s']:.0f} s"
    return [*lines, f"measured for {spent} on {place['tier']}, {cores}, batch {place['batch']}"]


def _ops(left: list[Mapping[str, Any]]) -> str:
    return f"{len(left)} op" + "s" * (len(left) > 1)


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
