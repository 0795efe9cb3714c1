"""How much memory this process may still take: what the machine has left, and what its control groups allow."""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["available"]

_MEMINFO = Path("/proc/meminfo")
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available(meminfo: Path = _MEMINFO, groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Bytes. Of control groups, version 1 or 2, the tightest of the own one and those around it. None: nobody knows."""
    return min([*_of_machine(meminfo), *_of_groups(groups, own)], default=None)


def _of_machine(meminfo: Path) -> Iterator[int]:
    try:
        for line in meminfo.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                yield 1024 * int(value.split()[0])
    except (OSError, ValueError, IndexError):
        return


def _of_groups(groups: Path, own: Path) -> Iterator[int]:
    try:
        entries = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for entry in entries:
        if len(entry) != 3:
            continue
        _, controllers, path = entry
        if controllers == "":
            root, limit, usage = groups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = root / path.strip("/")
        for place in (inner, *inner.parents):
            yield from _left(place / limit, place / usage)
            if place == root:
                break


def _left(limit: Path, usage: Path) -> Iterator[int]:
    """What is left of a limit; nothing where there is none ("max", or no such file)."""
    try:
        yield max(int(limit.read_text()) - int(usage.read_text()), 0)
    except (OSError, ValueError):
        return
