"""An engine for the tests of workers: it doubles its input, writes down its runs, and fails when it is told to."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quant.datasets.columns import Array, Column, Ragged, values_of


def load(
    name: str,
    batches: Sequence[Mapping[str, Column]],
    diary: str = "",
    model: str = "",
    precision: str = "",
    threads: int = 1,
    form: str = "",
    **failing: int,
) -> "FakeSession":
    """`failing`: "load", or the number of the run at which it "raise"s, "crash"es or falls "silent"."""
    print("noise of an engine that prints to stdout")
    os.write(1, b"and of one that does so in C\n")
    if "load" in failing:
        raise ValueError("unsupported op 'zeta'\n  a page of traces")
    return FakeSession(name, diary, failing)


class FakeSession:
    def __init__(self, name: str, diary: str, failing: Mapping[str, int]) -> None:
        self.name, self.diary, self.failing = name, diary, failing
        self.facts: Mapping[str, Any] = {"int8": [1, 2], "name": name}
        self.runs = 0
        self.fed: FakeFeed | None = None

    def batch(self, inputs: Mapping[str, Column]) -> "FakeFeed":
        return FakeFeed(self, inputs)


class FakeFeed:
    def __init__(self, session: FakeSession, inputs: Mapping[str, Column]) -> None:
        self.session, self.inputs = session, inputs

    def feed(self) -> None:
        self.session.fed = self

    def run(self) -> None:
        session = self.session
        assert session.fed is self, "run on another batch than the one that was fed"
        session.runs += 1
        if session.runs == session.failing.get("raise"):
            raise ValueError("no memory left")
        if session.runs == session.failing.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if session.runs == session.failing.get("silent"):
            signal.pause()
        if session.diary:
            with Path(session.diary).open("a") as diary:
                diary.write(f"{session.name} {next(iter(values_of(next(iter(self.inputs.values()))).flat)):g}\n")

    def read(self) -> list[Column]:
        def doubled(values: Array) -> Array:
            return np.asarray(2 * values)

        return [
            Ragged(doubled(column.values), column.offsets) if isinstance(column, Ragged) else doubled(column)
            for column in self.inputs.values()
        ]
