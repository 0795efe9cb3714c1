"""Charts as SVG for HTML pages, and as files, drawn by matplotlib. Never runs a model.

A chart is drawn in sentinel colours that become the page's CSS variables, so that one drawing serves light and dark.
Its text is text, in the page's font. It says in words what it shows (`message`), for those who don't see it; marks
differ in shape or hatching, not in colour alone.
"""

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # loaded where it draws: it takes half a second, which no other command should wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bar", "Spot", "Trend", "bars", "figure", "plain", "spots", "standalone", "styled", "svg", "trends"]

# Sentinel colour -> what stands for it in the page's CSS.
_THEME = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--panel)",
    "#050505": "var(--accent)",
    "#060606": "var(--accent-soft)",
    "#070707": "var(--bad)",
    "#080808": "var(--bad-soft)",
}
INK, MUTED, LINE, PANEL, ACCENT, ACCENT_SOFT, BAD, BAD_SOFT = _THEME
_WIDTH = 4.2  # inches of 72 units: as wide as a phone, so that text there has about its nominal size
_SIZE = 9.5
_RC: Any = {  # rc_context's own type would need every key as a literal
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are users'
    "font.size": _SIZE,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 1.6,
}
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_NOT_IN_XML = re.compile("[^\\t\\n\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def plain(text: str, width: int) -> str:
    """Text of unknown origin as a label of one line: what XML can't hold is replaced, what is too long cut off."""
    held = " ".join(_NOT_IN_XML.sub("\ufffd", text).split())
    return held if len(held) <= width else held[: width - 1] + "…"


def figure(height: float) -> "tuple[Figure, Axes]":
    """An empty figure as wide as all are, `height` in inches, and its axes; without a frame or background."""
    from matplotlib.figure import Figure

    found = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor="none")
    axes = found.add_subplot(facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return found, axes


def styled() -> Any:
    """The context in which figures are made and written."""
    import matplotlib

    return matplotlib.rc_context(_RC)


def svg(drawn: "Figure", name: str, message: str) -> str:
    """A figure as an <svg> element. `name`: unique in the page, of letters and digits. The same figure, the same text.

    The sizes are left to the page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # only measured with it, not drawn
        drawn.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag == f"{_NAMESPACE}style":
                parent.remove(child)  # when it was drawn; rules for "*", that is the whole page
    for element in root.iter():
        _adapt(element, name)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title")
    for size in ("width", "height", "version"):
        root.attrib.pop(size)
    title = ElementTree.Element("title", {"id": f"{name}-title"})
    title.text = _NOT_IN_XML.sub("\ufffd", message)
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, name: str) -> None:
    """An SVG file's element -> one for a page that has several drawings: ids, colours, fonts."""
    element.tag = element.tag.removeprefix(_NAMESPACE)
    for key, value in list(element.attrib.items()):
        if key == "id" and element.tag == "g":  # nothing refers to groups
            del element.attrib[key]
        elif key == "id":
            element.set(key, f"{name}-{value}")
        elif key == _XLINK:
            del element.attrib[key]
            element.set("href", f"#{name}-{value[1:]}")
        elif key == "style":
            kept = [part.strip() for part in value.split(";") if not part.strip().startswith("font-family")]
            element.set(key, _themed("; ".join(kept)).replace("url(#", f"url(#{name}-"))
        elif key == "fill" and value in _THEME:
            element.set("style", f"fill: {_THEME[value]}")
            del element.attrib[key]
        elif key not in ("d", "x", "y", "points", "transform"):
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _themed(style: str) -> str:
    for sentinel, variable in _THEME.items():
        style = style.replace(sentinel, variable)
    return style


def standalone(drawing: str) -> str:
    """The text of an .svg file: what `svg` gives, with the page's colours, light or dark as the viewer is."""
    style = files("quant.reports.page").joinpath("templates/report.css").read_text()
    colours = style[: style.index("* {")]  # the variables alone
    rules = f"{colours} svg {{ background: var(--panel); font-family: sans-serif; }}"
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "<title", f"<style>{rules}</style><title", 1
    )


# --- bars


