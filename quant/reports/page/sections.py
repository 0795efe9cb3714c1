"""Files that `quant analyze` and `quant tune` wrote -> parts of the HTML report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError
from pydantic_core import from_json

from quant.errors import DataError
from quant.reports import drift, tuning
from quant.reports.page.charts import plain
from quant.reports.sheet import Section

__all__ = ["section_of"]

# A key that only one kind of file has -> what makes a section of such a file.
_KINDS: Mapping[str, Callable[[bytes], Section]] = MappingProxyType(
    {
        "ops": lambda text: drift.section(drift.from_json(text)),
        "points": lambda text: tuning.section(tuning.from_json(text)),
    }
)


def section_of(path: Path) -> Section:
    """What a file tells. Raises DataError, naming it, for what is neither an analysis nor a tuning.json."""
    try:
        text = path.read_bytes()
        content = from_json(text)
        kinds = [read for key, read in _KINDS.items() if isinstance(content, dict) and key in content]
        if len(kinds) != 1:
            raise ValueError("neither an analysis of `quant analyze --output` nor a tuning.json of `quant tune`")
        return kinds[0](text)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(f"{path}: {_first(error)}") from error
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _first(error: ValidationError) -> str:
    """Its first fault: where, and what."""
    found = error.errors(include_url=False)[0]
    where = plain(".".join(map(str, found["loc"])), 80)
    if where == "schema" and found["type"] == "literal_error":
        return f"schema {plain(repr(found['input']), 20)}, this version reads {found['ctx']['expected']}"
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {found['msg'][:1].lower()}{found['msg'][1:]}{more}".removeprefix(": ")
