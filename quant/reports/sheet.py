"""Tables and charts as values, before they become HTML or a terminal's lines; figures as text with what sorts them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quant.reports.page.charts import Bar, Trend
from quant.reports.tables import Table

__all__ = [
    "Cell",
    "Chart",
    "Column",
    "Drawing",
    "Line",
    "Section",
    "Sheet",
    "Status",
    "as_table",
    "counted",
    "figure",
    "heads",
    "interval",
    "points",
    "times",
]

Status = Literal["", "ok", "unsure", "missed", "failed"]


@dataclass(frozen=True)
class Column:
    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """`value`: what rows are sorted by where the column is numeric; None, NaN: behind all others."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Line:
    """A row of a table, about the model of that index; its status is "" where nothing was judged."""

    cells: tuple[Cell, ...]
    status: Status = ""
    model: int | None = None


@dataclass(frozen=True)
class Sheet:
    """A table. The first column says what a row is about."""

    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    def only(self, caption: str, titles: Sequence[str], lines: Callable[[Line], bool]) -> "Sheet":
        """Some of the columns, of some of the lines."""
        places = [place for title in titles for place, c in enumerate(self.columns) if c.title == title]
        kept = [replace(line, cells=tuple(line.cells[p] for p in places)) for line in self.lines if lines(line)]
        return Sheet(caption, tuple(self.columns[place] for place in places), tuple(kept))


@dataclass(frozen=True)
class Chart:
    """Bars, or lines over the runs that `moments` names; what it shows in words, and what its axis is."""

    title: str
    message: str
    axis: str
    bars: tuple[Bar, ...] = ()
    base: float | None = None
    trends: tuple[Trend, ...] = ()
    moments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A chart that draws itself: `draw(name)` is an <svg> element; `name` is unique in the page."""

    title: str
    draw: Callable[[str], str]


@dataclass(frozen=True)
class Section:
    """A part of a page of its own, about one model; `sheets`: tables, each with what is to be known of its columns."""

    topic: str
    model: str
    sentences: tuple[str, ...]
    drawings: tuple[Drawing, ...]
    sheets: tuple[tuple[Sheet, str], ...]


def as_table(sheet: Sheet, note: str = "") -> Table:
    """The same for a terminal or Markdown."""
    rows = tuple(tuple(cell.text for cell in line.cells) for line in sheet.lines)
    return Table(sheet.caption, tuple(column.title for column in sheet.columns), rows, note)


# --- figures as text and value


def figure(value: float | None, digits: int, form: str = "") -> Cell:
    """A figure; "-" for none, and words for what isn't finite."""
    if value is None:
        return Cell("-")
    if math.isnan(value):
        return Cell("not a number", value)
    if math.isinf(value):
        return Cell("∞" if value > 0 else "-∞", value)
    return Cell(f"{value:{form}.{digits}f}", value)


def points(share: float | None, form: str = "+") -> Cell:
    return figure(None if share is None else 100 * share, 2, form)


def times(ratio: float) -> str:
    return figure(ratio, 2).text


def interval(low: float, high: float, form: str = "") -> str:
    return f"[{figure(low, 2, form).text}, {figure(high, 2, form).text}]"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def heads(words: Sequence[str], numbers: Sequence[str]) -> tuple[Column, ...]:
    """Columns of words, then columns of numbers."""
    return (*map(Column, words), *(Column(title, True) for title in numbers))
