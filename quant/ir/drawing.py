r"""Drawings: text for Graphviz's language, and .svg files where its `dot` is installed.

Sources: https://graphviz.org/doc/info/lang.html (in a quoted string `\"` is the only escape; backslashes are left to
the label) and https://graphviz.org/docs/attr-types/escString/ (what `\n`, `\N`, `\G` and others become in a
label; HTML entities are replaced).
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

__all__ = ["draw_all", "quoted"]

_SHOWN = {"\\": "\\\\", '"': '\\"', "&": "&amp;"}


def quoted(*lines: str) -> str:
    """A label of Graphviz's language, quotes included, that shows `lines` as they are.

    Names come from users' files: whatever they hold, the label ends where it should. What can't be printed (line
    breaks, NUL, which ends a C string) is shown as its Python escape.
    """
    return '"' + "\\n".join("".join(_escaped(char) for char in line) for line in lines) + '"'


def _escaped(char: str) -> str:
    if char in _SHOWN:
        return _SHOWN[char]
    return char if char.isprintable() else char.encode("unicode_escape").decode().replace("\\", "\\\\")


def draw_all(
    directory: Path, *, time_limit_s: float = 60, progress: Callable[[str, int, int], None] | None = None
) -> list[str]:
    """Draw an .svg beside each .dot file of `directory`; a line for each thing that went wrong.

    A drawing that fails, or takes longer than `time_limit_s`, leaves no .svg. Without Graphviz there is one line.
    """
    program = shutil.which("dot")
    if program is None:
        return [f"{directory}: no .svg, only .dot was written: Graphviz's 'dot' is not on PATH"]
    wrong: list[str] = []
    done: dict[bytes, tuple[Path, str]] = {}  # many a step changes nothing, and a large graph takes seconds
    sources = sorted(directory.resolve().glob("*.dot"))
    for number, source in enumerate(sources):
        if progress:
            progress("draw", number, len(sources))
        text, target = source.read_bytes(), source.with_suffix(".svg")
        if text not in done:
            done[text] = target, _draw(program, source, target, time_limit_s)
        first, why = done[text]
        if why:
            wrong.append(f"{directory / source.name}: not drawn: dot: {why}")
        elif first != target:
            shutil.copyfile(first, target)
    return wrong


def _draw(program: str, source: Path, target: Path, time_limit_s: float) -> str:
    """Draw one file; "" or one line on what went wrong, and then there is no `target`."""
    part = target.with_name(f".{target.name}.part")
    try:
        why = _run([program, "-Tsvg", "-o", str(part), str(source)], time_limit_s)
        if why:
            return why
        part.replace(target)
    except FileNotFoundError:
        return "it wrote nothing"
    except OSError as error:
        return str(error.strerror)
    else:
        return ""
    finally:
        part.unlink(missing_ok=True)


def _run(command: Sequence[str], limit_s: float) -> str:
    """Run a program that only writes files; "" or one line on what went wrong. Raises OSError if it can't start."""
    with tempfile.TemporaryFile() as told:  # no pipe: what a killed program leaves running could keep that open
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True
        )
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"took longer than {limit_s:g} s"
        finally:
            if child.poll() is None:  # also on Ctrl-C, which its own session doesn't hear
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return "" if code == 0 else _last_line(told) or f"exit code {code}"


def _last_line(told: IO[bytes]) -> str:
    told.seek(0)
    lines = told.read(1 << 16).decode(errors="replace").strip().splitlines()
    return "".join(char if char.isprintable() else "?" for char in lines[-1][:200]) if lines else ""
