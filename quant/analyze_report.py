"""An analysis -> tables, a chart, JSON. Never runs a model."""

from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from quant import charts
from quant.analyze import Analysis, OpError
from quant.report import Table

__all__ = ["as_json", "chart", "standalone", "tables"]

_WORST = 20
_SERIES = (
    ("own error: simulation on the same inputs", "local_db", "D", charts.MUTED, ""),
    ("to the simulation", "quant_db", "s", charts.INK, (0, (5, 2))),
    ("to FP32", "fp32_db", "o", charts.ACCENT, "-"),
)


def tables(analysis: Analysis, *, each: bool = False) -> tuple[Table, ...]:
    """Findings; the twenty worst ops (with `each`, all in the order of execution); what can't be seen."""
    found = [_findings(analysis), _ops(analysis, each)]
    if analysis.unseen:
        rows = tuple((variable, type) for variable, type in analysis.unseen)
        note = "Written and read inside one kernel; what that puts out is compared as a whole."
        found.append(Table("Tensors that can't be seen", ("Variable", "Op"), rows, note))
    return tuple(found)


def _findings(analysis: Analysis) -> Table:
    rows = tuple((finding.kind, finding.output or "-", finding.text) for finding in analysis.findings)
    note = (
        "engine: the executed op doesn't do what the simulation does. calibration: the simulation's rounding doesn't "
        "fit the values. range: integers that are never used."
    )
    return Table("Findings, worst first", ("Kind", "Output", "What"), rows or (("-", "-", "nothing was found"),), note)


def _ops(analysis: Analysis, each: bool) -> Table:
    chosen = analysis.ops if each else analysis.ranked[:_WORST]
    place = {op.variable: number for number, op in enumerate(analysis.ops, 1)}
    rows = tuple((str(place[op.variable]), *_row(analysis, op)) for op in chosen)
    columns = (
        *("", "Output", "Executed op", "Stored", "Of the FP32 model", "Own error dB", "Rounding dB", "To sim. dB"),
        *("To FP32 dB", "Drop dB", "FP32 range", "Threshold", "Beyond", "At ends"),
    )
    title = (
        f"{analysis.model} {analysis.isa}, executor {analysis.executor}, threads {analysis.threads}, "
        f"{analysis.samples} samples, {len(chosen)} of {len(analysis.ops)} ops"
    )
    note = (
        "SQNR, 150 is no difference. Own error: executed op against the simulation on the same inputs; of recurrent "
        "layers with the rounding of their state. Rounding: what rounding this op alone costs. To sim., to FP32: with "
        "the errors of all ops before. Drop: below the worst input. "
        + ("In the order of execution." if each else "Worst: faults of the engine, then by the noise that ops add.")
    )
    return Table(title, columns, rows, note)


def _row(analysis: Analysis, op: OpError) -> tuple[str, ...]:
    shown = {"": "-", "float32": "f32", "int8": "s8", "uint8": "u8 - 128" if op.shift else "u8"}
    seen = "-" if op.low is None or op.high is None else f"{op.low:.3g} .. {op.high:.3g}"
    return (
        op.output,
        op.type,
        shown.get(op.stored, op.stored),
        " + ".join(source.removeprefix("elementwise_") for source in op.sources) or "-",
        _db(op.local_db) if op.local_db is not None else op.unmeasured,
        *map(_db, (op.local_fp32_db, op.quant_db, op.fp32_db)),
        _db(analysis.drop_db(op)),
        seen,
        "-" if op.grid is None else f"{op.grid[0]:.3g}/{op.grid[1]}",
        _share(op.saturated),
        _share(op.ends),
    )


def _db(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All of it as one object, ops from the worst; `place` is an op's number in the order of execution."""
    place = {op.variable: number for number, op in enumerate(analysis.ops, 1)}
    return {
        "model": str(analysis.model),
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


# --- chart


def chart(analysis: Analysis, name: str = "analysis") -> str:
    """SQNR of each op's output in the order of execution, as an <svg> element for a page (see quant.charts).

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
        drawn.legend(loc="outside upper left", frameon=False, ncols=2, fontsize="small")
        return charts.svg(drawn, name, _message(analysis))


def _columns(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    found = list(points)
    return [place for place, _ in found], [value for _, value in found]


def _message(analysis: Analysis) -> str:
    worst = analysis.ranked[0] if analysis.ranked else None
    if worst is None:
        return "No op could be compared."
    kind = "doesn't do what the simulation does" if worst.faulty else "adds the most noise"
    return f"SQNR of {len(analysis.ops)} ops in the order of execution; {worst.output} {kind}."


def standalone(drawing: str) -> str:
    """The text of an .svg file: a drawing of `chart` with the page's colours, light or dark as the viewer is."""
    style = files("quant").joinpath("templates/report.css").read_text()
    colours = style[: style.index("* {")]  # the variables alone
    rules = f"{colours} svg {{ background: var(--panel); font-family: sans-serif; }}"
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title", f"<style>{rules}</style><title", 1
    )
