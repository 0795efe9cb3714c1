"""The checkpoint of `quant tune`: OUTPUT.part, beside OUTPUT while a run lasts, and after one that ran out of time.

    state.json      schema; of: what the run is about; survey; trials in order; a digest of these. Written anew, whole,
                    after each trial
    models/HASH/    `quant` and `int8` of each setup that was run on the whole set
    lock            held by the run that works here

To resume is to search again from the start with the measures of `trials`, which takes no time; the whole set's outputs
are kept part by part (quant.outcomes). So the resumed search goes the way it went, and a run that is killed loses the
trial it was in.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quant.digests import digest
from quant.errors import OptionError, OutputError, unwritable
from quant.places import taken, write_text
from quant.tuning import Setup

__all__ = ["SCHEMA", "State", "held_part"]

Json = dict[str, Any]
SCHEMA = 3  # of state.json and tuning.json


@contextmanager
def held_part(output: Path, resume: bool) -> Iterator[Path]:
    """OUTPUT.part, held by this process. Raises OutputError before anything is measured."""
    part = output.with_name(f"{output.name}.part")
    ours = (output / "tuning.json").is_file()
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not (resume and ours):
        raise OutputError(f"{output}: exists and is not an empty directory; nothing was written")
    if part.exists() and not resume:
        raise OutputError(f"{part}: left by a run that didn't end; --resume goes on with it, or delete it")
    if resume and not (part / "state.json").is_file():
        raise OutputError(f"{part}: no run to resume")
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
    """The checkpoint: what has been measured."""

    def __init__(self, part: Path, identity: Json, resume: bool) -> None:
        self.file = part / "state.json"
        self.content: Json = {"schema": SCHEMA, "of": json.loads(json.dumps(identity)), "survey": None, "trials": []}
        if resume:
            try:
                found = json.loads(self.file.read_text(encoding="utf-8"))
                if found.pop("digest", "") != _digest_of(found) or found["schema"] != SCHEMA:
                    raise ValueError
                was = {**dict.fromkeys(identity), **found["of"]}
            except (OSError, ValueError, AttributeError, TypeError, RecursionError):
                raise OutputError(f"{self.file}: damaged, the run can't be resumed; delete {part}") from None
            for what, now in self.content["of"].items():
                if was[what] != now:
                    raise OptionError(f"{part}: the run to resume had other {what}; another --output begins anew")
            self.content = found
        self.write()

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
