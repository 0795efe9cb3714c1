"""Users' own functions, named as "module:function": metrics and readers. Nothing is imported before it is called."""

import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from quant.errors import OptionError, QuantError

__all__ = ["calling", "check_name", "function_of", "importable", "is_function_name", "source_of"]

_DOTTED = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
_NAME = re.compile(f"{_DOTTED}:{_DOTTED}")


def is_function_name(name: str) -> bool:
    """Whether a name has the shape "package.module:function"."""
    return bool(_NAME.fullmatch(name))


def check_name(name: str) -> None:
    """Raise OptionError for a name of another shape."""
    if not is_function_name(name):
        raise OptionError(f"{name!r} doesn't name a function: package.module:function")


def importable(directory: Path) -> None:
    """Make modules in a directory importable, here and in the children that are started from now on.

    They come last: what lies there may be called as a module of Python's or an installed one, which others import.
    """
    place = str(directory.resolve())
    if place not in sys.path:
        sys.path.append(place)


@contextmanager
def calling(name: str) -> Iterator[None]:
    """What a user's function raises becomes one line with its name, the exception and its message.

    What it prints goes to stderr: stdout is for results.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except QuantError:
        raise
    except (Exception, SystemExit) as error:
        raise OptionError(f"{name} raised {_told(error)}") from error


def _told(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def function_of(name: str) -> Callable[..., Any]:
    """The function of that name, imported. Raises OptionError, in one line, when there is none."""
    check_name(name)
    try:
        with redirect_stdout(sys.stderr):
            found = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:
        raise OptionError(f"{name} can't be imported: {_told(error)}") from error
    if not callable(found):
        raise OptionError(f"{name} is no function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def source_of(name: str) -> Path:
    """The file of a function's module. Of all modules, only packages above it are imported. Raises OptionError."""
    check_name(name)
    try:
        with redirect_stdout(sys.stderr):
            spec = importlib.util.find_spec(name.partition(":")[0])
    except (Exception, SystemExit) as error:
        raise OptionError(f"{name} can't be imported: {_told(error)}") from error
    if spec is None:
        raise OptionError(f"{name} can't be imported: there is no module {name.partition(':')[0]!r}")
    if spec.origin is None or not Path(spec.origin).is_file():
        raise OptionError(f"{name}: its module has no file, by which results could be known again")
    return Path(spec.origin)
