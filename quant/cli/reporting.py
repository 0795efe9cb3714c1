"""The command that makes a page of a run."""

import webbrowser
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quant.cli.shared import HistoryDir, app, err, out
from quant.errors import DataError, OutputError
from quant.reports.page import render
from quant.reports.page.sections import section_of
from quant.reports.sheet import Section
from quant.results import history
from quant.results.record import Run
from quant.storage.files import writable_dir, write_text

__all__ = ["page", "report"]

_LAST = Path("out/report.json")
_EARLIER = 100  # runs that are read; each takes about a megabyte of memory


def page(run: Run, history_dir: Path, sections: Sequence[Section] = ()) -> str:
    """A run's page, with lines over the runs of a directory, if it is there. ValueError: records of no use."""
    found = history.runs(history_dir, err.print) if history_dir.is_dir() else ()
    return render.render(run, [earlier for _, earlier in deque(found, _EARLIER)], sections)


@app.command("report")
def report(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help=f"A run's file; default: {_LAST}, else the history's newest run."),
    ] = None,
    history_dir: HistoryDir = history.DEFAULT,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="Also show what `quant analyze --output FILE` or `quant tune` (tuning.json) found; repeatable.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The page.")] = Path("out/report.html"),
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Make one HTML page of a run, which needs no network: verdict, accuracy, speed, models, history, environment."""
    if history_dir != history.DEFAULT and not history_dir.is_dir():
        raise DataError(f"{history_dir}: no such directory")
    path = run or (_LAST if _LAST.is_file() else history.newest(history_dir))
    found = history.load(path)
    sections = [section_of(file) for file in beside or ()]
    if output.is_dir():
        raise OutputError(f"{output}: is a directory")
    writable_dir(output.parent)
    try:
        text = page(found, history_dir, sections)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    write_text(output, text)
    out.print(str(output))
    if show and not webbrowser.open(output.resolve().as_uri()):
        err.print(f"no browser could be opened here; open {output} yourself")
