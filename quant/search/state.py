"""The checkpoint of `quant tune`: OUTPUT.part, beside OUTPUT while a run lasts, and after one that ran out of time.

    state.json      schema; of: what the run is about; survey; trials in order; a digest of these. Written anew, whole,
                    after each trial
    models/HASH/    `quant` and `int8` of each setup that was run on the whole set
    lock            held by the run that works here

To go on, by the rule of storage.checkpoint, is to search again from the start with the measures of `trials`, which
takes no
time; the whole set's outputs are kept part by part (quant.evaluation.parts). So the search goes the way it went, and a
run that
is killed loses the trial it was in.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant.errors import OutputError, unwritable
from quant.search.for_accuracy import Setup
from quant.storage.checkpoint import Tell, goes_on
from quant.storage.digests import digest
from quant.storage.files import taken, write_text

__all__ = ["SCHEMA", "State", "held_part"]

Json = dict[str, Any]
SCHEMA = 3  # of state.json and tuning.json


@contextmanager
def held_part(output: Path) -> Iterator[Path]:
    """OUTPUT.part, held by this process. Raises OutputError before anything is measured.

    OUTPUT may be what a run that ran out of time wrote, whose part is there.
    """
    part = output.with_name(f"{output.name}.part")
    ours = (output / "tuning.json").is_file() and (part / "state.json").is_file()
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not ours:
        raise OutputError(f"{output}: exists and is not an empty directory; nothing was written")
    try:
        (part / "models").mkdir(parents=True, exist_ok=True)
        lock = (part / "lock").open("w")
    except OSError as error:
        raise unwritable(part, error) from error
    with lock:
        if not taken(lock):
            raise OutputError(f"{part}: another run works here")
        yield part


def _digest_of(content: Json) -> str:
    return digest([json.dumps(content)])


class State:
    """The checkpoint: what has been measured. `resumed`: whether this run goes on with another one.

    `identity`: the inputs by name. Raises as quant.storage.checkpoint.goes_on does.
    """

    def __init__(self, part: Path, identity: Json, *, fresh: bool = False, tell: Tell | None = None) -> None:
        self.file = part / "state.json"
        self.content: Json = {"schema": SCHEMA, "of": json.loads(json.dumps(identity)), "survey": None, "trials": []}
        found = self._stored()
        kept = "results" if found is None and self.file.exists() else ""
        if found and (found["trials"] or found["survey"]):
            kept = f"{len(found['trials'])} trial{'s' * (len(found['trials']) != 1)}"
        was = found["of"] if found else None
        self.resumed = goes_on(part, was, self.content["of"], fresh=fresh, kept=kept, tell=tell)
        if found and self.resumed:
            self.content = found
        else:
            for left in (part / "models", *part.glob("replaced-*")):
                shutil.rmtree(left, ignore_errors=True)
            (part / "models").mkdir(exist_ok=True)
        self.write()

    def _stored(self) -> Json | None:
        """What is there already; None when nothing is, or it is damaged."""
        try:
            found: Json = json.loads(self.file.read_text(encoding="utf-8"))
            whole = found.pop("digest", "") == _digest_of(found) and found["schema"] == SCHEMA
            return found if whole and isinstance(found["of"], dict) else None
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return None

    def write(self) -> None:
        write_text(self.file, json.dumps({**self.content, "digest": _digest_of(self.content)}))

    @property
    def trials(self) -> list[Json]:
        trials: list[Json] = self.content["trials"]
        return trials

    def find(self, kind: str, setup: Setup, focus: str = "") -> Json | None:
        wanted = (kind, setup.key, focus)
        return next((trial for trial in self.trials if (trial["kind"], trial["key"], trial["focus"]) == wanted), None)

    def add(self, kind: str, setup: Setup, focus: str = "", **more: Any) -> Json:
        told = {"algo": setup.algo, "op_ids": sorted(setup.op_ids), "tensors": dict(setup.tensors)}
        self.trials.append({"kind": kind, "key": setup.key, "focus": focus, "setup": told, **more})
        self.write()
        return self.trials[-1]
