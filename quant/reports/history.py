"""Runs of a history -> a list, the course of one model, a drawing of it. Never runs a model."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.reports.tables import Table
from quant.results import run_scores
from quant.results.record import Run

__all__ = ["course", "overview", "plot"]

Entries = Sequence[tuple[Path, Run]]
Figures = dict[str, float]


def overview(found: Entries) -> Table:
    """All runs, oldest first."""
    rows = []
    for path, run in found:
        models = [_figures(run, name) for name in run.models()]
        drops = [drop for own, _ in models for drop in own.values()]
        ratios = [ratio for _, own in models for ratio in own.values()]
        rows.append(
            (
                run.started.partition("+")[0].replace("T", " "),
                _commit(run),
                run.kind,
                f"{run.machine.tier}, {run.machine.cores} cores",
                run.machine.packages.get("paddlepaddle", "-"),
                str(len(models)),
                f"{max(drops):+.2f}" if drops else "-",
                f"{math.exp(float(np.mean(np.log(ratios)))):.2f}" if ratios else "-",
                "passed" if run.passed else "FAILED",
                path.name,
            )
        )
    columns = ("Run (UTC)", "Commit", "Kind", "CPU", "Paddle", "Models", "Worst drop", "FP32 / INT8", "Result", "File")
    note = (
        "Worst drop: points, of all models. FP32 / INT8: geometric mean. Both on each run's own tier. *: not committed."
    )
    return Table("Runs", columns, tuple(rows), note)


def course(name: str, found: Entries) -> Table:
    """What became of one model: a line a run that measured it, a column a figure."""
    known = _of(name, found)
    columns = _keys(known)
    rows = tuple(
        (
            run.started.partition("+")[0].replace("T", " "),
            _commit(run),
            f"{run.machine.tier}, {run.machine.cores} cores",
            *(_shown(drops.get(key), "+.2f") for key in columns[0]),
            *(_shown(ratios.get(key), ".2f") for key in columns[1]),
        )
        for run, drops, ratios in known
    )
    titles = (*(f"Drop {key}" for key in columns[0]), *(f"FP32 / INT8 {key}" for key in columns[1]))
    return Table(f"{name} over runs", ("Run (UTC)", "Commit", "CPU", *titles), rows, "Drops in points.")


def plot(name: str, found: Entries) -> str:
    """The same as an SVG file: drops above, ratios below, run by run; gaps where a run didn't measure one."""
    import matplotlib
    from matplotlib.figure import Figure

    known = _of(name, found)
    of_drops, of_ratios = _keys(known)
    panels = [
        ("Drop, points", {key: [drops.get(key, math.nan) for _, drops, _ in known] for key in of_drops}),
        ("FP32 / INT8", {key: [ratios.get(key, math.nan) for _, _, ratios in known] for key in of_ratios}),
    ]
    panels = [(axis, lines) for axis, lines in panels if lines]
    style: Any = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "quant"}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(8, 1 + 2.6 * max(len(panels), 1)), layout="constrained")
        drawn.suptitle(f"{name} over runs")
        for number, (axis, lines) in enumerate(panels):
            axes = drawn.add_subplot(len(panels), 1, number + 1)
            for marker, (key, values) in zip("osD^vPX*<>" * len(lines), lines.items(), strict=False):
                axes.plot(range(len(values)), values, marker=marker, label=key)
            moments = [f"{run.started[5:10]}\n{_commit(run)}" for run, _, _ in known]
            step = math.ceil(len(known) / 12)
            axes.set_xticks(range(0, len(known), step), moments[::step], fontsize=7)
            axes.set_ylabel(axis)
            axes.grid(axis="y", alpha=0.3)
            axes.legend(fontsize=7)
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _of(name: str, found: Entries) -> list[tuple[Run, Figures, Figures]]:
    return [(run, *_figures(run, name)) for _, run in found if name in run.models()]


def _keys(known: Sequence[tuple[Run, Figures, Figures]]) -> tuple[list[str], list[str]]:
    """All figures that any run has, drops and ratios."""
    return (
        list(dict.fromkeys(key for _, drops, _ in known for key in drops)),
        list(dict.fromkeys(key for _, _, ratios in known for key in ratios)),
    )


def _figures(run: Run, name: str) -> tuple[Figures, Figures]:
    """A model's drops in points by metric, and its FP32 / INT8 by case, on the run's own tier."""
    tier, row = run.machine.tier, run.rows.get(name)
    drops = {metric: run_scores.drop(run, name, tier, metric) for metric in (row.max_drop if row else ())}
    known = {metric: drop for metric, drop in drops.items() if drop is not None}
    return known, run_scores.ratios(run, name, tier)


def _commit(run: Run) -> str:
    return run.commit[:7] + "*" * run.dirty or "-"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
