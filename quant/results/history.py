"""Runs on disk: a directory of them, one file each, and the one that another is to be compared with.

    .quant/20261121T215709Z-19e416a-suite.json     started, commit, kind

A file is whole or absent, and never changed. pytest-benchmark's own files can be read too: what the plugin's timed
cases store there is the same records.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from quant.errors import DataError, OptionError
from quant.results.benchmark_files import from_benchmark, is_benchmark
from quant.results.environment import git
from quant.results.record import Run
from quant.storage.files import sole_writer, writable_dir, write_text

__all__ = ["DEFAULT", "Baseline", "append", "baseline", "differences", "load", "name_of", "newest", "runs"]

DEFAULT = Path(".quant")
_DEEP = 1000  # commits back from the one that was named

Tell = Callable[[str], None]


def name_of(run: Run) -> str:
    """A file name that sorts by time."""
    moment = run.started.partition("+")[0].replace("-", "").replace(":", "") + "Z"
    return "-".join(filter(None, (moment, run.commit[:7], run.kind))) + ".json"


def append(directory: Path, run: Run) -> Path:
    """Write a run; gives its file. Never replaces another one. Raises OutputError."""
    target = writable_dir(directory) / name_of(run)
    stem = target.stem
    number = 1
    with sole_writer(directory):
        while target.exists():
            number += 1
            target = target.with_name(f"{stem}_{number}.json")  # sorts behind the first
        write_text(target, run.to_json())
    return target


def load(path: Path) -> Run:
    """One run. Raises DataError naming the file and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        return from_benchmark(content) if is_benchmark(content) else Run.from_json(text)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # RecursionError: json's, of what is nested too deeply
        raise DataError(f"{path}: {error}") from error


def runs(directory: Path, tell: Tell | None = None) -> Iterator[tuple[Path, Run]]:
    """All runs of a directory, oldest first; `tell` hears of the files that can't be read. DataError: no directory."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; `quant suite` or `quant gate` makes it")
    for path in sorted(directory.glob("*.json")):
        try:
            yield path, load(path)
        except DataError as error:
            if tell:
                tell(f"left out: {error}")


def newest(directory: Path) -> Path:
    """The newest run's file. DataError when there is none."""
    found = sorted(directory.glob("*.json"))
    if not found:
        raise DataError(f"{directory}: no runs; `quant suite` or `quant gate` writes one there")
    return found[-1]


# --- the baseline


class Baseline(NamedTuple):
    path: Path
    run: Run
    unlike: tuple[str, ...]  # what it differs in, a phrase each


def differences(before: Run, after: Run) -> tuple[str, ...]:
    """What there is to know of a baseline when figures are compared with it."""
    found = []
    if before.machine.cpu != after.machine.cpu:
        found.append(f"CPU {before.machine.cpu or 'unknown'}")
    if before.machine.cores != after.machine.cores:
        found.append(f"{before.machine.cores} cores, now {after.machine.cores}")
    names = sorted({*before.machine.packages, *after.machine.packages})
    for name in names:
        old, new = (run.machine.packages.get(name, "none") for run in (before, after))
        if old != new:
            found.append(f"{name} {old}, now {new}")
    if before.dirty:
        found.append("taken with changes that weren't committed")
    return tuple(found)


def comparable(before: Run, after: Run) -> bool:
    """Whether ratios of both mean the same: the same instructions."""
    return before.machine.tier == after.machine.tier and set(before.machine.flags) == set(after.machine.flags)


def baseline(directory: Path, reference: str | None, after: Run, tell: Tell | None = None) -> Baseline | None:
    """The run that `after` is compared with: the nearest comparable one of `reference`. None where there is none.

    `reference`: a run's file; or a commit, branch or tag: of this or the nearest of its ancestors that has a run; None:
    of all. Only a run counts that passed, lest a regression becomes what later runs are measured by, that has one of
    the models, and that isn't of later than `after`, which may lie in the directory itself. Nearest: has most of them,
    was measured by a gate, then the same CPU, cores, versions, then the fewest commits back, and the newest. Raises
    OptionError for a reference that is neither, DataError for a file that can't be read.
    """
    if reference is not None and Path(reference).is_file():
        run = load(Path(reference))
        return Baseline(Path(reference), run, differences(run, after)) if comparable(run, after) else None
    commits = None if reference is None else _ancestors(reference)
    if not directory.is_dir():
        return None
    found = []
    for path, run in runs(directory, tell):
        wanted = commits is None or (run.commit in commits and not run.dirty)
        usable = run.passed and run.rows.keys() & after.rows.keys() and comparable(run, after)
        if wanted and usable and _is_before(run, after):
            found.append((_rank(run, after, commits), path, run))
    if not found:
        return None
    _, path, run = min(reversed(found), key=lambda entry: entry[0])
    return Baseline(path, run, differences(run, after))


def _is_before(run: Run, after: Run) -> bool:
    """Whether it began earlier, or in the same second and is another one."""
    if after.started and run.started == after.started:
        return run.to_json() != after.to_json()
    return not after.started or run.started < after.started


def _rank(run: Run, after: Run, commits: Sequence[str] | None) -> tuple[int, bool, bool, bool, int, int]:
    versions = {*run.machine.packages.items()} ^ {*after.machine.packages.items()}
    return (
        len(after.rows.keys() - run.rows.keys()),
        run.kind != "gate",
        run.machine.cpu != after.machine.cpu,
        run.machine.cores != after.machine.cores,
        len(versions),
        commits.index(run.commit) if commits else 0,
    )


def _ancestors(reference: str) -> list[str]:
    """A commit and those before it, nearest first."""
    listed = git("rev-list", f"--max-count={_DEEP}", "--end-of-options", reference, "--")
    if listed is None:
        raise OptionError(f"--baseline: {reference!r} is no file, and no commit, branch or tag of this repository")
    return listed.split()
