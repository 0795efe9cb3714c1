"""A run as one HTML page that needs nothing else: no network, no font, no image file. Never runs a model.

What is shown is page.values and sections, how it looks quant/templates. Jinja escapes every text; only the SVG of
quant.reports.page.charts and the page's own script go in as they are. The page may run that one script and load nothing
(Content-Security-Policy).
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from itertools import count

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from quant.reports.page import charts
from quant.reports.page.values import page_of
from quant.reports.sheet import Chart, Drawing, Section
from quant.results.record import Run

__all__ = ["render"]


def render(run: Run, history: Sequence[Run] = (), sections: Sequence[Section] = ()) -> str:
    """The page of a run, with lines over earlier ones, in any order, and sections. The same runs, the same text.

    Raises ValueError for records that don't belong together.
    """
    loader = PackageLoader("quant.reports.page")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = loader.get_source(environment, "report.js")[0]
    numbers = count(1)

    def draw(chart: Chart | Drawing) -> Markup:
        name = f"chart{next(numbers)}"
        if isinstance(chart, Drawing):
            drawn = chart.draw(name)
        elif chart.trends:
            drawn = charts.trends(chart.trends, chart.moments, name, chart.message, axis=chart.axis)
        else:
            drawn = charts.bars(chart.bars, name, chart.message, axis=chart.axis, base=chart.base)
        return Markup(drawn)

    page = environment.get_template("report.html").render(
        page=page_of(run, history),
        sections=sections,
        draw=draw,
        plain_number=_plain_number,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # names from JSON may hold halves of characters


def _plain_number(value: float | None) -> str:
    """A number as JavaScript reads it; "" for none."""
    if value is None or math.isnan(value):
        return ""
    return repr(float(value)) if math.isfinite(value) else f"{'-' * (value < 0)}Infinity"
