"""Tables that fit into a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table

__all__ = ["WIDTH", "fit"]

WIDTH = 100  # of a terminal, in characters


def fit(table: Table, columns: Sequence[Sequence[str]], width: int = WIDTH) -> None:
    """Give a table's columns, each with its title and cells, the widths with which it takes `width` characters.

    Cells break between words only, and if that is enough in the last column only. Where words are too long for `width`
    the table is wider: print it with crop=False.
    """
    words = [max(cell_len(word) for cell in cells for word in [*cell.split(), ""]) for cells in columns]
    whole = [max(map(cell_len, cells)) for cells in columns]
    ways = [(least, gap) for least in ([*whole[:-1], words[-1]], words) for gap in (2, 1)]
    fitting = [(least, gap) for least, gap in ways if sum(least) + gap * (len(columns) - 1) <= width]
    widths, gap = (*fitting, (words, 1))[0]
    gaps = gap * (len(columns) - 1)
    for place, column in enumerate(table.columns):
        room = max(0, width - sum(widths) - gaps)
        widths[place] += min(room, whole[place] - widths[place])
        column.width = widths[place]
    table.width = sum(widths) + gaps
    table.box, table.show_edge, table.pad_edge, table.padding = SIMPLE_HEAD, False, False, (0, gap - 1, 0, 0)
