"""What of a long run is done, kept in a file at once: a run that was cut off goes on where it stopped.

    DIGEST {"about": {...}}               what decides the results; another run's journal is never gone on with
    DIGEST {"key": "resnet50 accuracy", "found": ...}

A line a case, written through to the disk. A line that was cut off or damaged is no line: each begins with a digest of
its JSON. While a run writes, no other may.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from quant.digests import digest
from quant.errors import OptionError, OutputError, unwritable
from quant.places import taken

__all__ = ["Journal"]


class Journal:
    """A context manager. Leaving it without an error removes the file: all is done.

    `resume`: go on with the file that is there. Raises OptionError when that is of another run, or there is none, and
    OutputError when it can't be written or another run is writing it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        self._writing = Lock()
        if resume and not path.is_file():
            raise OptionError(f"--resume: {path}: no run was cut off here")
        try:
            # Without a buffer: closing would try again to write what a full disk didn't take.
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error
        if not taken(self._file):
            self._file.close()
            raise OutputError(f"{path.parent}: another run is writing there")
        lines = list(self._lines())
        if resume:
            if not lines or lines[0] != {"about": json.loads(json.dumps(about))}:
                self._file.close()
                raise OptionError(
                    f"--resume: {path}: the run that was cut off was another one (models, options, code or machine); "
                    "without --resume all is measured anew"
                )
            self.done = {entry["key"]: entry["found"] for entry in lines[1:] if "key" in entry}
        else:
            try:
                self._file.truncate(0)
                self._write({"about": about})
            except OutputError:
                path.unlink(missing_ok=True)
                raise

    def kept(self, key: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, as JSON makes it; what it gave in the run that was cut off."""
        if key not in self.done:
            found = work()
            with self._writing:  # several threads measure
                self.done[key] = found
                self._write({"key": key, "found": found})
        return self.done[key]

    def _lines(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        found = []
        for line in self._file.read().decode(errors="replace").split("\n"):
            mark, _, text = line.partition(" ")
            if mark == digest([text]):
                found.append(json.loads(text))
        return found

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            # A line of its own, even behind one that was cut off.
            text = json.dumps(entry)
            left = f"\n{digest([text])} {text}\n".encode()
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
        self._file.close()
