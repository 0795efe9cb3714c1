"""What the CPU can do: flags -> tier, the ISA caps that let one machine stand for several, and what to expect.

Expectations are the seeds' (PaddleSlim's x86 deployment guide): 3 to 3.7 times FP32 with VNNI, about 1.5 with AVX512
alone. oneDNN's cap: https://oneapi-src.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cpuinfo

from quant.errors import OptionError, check_choice

__all__ = [
    "TIERS",
    "Tier",
    "brand",
    "cores",
    "detect",
    "flags",
    "isa_environment",
    "physical_cores",
    "quota",
    "reachable",
    "settled_isa",
    "tier_of",
]


@dataclass(frozen=True)
class Tier:
    """A class of CPUs. `cap` is the value of ONEDNN_MAX_CPU_ISA that makes a better CPU behave like it.

    `vnni` says whether int8 products are summed in 32 bits; without it pairs are summed in 16 and may saturate, so
    weights get 7 bits.
    """

    name: str
    flags: frozenset[str]
    cap: str
    vnni: bool
    expects: str


# Worst to best.
TIERS: tuple[Tier, ...] = (
    Tier("avx2", frozenset({"avx2"}), "AVX2", False, "no gain to be expected from INT8"),
    Tier(
        "avx512_core",
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
        "AVX512_CORE",
        False,
        "INT8 about 1.5 times as fast as FP32",
    ),
    Tier("avx512_vnni", frozenset({"avx512_vnni"}), "AVX512_CORE_VNNI", True, "INT8 3 to 3.7 times as fast as FP32"),
    Tier("amx", frozenset({"amx_int8"}), "AVX512_CORE_AMX", True, "INT8 more than 3.7 times as fast as FP32"),
)

# What --isa takes: the tiers' names and oneDNN's own, in lower case.
_NAMES = {**{tier.name: tier for tier in TIERS}, **{tier.cap.lower(): tier for tier in TIERS}}

# py-cpuinfo spells some flags in other ways, depending on the kernel and on its cpuid fallback.
_SYNONYMS = {"avx512vnni": "avx512_vnni", "amx-int8": "amx_int8"}


@cache
def flags() -> frozenset[str]:
    """This CPU's flags, from py-cpuinfo."""
    found = cpuinfo.get_cpu_info().get("flags", [])
    return frozenset(_SYNONYMS.get(flag, flag) for flag in found)


@cache
def brand() -> str:
    """This CPU's name, as it tells it; "" where it doesn't."""
    return str(cpuinfo.get_cpu_info().get("brand_raw", ""))


def detect(found: Collection[str] | None = None) -> Tier:
    """The best tier whose flags, and all lower tiers' flags, are present.

    Raises OptionError on a CPU without AVX2: oneDNN has no int8 kernels worth the name there.
    """
    found = flags() if found is None else found
    best = None
    for tier in TIERS:
        if not tier.flags <= set(found):
            break
        best = tier
    if best is None:
        raise OptionError("this CPU lacks AVX2; INT8 inference needs it")
    return best


def tier_of(name: str | None) -> Tier:
    """The tier for an `--isa` or `--target` value; None means this CPU's own."""
    if name is None:
        return detect()
    check_choice("ISA", name.lower(), _NAMES)
    return _NAMES[name.lower()]


def reachable() -> tuple[Tier, ...]:
    """The tiers that this machine can be or stand for, best first."""
    return tuple(reversed(TIERS[: TIERS.index(detect()) + 1]))


def isa_environment(name: str | None) -> dict[str, str]:
    """Environment for a child process capped to an ISA. Raises OptionError when this CPU doesn't reach it."""
    if name is None:
        return {}
    tier = tier_of(name)
    if tier not in reachable():
        raise OptionError(f"this CPU doesn't reach {name}: its tier is {detect().name}")
    return {"ONEDNN_MAX_CPU_ISA": tier.cap}


def settled_isa(isa: str | None, precisions: Collection[str]) -> str | None:
    """The cap under which kernels are the same on every CPU that reaches it: `isa`, or else this CPU's own tier.

    None where the tier would take something from an uncapped run: bfloat16 instructions belong to no tier, and oneDNN
    has kernels for VNNI without AVX-512.
    """
    tier = tier_of(isa)
    beyond = "bf16" in precisions or (tier is TIERS[0] and "avx_vnni" in flags())
    return None if isa is None and beyond else tier.cap.lower()


def cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """How many threads, or processes of one thread, this process may use at once, at least 1.

    The CPUs of its affinity mask, or what `quota` lets it have of their time, in whole CPUs: threads wait for each
    other in each op, so one that is stopped for half of the time would stop all.
    """
    allowed = quota(root, own)
    here = len(os.sched_getaffinity(0))
    return here if allowed is None else max(1, min(here, int(allowed)))


def physical_cores(root: Path = Path("/sys/devices/system/cpu"), allowed: Collection[int] | None = None) -> list[int]:
    """One CPU number of each physical core that this process may run on: the lowest of its SMT siblings.

    `allowed`: CPU numbers, by default this process's affinity mask, which a container's cpuset has narrowed already.
    Where the kernel doesn't tell siblings, every CPU is a core of its own.
    """
    found: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0) if allowed is None else allowed):
        try:
            siblings = (root / f"cpu{number}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(number)
        found.setdefault(siblings, number)
    return list(found.values())


def quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs' worth of time that control groups let this process have; None without a limit.

    Version 2: the smallest of cpu.max ("quota period" or "max period") from the process's own group up to the root.
    Version 1: cpu.cfs_quota_us (-1: no limit) over cpu.cfs_period_us.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    limits = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        version_1 = "cpu" in controllers.split(",")
        if controllers and not version_1:
            continue
        top = root / "cpu" if version_1 else root
        group = Path(path.lstrip("/"))
        for place in (top / group, *(top / parent for parent in group.parents)):
            limits.append(_limit(place, version_1))
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path, version_1: bool) -> float | None:
    """A control group's own limit, in CPUs; None where it sets none, or none that can be read.

    Inside a container a group's path is the host's, and isn't there. What other file systems than the kernel's put
    there (gVisor's and lxcfs's are empty, or hold one word) is no limit.
    """
    try:
        if version_1:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            allowed, period = (group / "cpu.max").read_text().split()
        limit = int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
    return limit if limit > 0 else None
