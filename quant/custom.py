"""Users' own functions, named as "module:function": metrics and readers. Nothing is imported before it is called."""

import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant.errors import OptionError, QuantError

__all__ = ["calling", "function_of", "importable", "is_function_name", "source_of"]

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_NAME = re.compile(f"{_DOTTED}:{_DOTTED}")


def is_function_name(name: str) -> bool:
    """Whether a name has the shape "package.module:function"."""
    return bool(_NAME.fullmatch(name))


def importable(directory: Path) -> None:
    """Make modules in a directory importable, here and in the children that are started from now on."""
    place = str(directory.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


@contextmanager
def calling(name: str) -> Iterator[None]:
    """What a user's function raises, as one line that names the function, the exception and its message."""
    try:
        yield
    except QuantError:
        raise
    except Exception as error:
        raise OptionError(f"{name} raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def function_of(name: str) -> Callable[..., Any]:
    """The function of that name, imported. Raises OptionError, in one line, when there is none."""
    if not is_function_name(name):
        raise OptionError(f"{name!r} doesn't name a function: package.module:function")
    with calling(name):
        found = pkgutil.resolve_name(name)
    if not callable(found):
        raise OptionError(f"{name} is no function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def source_of(name: str) -> Path | None:
    """The source file of a function's module; None when it has none. Imports at most the packages above it."""
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    place = None if spec is None or spec.origin is None else Path(spec.origin)
    return place if place is not None and place.is_file() else None
