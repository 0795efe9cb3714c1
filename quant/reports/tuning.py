"""What `quant tune` found (tuning.json, see suites.tuning) -> accuracy and latency as table and chart, sentences."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quant.reports.page import charts
from quant.reports.page.charts import Spot
from quant.reports.sheet import Cell, Column, Drawing, Line, Section, Sheet, as_table, counted, figure, interval, points
from quant.reports.tables import Table

__all__ = ["chart", "from_json", "section", "sentences", "table"]

_SHOWN = 8  # op ids of a model
_NOTE = "pareto: no other model here is as good in drop and time, and better in one"

Found = Mapping[str, Any]


def table(found: Found) -> Table:
    """FP32, then each model that was run on the whole set, in the order it was found."""
    return as_table(_points(found), _NOTE)


def sentences(found: Found, output: Path, resumable: bool) -> list[str]:
    """What was chosen and why, what it is judged on, how the search ended, where things are."""
    lines = list(_told(found))
    if resumable:
        lines.append(f"{_cut_off(found)}: the same command goes on")
    drawn = ", pareto.svg" if _timed(found) else ""
    lines.append(f"{output}: int8, quant (its simulation), tuning.json{drawn}, quant.toml (its manifest entry)")
    return lines


def section(found: Found) -> Section:
    """The same for a page."""
    lines = [*_told(found), *([] if found["finished"] else [_cut_off(found)])]
    told = [f"{line[:1].upper()}{line[1:]}." for line in lines]
    drawn = Drawing("Drop and speed", lambda name: str(chart(found, name)))
    return Section(
        topic="Accuracy and latency",
        model=found["title"],
        sentences=tuple(told),
        drawings=(drawn,) if _timed(found) else (),
        sheets=((_points(found), f"{_NOTE[:1].upper()}{_NOTE[1:]}. Drawn, by its number, is what was timed."),),
    )


def _points(found: Found) -> Sheet:
    fp32 = found["fp32"]
    columns = (
        Column("Model"), Column("Ops in FP32"), Column("Algorithm"), Column(found["metric"], True),
        Column("Drop, points [95%]", True), Column("Target"), Column("ms", True), Column("FP32 / this", True),
        Column("Note"),
    )  # fmt: skip
    first = (
        Cell("FP32"), Cell("all"), Cell(""), _percent(fp32["score"]), Cell(""), Cell(""),
        _ms(fp32["median_ms"]), Cell("1.00", 1.0), Cell(""),
    )  # fmt: skip
    lines = [Line(first)]
    for number, point in enumerate(found["points"], 1):
        low, high = 100 * point["low"], 100 * point["high"]
        cells = (
            Cell(f"INT8 {number}"),
            Cell(_named([str(op_id) for op_id in point["op_ids"]]) or "none"),
            Cell(_algorithms(point)),
            _percent(point["score"]),
            Cell(f"{points(point['drop']).text} {interval(low, high, '+')}", point["drop"]),
            Cell("met" if point["met"] else "missed"),
            _ms(point["median_ms"]),
            _speedup(point),
            Cell(", ".join(name for name in ("chosen", "pareto") if point[name])),
        )
        lines.append(Line(cells))
    return Sheet("Accuracy and latency", columns, tuple(lines))


def _told(found: Found) -> Iterator[str]:
    [point] = [point for point in found["points"] if point["chosen"]]
    limit = f"{100 * found['max_drop']:.2f} points"
    ops = [f"{op['op_type']}({', '.join(map(str, op['op_ids']))}) {op['output']}" for op in point["ops"]]
    listed = f": {_named(ops)}" if ops else ""
    yield f"INT8 by {_algorithms(point)}, {_kept(point)}{listed}"
    met = "met" if point["met"] else "missed"
    yield (
        f"its drop is {100 * point['drop']:.2f} points of {found['metric']} on {found['samples']:,} samples; the "
        f"target of {limit} is {met} by the estimate, {found['verdict']} by its 95% interval"
    )
    if point["speedup"] is not None and point["speedup"]["low"] <= 1:
        yield f"on this CPU it isn't surely faster than FP32: {_speedup(point).text} times as fast"
    if found.get("compared"):
        yield found["compared"]
    failed = sum(bool(trial["failed"]) for trial in found["trials"])
    tried = f"{len(found['trials'])} trials in {found['spent_s']:.0f} of at most {found['budget_s']:.0f} s"
    yield tried + (f", {failed} of them failed (tuning.json says why)" if failed else "")


def _cut_off(found: Found) -> str:
    return "the search was interrupted" if found["interrupted"] else "the time ended before the search did"


def _kept(point: Found) -> str:
    return f"{counted(len(point['op_ids']), 'op')} in FP32"


def _algorithms(point: Found) -> str:
    own = len(point["tensors"])
    return str(point["algo"]) + (f", {counted(own, 'tensor')} otherwise" if own else "")


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def _percent(score: float) -> Cell:
    return Cell(f"{100 * score:.2f}%", score)


def _ms(value: float | None) -> Cell:
    return Cell("") if value is None else figure(value, 3)


def _speedup(point: Found) -> Cell:
    found = point["speedup"]
    return (
        Cell("")
        if found is None
        else Cell(f"{found['ratio']:.2f} {interval(found['low'], found['high'])}", found["ratio"])
    )


# --- JSON

_Figure = Annotated[float, Field(ge=-1e9, le=1e9)]  # what can be drawn


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Ratio(_Strict):
    ratio: _Figure
    low: _Figure
    high: _Figure


class _Op(_Strict):
    op_ids: list[int]
    op_type: str
    output: str


class _Point(_Strict):
    algo: str
    op_ids: list[int]
    tensors: dict[str, str]
    ops: list[_Op]
    score: _Figure
    drop: _Figure
    low: _Figure
    high: _Figure
    met: bool
    median_ms: _Figure | None
    speedup: _Ratio | None
    chosen: bool
    pareto: bool


class _Fp32(_Strict):
    score: _Figure
    median_ms: _Figure | None


class _Trial(_Strict):
    failed: str | None


class _File(_Strict):
    """What of tuning.json is shown."""

    number: Literal[3] = Field(alias="schema")
    title: str
    metric: str
    max_drop: _Figure
    samples: int
    compared: str = ""
    fp32: _Fp32
    verdict: str
    finished: bool
    interrupted: bool = False
    points: list[_Point]
    trials: list[_Trial]
    budget_s: _Figure
    spent_s: _Figure


def from_json(text: str | bytes) -> Found:
    """What `table`, `section` and `chart` need of a tuning.json. Raises ValueError for what isn't one."""
    found = _File.model_validate_json(text)
    if sum(point.chosen for point in found.points) != 1:
        raise ValueError("points: not exactly one is chosen")
    return found.model_dump(by_alias=True)


