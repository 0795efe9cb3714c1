"""What of a long run is done, kept on disk at once, and the one rule of going on with it.

**The rule.** What a run that was cut off has left is gone on with where the inputs are the same (models, data, options
that decide results, code that decides them, the machine where it matters), and one line says so. Where they differ, the
run is refused, with a line that says what differs. `fresh` (`--fresh`) starts anew in either case. What is kept by a
hash of its inputs (quant.evaluation.parts, quant.storage.cache) obeys it by itself: other inputs have another place. A
run that has
ended well leaves nothing to go on with.

A `Journal` is a file:

    DIGEST {"about": {...}}               the inputs
    DIGEST {"key": "resnet50 accuracy", "found": ...}

A line a result, written through to the disk. A line that was cut off or damaged is no line: each begins with a digest
of its JSON. While a run writes, no other may.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, NamedTuple, Self

from quant.errors import OptionError, OutputError, unwritable
from quant.storage.digests import digest
from quant.storage.files import taken

__all__ = ["Beside", "Journal", "Tell", "goes_on", "refusal"]

Tell = Callable[[str], None]
_DIGEST = re.compile(r"[0-9a-f]{16,}")
_SHOWN = 40  # characters of a value in a message


def goes_on(
    place: Path, was: Mapping[str, Any] | None, now: Mapping[str, Any], *, fresh: bool, kept: str, tell: Tell | None
) -> bool:
    """Whether what lies at `place` is gone on with: by the rule above. Without `kept` there is nothing to go on with.

    `was` and `now`: the inputs by name, as JSON makes them; None: they can't be read. `kept` says what would be reused,
    "3 results", say. `tell` is given the line that says so. Raises OptionError for other inputs.
    """
    if fresh or not kept:
        return False
    if was is None:
        raise OptionError(f"{place}: left by a run that was cut off, whose inputs can't be read; --fresh starts anew")
    if other := list(_differing(was, json.loads(json.dumps(now)))):
        raise refusal(place, other)
    if tell:
        tell(f"{place}: {kept} of a run that was cut off are reused; --fresh starts anew")
    return True


def refusal(place: Path, other: Sequence[str]) -> OptionError:
    """That what lies at `place` has other inputs: these."""
    told = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
    return OptionError(f"{place}: left by a run that was cut off, with other inputs: {told}; --fresh starts anew")


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs, by name, and how where that can be read."""
    for name in {**was, **now}:
        before, after = was.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = list(_differing(before, after))
            yield from (f"{name} {what}" for what in inner) if len(inner) <= 2 else (name,)
        elif before != after:
            readable = name in was and name in now and all(map(_readable, (before, after)))
            yield f"{name} ({_word(before)}, now {_word(after)})" if readable else name


def _readable(value: Any) -> bool:
    plain = value is None or isinstance(value, bool | int | float | str)
    return plain and len(str(value)) <= _SHOWN and not _DIGEST.fullmatch(str(value))


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


class Beside(NamedTuple):
    """What a run keeps beside its journal.

    `left`: results of the journal -> what there is to go on with, as `goes_on` tells it, "" for nothing; it may raise
    `refusal`. `there`: whether there is anything. `discard` removes it, before another run's inputs are noted.
    """

    left: Callable[[Mapping[str, Any]], str]
    there: Callable[[], bool]
    discard: Callable[[], None]


class Journal:
    """A context manager. Leaving it removes the file when all is done, without an error, or nothing is. Threads may
    share it.

    `about`: the inputs by name, for JSON. `resumed`: whether this run goes on with another one. Raises as `goes_on`
    does, and OutputError when the file can't be written or another run is writing it.
    """

    def __init__(
        self,
        path: Path,
        about: Mapping[str, Any],
        *,
        fresh: bool = False,
        tell: Tell | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        self._writing, self._beside = Lock(), beside
        try:
            # Without a buffer: closing would try again to write what a full disk didn't take.
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from error
        try:
            if not (taken(self._file) and self._is_there()):
                raise OutputError(f"{path.parent}: another run is writing there")
            try:
                self.resumed = self._begin(about, fresh, tell, beside)
            except BaseException:
                if not self._size():
                    path.unlink(missing_ok=True)
                raise
        except BaseException:
            self._file.close()
            raise

    def _is_there(self) -> bool:
        """Whether the open file is still the one at the path: a run that ended may have just removed it."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _begin(self, about: Mapping[str, Any], fresh: bool, tell: Tell | None, beside: Beside | None) -> bool:
        lines = list(self._lines())
        was = lines[0].get("about") if lines else None
        done = {entry["key"]: entry["found"] for entry in lines[1:] if "key" in entry}
        if was is None:  # what can't be read may have been anything
            kept = "results" if self._size() or (beside and beside.there()) else ""
        elif beside and not fresh:
            kept = beside.left(done)
        else:
            kept = f"{len(done)} result{'s' * (len(done) != 1)}" if done else ""
        if goes_on(self.path, was, about, fresh=fresh, kept=kept, tell=tell):
            self.done = done
            return True
        if beside:
            beside.discard()
        self._file.truncate(0)
        try:
            self._write({"about": about})
        except OutputError:
            self._file.truncate(0)  # half a line is of no use
            raise
        return False

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def kept(self, key: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, as JSON makes it; what it gave in the run that was cut off."""
        if key not in self.done:
            self.add(key, work())
        return self.done[key]

    def add(self, key: str, found: Any) -> None:
        """Keep a result; an earlier one of this key is replaced."""
        with self._writing:  # several threads measure
            self.done[key] = found
            self._write({"key": key, "found": found})

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
        if kind is None or not self.done:
            self.path.unlink(missing_ok=True)
        if not self.done and self._beside:
            self._beside.discard()
        self._file.close()
