"""What can go wrong, as one small tree; only the command line turns these into text.

QuantError              anything a user can cause and mend; the message is one line and names file, model or op
├── ModelError          a model directory, program or parameter file that can't be used
│   └── UnsupportedError  a model that can't be run directly, but by Paddle's executor
├── DataError           a dataset that can't be read, or that doesn't fit the model
├── OptionError         an option, op type, op id or name that doesn't exist
├── OutputError         a place that can't be written, or that would lose what is there
├── ConversionError     a conversion whose result would not be what was asked for
├── FetchError          a download that failed, or that is not what was published
├── ClusterError        a scheduler that can't be reached, or a worker that can't do its part
└── ChildError          a child process that died, hung or printed no result
"""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "ChildError",
    "ClusterError",
    "ConversionError",
    "DataError",
    "FetchError",
    "ModelError",
    "OptionError",
    "OutputError",
    "QuantError",
    "UnsupportedError",
    "about",
    "check_choice",
    "file_error",
    "log_of",
    "unwritable",
]


class QuantError(Exception):
    """Base of every error that this library raises on purpose."""


class ModelError(QuantError):
    """A model directory, program or parameter file that can't be used."""


class UnsupportedError(ModelError):
    """A model that can't be run directly, but by Paddle's executor."""


class DataError(QuantError):
    """A dataset that can't be read, or that doesn't fit the model."""


class OptionError(QuantError):
    """An option, op type, op id or name that doesn't exist."""


class OutputError(QuantError):
    """A place that can't be written, or that would lose what is there."""


class ConversionError(QuantError):
    """A conversion whose result would not be what was asked for."""


class FetchError(QuantError):
    """A download that failed, or that is not what was published."""


class ClusterError(QuantError):
    """A scheduler that can't be reached, or a worker that can't do its part."""


class ChildError(QuantError):
    """A child process that died, hung or printed no result.

    `what` became of it, the last lines that it printed (`log`), and the `subject` that it was about, if that is known.
    """

    def __init__(self, what: str, log: Iterable[str] = (), subject: str = "") -> None:
        super().__init__(f"{subject}: {what}" if subject else what)
        self.what, self.log = what, tuple(log)


def _is_unwritable(error: OSError) -> bool:
    """Whether it is about a place that takes no more, or nothing: full, over quota, beyond a limit, read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def unwritable(place: object, error: OSError) -> OutputError:
    """What a failed write is raised as.

    >>> unwritable("out", OSError(28, "No space left on device"))
    OutputError("out: can't be written (No space left on device)")
    """
    return OutputError(f"{place}: can't be written ({error.strerror or error})")


def file_error(error: OSError, place: object) -> QuantError | None:
    """What an error of the file system is told as, wherever it comes from; None where it is about no file.

    `place`: what was written where the error doesn't say it.
    """
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None
    if _is_unwritable(error):
        return unwritable(name or place, error)
    return None if name is None else DataError(f"{name}: can't be used ({error.strerror})")


def log_of(error: BaseException | None) -> tuple[str, ...]:
    """The last lines of the child process that an error is about, however often it was raised anew from that."""
    while error is not None:
        if isinstance(error, ChildError) and error.log:
            return error.log
        error = error.__cause__
    return ()


def check_choice(kind: str, value: str, valid: Iterable[str]) -> None:
    """Raise OptionError, with the nearest valid name, unless `value` is one of `valid`."""
    names = list(valid)
    if value not in names:
        by_lower = {name.lower(): name for name in names}
        near = [by_lower[lower] for lower in difflib.get_close_matches(value.lower(), by_lower, 1, 0.4)]
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(names)}"
        raise OptionError(f"unknown {kind} {value!r}; {hint}")


@contextmanager
def about(path: str, *kinds: type[QuantError]) -> Iterator[None]:
    """Errors raised inside name `path`, unless they name it already; or another place, which can't be written.

    `kinds`: only of these.
    """
    try:
        yield
    except QuantError as error:
        other = kinds and not isinstance(error, kinds)
        if other or path in str(error) or isinstance(error, OutputError):
            raise
        raise type(error)(f"{path}: {error}") from error
