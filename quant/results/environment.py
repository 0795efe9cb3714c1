"""What goes on around a run: when it began, at which commit, and what else the machine did meanwhile."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quant.results.record import Anatomy, Load, Machine, Record, Run
from quant.results.target import Row

__all__ = ["Watch", "git", "stolen"]


def git(*arguments: str, directory: Path | None = None) -> str | None:
    """What a git command prints; None where it fails, outside of a repository, or without git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=directory, capture_output=True, text=True, timeout=30, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """(stolen, all) ticks of CPU time since the machine started.

    Source: Linux, Documentation/filesystems/proc.rst: user nice system idle iowait irq softirq steal guest ...; guest
    time is contained in user time.
    """
    try:
        numbers = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return (numbers[7], sum(numbers)) if len(numbers) == 8 else None


def stolen(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """The share of CPU time between two moments that a hypervisor gave to others."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _switches() -> int:
    """Involuntary context switches of this process and of its children that have ended."""
    return sum(resource.getrusage(who).ru_nivcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Watch:
    """Begins when a run does, and makes a `Run` of what was measured."""

    def __init__(self, kind: str, command: str) -> None:
        self.kind, self.command = kind, command
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.begin = time.monotonic()
        self.ticks, self.switches = _ticks(), _switches()
        self.average = os.getloadavg()[0]
        self.commit = git("rev-parse", "HEAD") or ""
        self.dirty = bool(self.commit and git("status", "--porcelain", "--untracked-files=no"))

    def load(self) -> Load:
        """What else the machine did up to now."""
        return Load(self.average, stolen(self.ticks, _ticks()), _switches() - self.switches)

    def run(
        self,
        rows: Sequence[Row],
        records: Sequence[Record],
        *,
        anatomy: Mapping[str, Anatomy] | None = None,
        missed: Sequence[str] = (),
        passed: bool = True,
        **more: Any,
    ) -> Run:
        """What was measured, up to now."""
        return Run(
            machine=Machine.here(),
            rows={row.name: Row.of(row) for row in rows},
            records=tuple(records),
            started=self.started,
            seconds=round(time.monotonic() - self.begin, 1),
            commit=self.commit,
            dirty=self.dirty,
            command=self.command,
            kind=self.kind,
            load=self.load(),
            anatomy=dict(anatomy or {}),
            missed=tuple(missed),
            passed=passed,
            **more,
        )
