"""An analysis -> tables, a chart, a part of a page, JSON and back. Never runs a model."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quant.diagnosis.drift import Analysis, OpError
from quant.metrics.tensor_error import MOST_DB
from quant.reports.page import charts
from quant.reports.sheet import Cell, Column, Drawing, Line, Section, Sheet, as_table, counted, figure
from quant.reports.tables import Table

__all__ = ["as_json", "chart", "from_json", "section", "tables"]

SCHEMA = 2
_WORST = 20
_LEAST_DB = -1000.0  # float32 holds no greater difference
_SERIES = (
    ("own error, on the same inputs", "local_db", "D", charts.MUTED, ""),
    ("to the simulation", "quant_db", "s", charts.INK, (0, (5, 2))),
    ("to FP32", "fp32_db", "o", charts.ACCENT, "-"),
)
_WHOSE = {"engine": "the engine", "calibration": "calibration", "range": "the range of integers"}
_FINDINGS_NOTE = (
    "engine: the executed op doesn't do what the simulation does. calibration: the simulation's rounding doesn't "
    "fit the values. range: integers that are never used."
)
_OPS_NOTE = (
    "SQNR, 150 is no difference. Own error: executed op against the simulation on the same inputs; of recurrent "
    "layers with the rounding of their state. Rounding: what rounding this op alone costs. To sim., to FP32: with "
    "the errors of all ops before. Drop: below the worst input. Op ids: what --op-ids-to-skip leaves in FP32."
)


def tables(analysis: Analysis, *, each: bool = False) -> tuple[Table, ...]:
    """Findings; the twenty worst ops (with `each`, all in the order of execution); what can't be seen."""
    order = "In the order of execution." if each else "Worst: faults of the engine, then by what rounding alone costs."
    found = [as_table(_findings(analysis), _FINDINGS_NOTE), as_table(_ops(analysis, each), f"{_OPS_NOTE} {order}")]
    if analysis.unseen:
        rows = tuple((variable, type) for variable, type in analysis.unseen)
        note = "Written and read inside one kernel; what that puts out is compared as a whole."
        found.append(Table("Tensors that can't be seen", ("Variable", "Op"), rows, note))
    return tuple(found)


def section(analysis: Analysis) -> Section:
    """The same for a page: in words, findings, the worst ops, SQNR over the ops."""
    ops = _ops(analysis, each=False)
    titles = [column.title for column in ops.columns]
    findings = _findings(analysis).only("Findings, worst first", ("Output", "Kind", "What"), lambda line: True)
    return Section(
        topic="Why accuracy drops",
        model=analysis.title,
        sentences=tuple(_sentences(analysis)),
        drawings=(Drawing("SQNR over the ops", partial(chart, analysis)),) if analysis.ops else (),
        sheets=(
            *([(findings, _FINDINGS_NOTE)] if analysis.findings else []),
            (ops.only(ops.caption, [titles[1], titles[0], *titles[2:]], lambda line: True), _OPS_NOTE),
        ),
    )


def _sentences(analysis: Analysis) -> Iterator[str]:
    yield (
        f"Each op of the INT8 model {analysis.title} as it was executed ({analysis.isa}, executor {analysis.executor}, "
        f"{counted(analysis.threads, 'thread')}), on {counted(analysis.samples, 'sample')}: against the simulation, "
        "where there is one, and against the FP32 model."
    )
    kinds = Counter(finding.kind for finding in analysis.findings)
    told = [f"{count} of {_WHOSE[kind]}" for kind, count in kinds.items()]
    found = f"{counted(len(analysis.findings), 'finding')}: {', '.join(told)}." if told else "Nothing was found."
    judged = any(op.local_db is not None for op in analysis.ops)
    sound = " The engine does what the simulation says." if judged and not kinds["engine"] else ""
    yield f"{found}{sound}{_worst(analysis)}"
    if analysis.amplifies:
        yield f"To the simulation, {analysis.amplifies}."
    if analysis.unseen:
        one = len(analysis.unseen) == 1
        yield (
            f"{counted(len(analysis.unseen), 'tensor')} {'is' if one else 'are'} written and read inside one kernel, "
            f"and can't be seen: what that kernel puts out is compared as a whole."
        )


def _findings(analysis: Analysis) -> Sheet:
    found = [(finding.kind, finding.output or "-", finding.text) for finding in analysis.findings]
    lines = tuple(Line(tuple(map(Cell, texts))) for texts in found or [("-", "-", "nothing was found")])
    return Sheet("Findings, worst first", (Column("Kind"), Column("Output"), Column("What")), lines)


_COLUMNS = (
    Column("No.", True), Column("Output"), Column("Executed op"), Column("Stored"), Column("Of the FP32 model"),
    Column("Op ids"), Column("Own error dB", True), Column("Rounding dB", True), Column("To sim. dB", True),
    Column("To FP32 dB", True), Column("Drop dB", True), Column("FP32 range"), Column("Threshold", True),
    Column("Beyond", True), Column("At ends", True),
)  # fmt: skip


def _ops(analysis: Analysis, each: bool) -> Sheet:
    chosen = analysis.ops if each else analysis.ranked[:_WORST]
    place = {op.variable: number for number, op in enumerate(analysis.ops, 1)}
    lines = tuple(Line((figure(place[op.variable], 0), *_cells(analysis, op))) for op in chosen)
    title = (
        f"{analysis.title} {analysis.isa}, executor {analysis.executor}, threads {analysis.threads}, "
        f"{analysis.samples} samples, {len(chosen)} of {len(analysis.ops)} ops"
    )
    return Sheet(title, _COLUMNS, lines)