# --- chart


def _timed(found: Found) -> list[tuple[int, Found]]:
    """Points that were timed, by their number in the table."""
    return [(number, point) for number, point in enumerate(found["points"], 1) if point["speedup"] is not None]


def chart(found: Found, name: str = "tuning") -> str | None:
    """Drop over speed, as an <svg> element for a page (see quant.reports.page.charts); None when nothing was timed."""
    timed = _timed(found)
    if not timed:
        return None
    spots = [
        Spot(
            label=str(number),
            kind="chosen" if point["chosen"] else "pareto" if point["pareto"] else "other",
            x=tuple(point["speedup"][key] for key in ("ratio", "low", "high")),
            y=tuple(100 * point[key] for key in ("drop", "low", "high")),
        )
        for number, point in timed
    ]
    return charts.spots(
        spots, name, _message(found, timed), limit=100 * found["max_drop"],
        axes=("times as fast as FP32 (to the right is better)", "points of drop (lower is better)"),
    )  # fmt: skip


def _message(found: Found, timed: Sequence[tuple[int, Found]]) -> str:
    told = [
        f"model {number}, {_kept(point)}, loses {points(point['drop']).text} points at {point['speedup']['ratio']:.2f} "
        "times FP32's speed"
        for number, point in timed
        if point["chosen"]
    ]
    best = ", ".join(str(number) for number, point in timed if point["pareto"]) or "none"
    chosen = f"Chosen: {told[0]}." if told else "The chosen model wasn't timed."
    return (
        f"Drop over speed of {counted(len(timed), 'INT8 model')}; the limit is {100 * found['max_drop']:.2f} points. "
        f"{chosen} No other is as good in drop and time, and better in one: {best}."
    )
