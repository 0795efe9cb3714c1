"""What INT8 models consist of, in words and tables for the reports: shares of arithmetic and time, what is between."""

from collections.abc import Mapping

from quant.reports.tables import Table
from quant.results.record import Anatomy
from quant.results.target import Row

__all__ = ["cost_of", "tables"]

_UNKNOWN = "-"


def cost_of(found: Anatomy) -> str:
    """What being INT8 comes to, as sentences; "" for runs that don't tell."""
    if found.mac_share is None:
        return ""
    left_out = f" (not counted: {', '.join(found.uncounted)})" if found.uncounted else ""
    return (
        f"INT8 kernels do {_percent(found.mac_share)} of the multiply-accumulates{left_out}, in "
        f"{_percent(found.time_share)} of the time of kernels and of ops outside oneDNN; these ops take "
        f"{_percent(found.outside_share)} of it. Of a sample, {_count(found.crossing_bytes)} bytes go between float32 "
        f"and int8, {_count(found.reorder_bytes)} through other reorders."
    )


def tables(found: Mapping[str, Anatomy], rows: Mapping[str, Row]) -> list[Table]:
    """Of all models: what being INT8 comes to, and the float32 ops between INT8 ops. Empty ones are left out."""
    known = {rows[name].title: anatomy for name, anatomy in found.items() if anatomy.mac_share is not None}
    between = [(title, entry) for title, anatomy in known.items() for entry in anatomy.between or ()]
    costs = tuple(
        (
            title,
            _percent(anatomy.mac_share),
            ", ".join(anatomy.uncounted) or _UNKNOWN,
            _percent(anatomy.time_share),
            _percent(anatomy.outside_share),
            _count(anatomy.crossing_bytes),
            _count(anatomy.reorder_bytes),
            str(len(anatomy.between or ())),
        )
        for title, anatomy in known.items()
    )
    columns = (
        "Model",
        "MACs",
        "Not counted",
        "Time",
        "Outside oneDNN",
        "Bytes quantized",
        "Bytes reordered",
        "Between",
    )
    note = (
        "MACs, time: what INT8 kernels do of all multiply-accumulates, and take of the time of kernels and of ops "
        "outside oneDNN. Bytes a sample that reorders read and write: between float32 and int8, and within one of "
        "those. Between: float32 ops with INT8 ops before and behind them."
    )
    stands = tuple((title, entry.type, entry.output, _count(entry.bytes), *entry.parts) for title, entry in between)
    listed = ("Model", "Op", "Output", "Bytes a sample", "Pass", "Why it did not take it")
    every = (
        Table("What INT8 comes to", columns, costs, note),
        Table("FP32 ops between INT8 ops, most bytes first", listed, stands),
    )
    return [table for table in every if table.rows]


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.1f}%"


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else f"{number:,}"