def _cells(analysis: Analysis, op: OpError) -> tuple[Cell, ...]:
    shown = {"": "-", "float32": "f32", "int8": "s8", "uint8": "u8 - 128" if op.shift else "u8"}
    seen = "-" if op.low is None or op.high is None else f"{op.low:.3g} .. {op.high:.3g}"
    return (
        Cell(op.output),
        Cell(op.type),
        Cell(shown.get(op.stored, op.stored)),
        Cell(" + ".join(source.removeprefix("elementwise_") for source in op.sources) or "-"),
        Cell(", ".join(map(str, op.op_ids)) or "-"),
        figure(op.local_db, 1) if op.local_db is not None else Cell(op.unmeasured),
        *(figure(db, 1) for db in (op.local_fp32_db, op.quant_db, op.fp32_db, analysis.drop_db(op))),
        Cell(seen),
        Cell("-") if op.grid is None else Cell(f"{op.grid[0]:.3g}/{op.grid[1]}", op.grid[0]),
        *(Cell("-") if share is None else Cell(f"{100 * share:.2f}%", share) for share in (op.saturated, op.ends)),
    )


# --- JSON


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All of it as one object, ops from the worst; `place` is an op's number in the order of execution."""
    place = {op.variable: number for number, op in enumerate(analysis.ops, 1)}
    return {
        "schema": SCHEMA,
        "model": str(analysis.model),
        "title": analysis.title,
        "executor": analysis.executor,
        "isa": analysis.isa,
        "threads": analysis.threads,
        "samples": analysis.samples,
        "as_read_db": analysis.as_read_db,
        "findings": [asdict(finding) for finding in analysis.findings],
        "ops": [
            {**asdict(op), "place": place[op.variable], "drop_db": analysis.drop_db(op), "added": analysis.added(op)}
            for op in analysis.ranked
        ],
        "unseen": [{"variable": variable, "type": type} for variable, type in analysis.unseen],
    }


@dataclass(frozen=True)
class _PlacedOpError(OpError):
    place: int


@dataclass(frozen=True)
class _Unseen:
    variable: str
    type: str


class _File(BaseModel):
    """What of `as_json` the rest follows from."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    number: Literal[2] = Field(alias="schema")
    model: str
    title: str
    executor: str
    isa: str
    threads: int
    samples: int
    as_read_db: float | None
    ops: tuple[_PlacedOpError, ...]
    unseen: tuple[_Unseen, ...]


def from_json(text: str | bytes) -> Analysis:
    """The inverse of `as_json`. Raises ValueError (pydantic's own where a key is missing or of another type)."""
    found = _File.model_validate_json(text)
    placed = sorted(found.ops, key=lambda op: op.place)
    if len({op.variable for op in placed}) < len(placed):
        raise ValueError("ops: two of them write the same variable")
    for op in placed:
        known = (db for db in (op.local_db, op.local_fp32_db, op.quant_db, op.fp32_db) if db is not None)
        if not all(_LEAST_DB <= db <= MOST_DB for db in known):
            raise ValueError(f"ops: SQNR must be from {_LEAST_DB:.0f} to {MOST_DB:.0f} dB")
    analysis = Analysis(
        model=Path(found.model),
        title=found.title,
        executor=found.executor,
        isa=found.isa,
        threads=found.threads,
        samples=found.samples,
        as_read_db=found.as_read_db,
        unseen=tuple((entry.variable, entry.type) for entry in found.unseen),
        ops=tuple(OpError(**{column.name: getattr(op, column.name) for column in fields(OpError)}) for op in placed),
    )
    try:
        _ = analysis.findings, analysis.ranked
    except (ArithmeticError, IndexError) as error:
        raise ValueError(f"ops: figures that no analysis has ({error})") from error
    return analysis


# --- chart


def chart(analysis: Analysis, name: str = "analysis") -> str:
    """SQNR of each op's output in the order of execution, as an <svg> element for a page (see page.charts).

    Ops that don't do what the simulation does are crossed.
    """
    with charts.styled():
        drawn, axes = charts.figure(3.4)
        for label, field, marker, colour, dashes in _SERIES:
            points = [(place, db) for place, op in enumerate(analysis.ops, 1) if (db := getattr(op, field)) is not None]
            axes.plot(
                *_columns(points), marker=marker, ms=3, lw=1.2 if dashes else 0, ls=dashes or "none", color=colour,
                mfc=charts.PANEL, label=label,
            )  # fmt: skip
        faults = [(place, op.local_db or 0.0) for place, op in enumerate(analysis.ops, 1) if op.faulty]
        if faults:
            axes.plot(*_columns(faults), "X", ms=9, color=charts.BAD, label="fault of the engine", zorder=5)
        axes.grid(axis="y", color=charts.LINE, lw=0.6)
        axes.set_ylabel("SQNR, dB")
        axes.set_xlabel("op, in the order of execution")
        drawn.legend(loc="outside upper left", frameon=False, ncols=2, columnspacing=1)
        return charts.svg(drawn, name, _message(analysis))


def _columns(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    found = list(points)
    return [place for place, _ in found], [value for _, value in found]


def _message(analysis: Analysis) -> str:
    return f"SQNR of {counted(len(analysis.ops), 'op')} in the order of execution.{_worst(analysis)}"


def _worst(analysis: Analysis) -> str:
    """A sentence about the op that comes first, behind others."""
    if not analysis.ranked:
        return " No op could be compared."
    worst = analysis.ranked[0]
    kind = "doesn't do what the simulation does" if worst.faulty else "makes the most noise"
    return f" Worst: {worst.output} {kind}."
