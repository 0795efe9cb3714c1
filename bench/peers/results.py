"""Results -> tables, verdicts, Markdown and JSON. Runs nothing."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.peers.compare import Cell, Row
from bench.peers.contenders import CONTENDERS, ENGINES, GOALS, Contender, Goal, contenders_of, ours, twins_of
from quant import cpu
from quant.metrics.scores import METRICS, paired, ratio_interval
from quant.reports.tables import Table
from quant.results.record import Machine
from quant.suites.registry import find

__all__ = ["Judged", "complete", "judged", "markdown", "tables", "to_json"]

_NONE = "-"
_TWINS = (
    "An engine / itself: the same model in two processes, timed in turns with the rest; as far as that is from 1.00, "
    "and as wide as its interval, a ratio between engines means nothing."
)


@dataclass(frozen=True)
class Judged:
    """A goal for one of our contenders on the rows of one run."""

    ours: Contender
    goal: Goal
    ratios: dict[str, float]  # model -> ours / theirs, where both were timed
    missing: tuple[str, ...]  # rows that weren't compared

    @property
    def mean(self) -> float:
        """Geometric mean; NaN without a row."""
        return math.exp(float(np.mean(np.log(list(self.ratios.values()))))) if self.ratios else math.nan

    @property
    def above(self) -> list[str]:
        return [model for model, ratio in self.ratios.items() if ratio > self.goal.each]

    @property
    def result(self) -> str:
        """By the medians. What wasn't compared can't be reached."""
        if self.above or not self.mean <= self.goal.mean:
            return "MISSED"
        return "INCOMPLETE" if self.missing else "reached"


def ratio_of(mine: Cell, theirs: Cell) -> tuple[float, float, float] | None:
    """Our latency / theirs and its 95% interval, of the rounds that both ran."""
    if not (mine.seconds and theirs.seconds):
        return None
    rounds = min(len(mine.seconds), len(theirs.seconds))
    return ratio_interval(np.array(mine.seconds[:rounds]), np.array(theirs.seconds[:rounds]))


def judged(rows: Sequence[Row]) -> list[Judged]:
    """Every goal for every contender of ours that was run; `rows` are of one ISA."""
    found = []
    for mine in ours():
        for goal in GOALS:
            theirs = next(other for other in contenders_of("int8") if other.engine == goal.peer)
            ratios = {}
            for row in rows:
                ratio = ratio_of(row.cells.get(mine.key, Cell()), row.cells.get(theirs.key, Cell()))
                if ratio:
                    ratios[row.model] = ratio[0]
            missing = tuple(row.model for row in rows if row.model not in ratios)
            found.append(Judged(mine, goal, ratios, missing))
    return found


def complete(rows: Sequence[Row]) -> bool:
    """Whether each row was measured: what is judged of ours, and one of the other engines."""

    def measured(row: Row) -> bool:
        timed = [one for one in contenders_of("int8") if row.cells.get(one.key, Cell()).seconds]
        return all(mine in timed for mine in ours()) and any(one.engine != "ours" for one in timed)

    return all(map(measured, rows))


# --- tables


def _ms(cell: Cell | None) -> str:
    if cell is None:
        return _NONE
    return f"{cell.milliseconds:.2f}" if cell.milliseconds is not None else f"({cell.error})"


def _case(row: Row) -> str:
    return f"{find(row.model).title}, batch {row.batch}"


def _over(one: Contender, other: Contender) -> str:
    return f"{one.title} / {'itself' if other.twin_of else other.title}"


def _ratio(row: Row, one: Contender, other: Contender) -> str:
    ratio = ratio_of(row.cells.get(one.key, Cell()), row.cells.get(other.key, Cell()))
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else _NONE


def _mean(rows: Sequence[Row], one: Contender, other: Contender) -> str:
    found = [ratio_of(row.cells.get(one.key, Cell()), row.cells.get(other.key, Cell())) for row in rows]
    ratios = [ratio[0] for ratio in found if ratio]
    return f"{math.exp(float(np.mean(np.log(ratios)))):.2f}" if ratios else _NONE


def _speed_table(rows: Sequence[Row], title: str) -> Table:
    mine, peers = ours(), [contender for contender in contenders_of("int8") if not contender.judged]
    against = [(me, peer) for me in mine for peer in peers] + twins_of("int8")
    body = []
    for row in rows:
        times = (_ms(row.cells.get(contender.key)) for contender in [*mine, *peers])
        body.append((_case(row), *times, *(_ratio(row, *pair) for pair in against)))
    blank = [""] * len([*mine, *peers])
    body.append(("geometric mean", *blank, *(_mean(rows, *pair) for pair in against)))
    columns = (
        "Model",
        *(f"{contender.title}, ms" for contender in [*mine, *peers]),
        *(_over(*pair) for pair in against),
    )
    note = (
        "Medians of a batch; ratios are medians of the rounds' ratios with a bootstrap 95% interval, and below 1 ours "
        f"is faster. {_TWINS} Of GRU and LSTM, ours and Paddle's time includes the decoding (CRF, CTC), the others' "
        "doesn't."
    )
    return Table(title, columns, tuple(body), note)


def _float_table(rows: Sequence[Row], title: str) -> Table:
    shown, pairs = contenders_of("fp32", "bf16"), twins_of("fp32", "bf16")
    body = tuple(
        (
            _case(row),
            *(_ms(row.cells.get(contender.key)) for contender in shown),
            *(_ratio(row, *pair) for pair in pairs),
        )
        for row in rows
    )
    columns = (
        "Model",
        *(f"{contender.precision.upper()}, {contender.title}, ms" for contender in shown),
        *(f"{one.precision.upper()}, {_over(one, other)}" for one, other in pairs),
    )
    return Table(title, columns, body, f"ONNX Runtime has no BF16 on CPUs. {_TWINS}")


def _accuracy_table(rows: Sequence[Row], title: str) -> Table:
    shown, body = contenders_of("int8"), []
    for row in rows:
        for metric, reference in row.reference.items():
            before = _counts(reference)
            cells = [find(row.model).title, metric, f"{100 * float(METRICS[metric].score(before.sum(0))):.2f}"]
            for contender in shown:
                cell = row.cells.get(contender.key, Cell())
                if metric in cell.outcomes:
                    drop = paired(before, _counts(cell.outcomes[metric]), metric)
                    cells.append(f"{100 * drop.drop:+.2f} [{100 * drop.low:+.2f}, {100 * drop.high:+.2f}]")
                else:
                    cells.append(f"({cell.outcomes_error})" if cell.outcomes_error else _NONE)
            body.append(tuple(cells))
    columns = ("Model", "Metric", "FP32 %", *(contender.title for contender in shown))
    note = "Drop of INT8 in points on the embedded test set, paired with our FP32 model's outcomes; positive is worse."
    return Table(title, columns, tuple(body), note)


def _share_table(rows: Sequence[Row], title: str) -> Table:
    shown = contenders_of("int8")

    def share(cell: Cell) -> str:
        told = [f"{cell.facts['int8'][0]} of {cell.facts['int8'][1]}"] if "int8" in cell.facts else []
        told += [f"{cell.facts['executor']} executor"] if "executor" in cell.facts else []
        return "; ".join([*told, *([cell.facts["shapes"]] if "shapes" in cell.facts else [])]) or _NONE

    body = tuple(
        (find(row.model).title, *(share(row.cells.get(contender.key, Cell())) for contender in shown)) for row in rows
    )
    note = (
        "Layers that multiply (convolutions, products, recurrent layers, as each engine fuses them) and run in INT8, "
        "of all such layers in the graph that the engine executes."
    )
    return Table(title, ("Model", *(contender.title for contender in shown)), body, note)


def _goal_table(rows: Sequence[Row], title: str) -> Table:
    names = {contender.engine: contender.title for contender in contenders_of("int8")}
    body = []
    for entry in judged(rows):
        above = ", ".join(f"{model} {entry.ratios[model]:.2f}" for model in entry.above)
        body.append(
            (
                f"{entry.ours.title} / {names[entry.goal.peer]}",
                f"every row {entry.goal.each:.1f}, mean {entry.goal.mean:.1f}",
                f"{entry.mean:.2f}" if entry.ratios else _NONE,
                above or "none",
                ", ".join(entry.missing) or "none",
                entry.result,
            )
        )
    columns = ("Ratio", "At most", "Geometric mean", "Rows above", "Rows not compared", "Verdict")
    return Table(title, columns, tuple(body), "By the medians; a goal that isn't reached is MISSED.")


def tables(rows: Sequence[Row]) -> list[Table]:
    """All tables of one run (one ISA)."""
    where = _where(rows[0])
    return [
        _speed_table(rows, f"INT8 latency, {where}"),
        _float_table(rows, f"FP32 and BF16 latency, {where}"),
        _accuracy_table(rows, f"INT8 accuracy, {where}"),
        _share_table(rows, f"How much is INT8, {where}"),
        _goal_table(rows, f"Goals, {where}"),
    ]


def _where(row: Row) -> str:
    cap = f"capped to {row.isa}" if row.isa else f"this CPU as it is ({cpu.detect().name})"
    return f"{row.threads} {'thread' if row.threads == 1 else 'threads'}, {cap}"


def _head(machine: Machine, capped: bool) -> list[str]:
    lines = [f"CPU: {' '.join(machine.flags)}; tier {machine.tier}; {machine.cores} cores. Python {machine.python}."]
    for engine in ENGINES:
        told = ", ".join(f"{name} {number}" for name, number in engine.versions().items())
        cap = f"capped by {engine.capped_by}" if engine.capped_by else "has no setting that caps it, and runs uncapped"
        lines.append(f"- {engine.title}: " + ". ".join([f"{told}; {cap}" if capped else told, *engine.notes]) + ".")
    return lines


def markdown(machine: Machine, runs: Sequence[Sequence[Row]]) -> str:
    """The report; a run is the rows of one ISA."""
    parts = ["# INT8 beside other engines", "\n".join(_head(machine, any(rows[0].isa for rows in runs)))]
    for table in (table for rows in runs for table in tables(rows)):
        lines = (table.columns, ("---",) * len(table.columns), *table.rows)
        parts.append(f"## {table.title}\n\n" + "\n".join(map(_markdown_row, lines)) + f"\n\n{table.note}")
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_json(machine: Machine, runs: Sequence[Sequence[Row]]) -> str:
    """Everything raw, and the verdicts."""
    goals = [
        {
            "isa": rows[0].isa,
            "ours": entry.ours.key,
            **asdict(entry.goal),
            "geometric_mean": entry.mean if entry.ratios else None,
            "ratios": entry.ratios,
            "missing": entry.missing,
            "result": entry.result,
        }
        for rows in runs
        for entry in judged(rows)
    ]
    content = {
        "machine": asdict(machine),
        "engines": {engine.name: {"versions": engine.versions(), "capped_by": engine.capped_by} for engine in ENGINES},
        "contenders": [contender.key for contender in CONTENDERS],
        "rows": [asdict(row) for rows in runs for row in rows],
        "goals": goals,
    }
    return json.dumps(content, indent=1, sort_keys=True)


def _counts(stored: Sequence[str]) -> Any:
    return np.stack([np.array(column.split(), np.int64) for column in stored], axis=1)