@dataclass(frozen=True)
class Bar:
    """A figure with its interval, what it is judged by (`mark`), and what else to show beside it (`other`).

    `text`: the figure in words of the page. `beyond`: on the wrong side of the mark; such bars are hatched. `detail`:
    what stands below the label.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    mark: float | None = None
    other: float | None = None
    beyond: bool = False
    detail: str = ""

    @property
    def full(self) -> str:
        return ", ".join(filter(None, (self.label, self.detail)))


def _drawn(values: Iterable[float | None]) -> NDArray[np.float64]:
    """Values to draw; what isn't a finite number becomes a gap."""
    found = np.array([math.nan if value is None else value for value in values], np.float64)
    return np.where(np.isfinite(found), found, math.nan)


def bars(entries: Sequence[Bar], name: str, message: str, *, axis: str, base: float | None = None) -> str:
    """Bars from 0, a line each, the first one above; a thin line at `base`.

    A value that isn't finite has no bar, and its text all the same.
    """
    labels = ["\n".join(filter(None, (plain(e.label, 20), plain(e.detail, 20)))) for e in entries]
    values, low, high, marks, others = (
        _drawn(getattr(entry, key) for entry in entries) for key in ("value", "low", "high", "mark", "other")
    )
    places = np.arange(len(entries))
    with styled():
        drawn, axes = figure(0.62 + (0.36 if any("\n" in label for label in labels) else 0.29) * len(entries))
        axes.barh(
            places, values, 0.62,
            color=[BAD_SOFT if entry.beyond else ACCENT_SOFT for entry in entries],
            edgecolor=[BAD if entry.beyond else ACCENT for entry in entries],
            hatch=["////" * entry.beyond for entry in entries],
        )  # fmt: skip
        reach = np.maximum([values - low, high - values], 0)
        axes.errorbar(values, places, xerr=reach, fmt="o", ms=3, color=INK, lw=1.2, capsize=2.5)
        axes.plot(marks, places, "|", ms=15, color=INK, mew=2, zorder=4)
        axes.plot(others, places, "D", ms=4.5, color=INK, mew=1, mfc=PANEL, zorder=4)
        for place, entry in enumerate(entries):
            axes.annotate(
                entry.text, (1.0, place), (50, 0), ("axes fraction", "data"), "offset points",
                ha="right", va="center", color=BAD if entry.beyond else INK,
                weight="bold" if entry.beyond else "normal",
            )  # fmt: skip
        shown = np.concatenate([values, low, high, marks, others, _drawn([0.0, base])])
        least, most = float(np.nanmin(shown)), float(np.nanmax(shown))
        room = (most - least or 1.0) * 0.04
        axes.set_xlim(least - room * (least < 0), most + room)
        axes.set_ylim(len(entries) - 0.45, -0.55)
        axes.set_yticks(places, labels)
        axes.tick_params("y", length=0)
        axes.axvline(0, color=MUTED, lw=0.8, zorder=0.5)
        if base is not None:
            axes.axvline(base, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=0.5)
        axes.grid(axis="x", color=LINE, lw=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        return svg(drawn, name, message)


# --- lines


@dataclass(frozen=True)
class Trend:
    """What became of one figure: a value a run, None where it wasn't measured."""

    label: str
    values: Sequence[float | None]


_MARKERS, _DASHES = "osD^vPX*", ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
_LEAST_SPAN = 0.2
_LABELLED = 5  # runs whose moment stands below the axis; more would overlap


def trends(found: Sequence[Trend], moments: Sequence[str], name: str, message: str, *, axis: str) -> str:
    """Lines over runs, from the oldest to the newest; `moments`: what the runs are called, a line or two each.

    The axis spans at least 0.2, so that lines that hardly move don't look as if they did.
    """
    lines = [_drawn(trend.values) for trend in found]
    with styled():
        drawn, axes = figure(2.3 + 0.17 * len(found))
        for place, values in enumerate(lines):
            axes.plot(
                values, marker=_MARKERS[place % len(_MARKERS)], ms=4.5, lw=1.4, mfc=PANEL,
                ls=_DASHES[place % len(_DASHES)], color=ACCENT if place % 2 == 0 else INK,
            )  # fmt: skip
        step = math.ceil(len(moments) / _LABELLED)
        last = len(moments) - 1
        axes.set_xticks(range(last % step, len(moments), step), moments[last % step :: step])
        axes.set_xlim(-0.5, last + 0.5)
        axes.tick_params("x", length=3)
        shown = np.concatenate(lines)
        shown = shown[np.isfinite(shown)] if np.isfinite(shown).any() else np.zeros(1)
        least, most = float(shown.min()), float(shown.max())
        room = max(0.15 * (most - least), (_LEAST_SPAN - (most - least)) / 2)
        axes.set_ylim(least - room, most + room)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y", color=LINE, lw=0.6)
        axes.set_ylabel(axis)
        labels = [plain(trend.label, 42) for trend in found]
        drawn.legend(axes.lines, labels, loc="outside upper left", frameon=False, fontsize=_SIZE, handlelength=3.2)
        return svg(drawn, name, message)


# --- points in the plane


@dataclass(frozen=True)
class Spot:
    """A figure over another, each with its interval (estimate, low, high), and what it stands out by."""

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    kind: Literal["chosen", "pareto", "other"]


# Kind -> what it is called, marker, its size, edge and filling.
_KINDS = {
    "chosen": ("chosen", "*", 14, ACCENT, ACCENT),
    "pareto": ("Pareto: none is better in both", "D", 6.5, ACCENT, ACCENT_SOFT),
    "other": ("others", "o", 6.5, INK, PANEL),
}


def spots(found: Sequence[Spot], name: str, message: str, *, limit: float, axes: tuple[str, str]) -> str:
    """Points with their intervals, and a line at the largest y that is accepted; `axes`: what x and y are.

    What isn't finite has no point. The y axis spans at least 0.2, as that of `trends` does.
    """
    found = [spot for spot in found if np.isfinite([*spot.x, *spot.y]).all()]
    with styled():
        drawn, panel = figure(3.5)
        for kind, (label, marker, size, edge, filling) in _KINDS.items():
            x, y = (np.array([getattr(s, axis) for s in found if s.kind == kind]).reshape(-1, 3) for axis in "xy")
            if len(x):
                panel.errorbar(
                    x[:, 0], y[:, 0], _reach(y), _reach(x), fmt="none", color=MUTED, elinewidth=1, capsize=2, zorder=2
                )
                panel.plot(x[:, 0], y[:, 0], marker, ms=size, mec=edge, mfc=filling, label=label, zorder=3)
        panel.axhline(limit, color=BAD, lw=1.4, ls=(0, (4, 3)), label="limit", zorder=1)
        for spot, side in _sides(found):
            panel.annotate(
                plain(spot.label, 12), (spot.x[0], spot.y[0]), (9 * side, 4), textcoords="offset points",
                ha="left" if side > 0 else "right", color=INK, weight="bold" if spot.kind == "chosen" else "normal",
                bbox={"boxstyle": "square,pad=0.1", "fc": PANEL, "ec": "none"},
            )  # fmt: skip
        panel.margins(0.12)
        least, most = panel.get_ylim()
        room = max(0.0, _LEAST_SPAN - (most - least)) / 2
        panel.set_ylim(least - room, most + room)
        panel.ticklabel_format(useOffset=False)
        panel.grid(color=LINE, lw=0.6)
        panel.set_axisbelow(True)
        panel.set_xlabel(axes[0])
        panel.set_ylabel(axes[1])
        drawn.legend(loc="outside upper left", frameon=False, ncols=2)
        return svg(drawn, name, message)


def _reach(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far intervals go to both sides of their estimates, [2, N]."""
    return np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0)


def _sides(found: Sequence[Spot]) -> Iterable[tuple[Spot, int]]:
    """On which side of a point its label stands, right (1) or left (-1): neighbours take turns."""
    for place, spot in enumerate(sorted(found, key=lambda spot: (spot.y[0], spot.x[0]))):
        yield spot, 1 - 2 * (place % 2)
