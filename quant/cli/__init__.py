"""The command line: parse, call, print, exit code. 0 done; 1 a gate failed; 2 bad input or usage, one line on stderr.

`--json` prints one JSON object on stdout and nothing else. Progress and warnings go to stderr, bars only on a terminal.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from quant.cli import analysis, caching, gating, make, measure, profiling, quantize, reporting, suites, tuning
from quant.cli.shared import app, err
from quant.errors import QuantError, file_error
from quant.storage.files import write_text

# The commands add themselves to the app.
__all__ = [
    "analysis",
    "caching",
    "gating",
    "main",
    "make",
    "measure",
    "profiling",
    "quantize",
    "reporting",
    "suites",
    "tuning",
]


def _spelled(argv: Sequence[str]) -> list[str]:
    """Options with dashes for underscores, as the seeds' scripts spell them."""
    fixed = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        fixed.append(name.replace("_", "-") + equals + value if arg.startswith("--") else arg)
    return fixed


_INTERRUPTED = 130  # what Typer makes of Ctrl-C


@contextmanager
def _ending_by_sigterm() -> Iterator[None]:
    """SIGTERM, by which timeouts, schedulers and CI end a run, does what Ctrl-C does: nothing half-made stays."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    command = typer.main.get_command(app)
    try:
        with _ending_by_sigterm():
            result = command.main(_spelled(sys.argv[1:] if argv is None else argv), "quant", standalone_mode=False)
        sys.stdout.flush()  # now, for a full disk is told as everywhere
    except SystemExit:  # Click's, with exit code 1, which is a gate's
        return _fail("stdout: closed before all was written")
    except QuantError as error:
        return _fail(str(error))
    except OSError as error:
        told = file_error(error, _stdout())
        return _fail(_internal(error) if told is None else str(told))
    except Exception as error:
        if hasattr(error, "format_message"):  # one of the parser's usage errors
            return _fail(error.format_message())
        return _fail(_internal(error))
    if result == _INTERRUPTED:
        return _fail("interrupted")
    return result if isinstance(result, int) else 0


def _stdout() -> str:
    """What has no name, of all that is written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lest Python tells of it again when it ends
    return "stdout"


def _internal(error: Exception) -> str:
    """A fault of this program. Python's own exit code for it would pass for a gate that failed."""
    told = f"internal error ({type(error).__name__}: {error})"
    file = Path(tempfile.gettempdir(), f"quant-error-{os.getpid()}.txt")
    try:
        write_text(file, traceback.format_exc())
    except QuantError:
        return told
    return f"{told}; the traceback is in {file}"


def _fail(message: str) -> int:
    err.print(f"quant: {' '.join(message.split())}")
    return 2
