"""Where a run of a model spends its time: which model is meant, the child that runs it, and what that adds up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant import cpu
from quant.diagnosis.advice import (
    Crossings,
    Finding,
    FloatKernel,
    IslandCost,
    findings,
    float_kernels,
    float_ms_of,
    island_costs,
)
from quant.diagnosis.kernel_table import Step, Sums, kind_of, moved, steps_of, sums_of
from quant.process import isolate
from quant.runtime.verbose_log import Kernel

__all__ = ["Profile", "ProfileTarget", "added_up", "is_directory", "profile"]


@dataclass(frozen=True)
class ProfileTarget:
    """A model to profile: its directory, what it is fed (arguments of profile_worker.profile_model), and the FP32
    model that it was made of, where that is known."""

    model: Path
    feed: Mapping[str, Any] = field(default_factory=dict)
    fp32: Path | None = None


def is_directory(name: str) -> bool:
    """Whether a model is named by its place, and not as a row."""
    return Path(name).exists() or len(Path(name).parts) != 1


@dataclass(frozen=True)
class Profile:
    """What was found of one model. `threads`: that it ran on. `runs`: how many runs were logged. `float_ms`: for each
    kernel its counterpart's time in the FP32 model, if there is one. `interrupted`: the share of runs in which other
    processes took the CPU; the sums leave those out if others are left.
    """

    model: Path
    precision: str
    executor: str
    isa: str
    threads: int
    batch: int
    runs: int
    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    sums: Sums
    islands: tuple[IslandCost, ...]
    floats: tuple[FloatKernel, ...]
    findings: tuple[Finding, ...]
    float_ms: tuple[float | None, ...]
    interrupted: float
    crossings: Crossings | None = None

    @property
    def moved(self) -> tuple[int, int]:
        """See quant.diagnosis.kernel_table.moved."""
        return moved(self.kernels, self.batch)


def kernels_in(result: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """The kernels of what quant.diagnosis.profile_worker.profile_model gave."""
    return tuple(Kernel(**{**entry, "types": tuple(entry["types"])}) for entry in result["kernels"])


def added_up(result: Mapping[str, Any]) -> tuple[tuple[Kernel, ...], tuple[Step, ...], Sums]:
    """What profile_worker.profile_model gave: its kernels, the ops that ran them, and where the time goes."""
    run = kernels_in(result)
    written = [(type, variable) for type, variable in result["written"]]
    steps = steps_of(written, result["before"], result["output_ms"], run, result["program"]["writers"])
    return run, steps, sums_of(run, steps, 1e3 * result["wall_s"], 1e3 * result["logged_s"])


def profile(
    subject: ProfileTarget,
    *,
    precision: str | None = None,
    executor: str = "auto",
    isa: str | None = None,
    threads: int = 1,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: isolate.Progress | None = None,
) -> Profile:
    """Run a model in a child and add up what it did; its FP32 model, if there is one, in another child."""
    arguments = {"threads": threads, "batch": batch, "shapes": dict(shapes or {}), **subject.feed}

    def measured(model: Path, **how: Any) -> dict[str, Any]:
        job = "quant.diagnosis.profile_worker:profile_model"
        given = {"model": str(model), **arguments, **how}
        result: dict[str, Any] = isolate.call(job, given, isa=isa, threads=threads, progress=progress)
        return result

    result = measured(subject.model, precision=precision, executor=executor)
    program = result["program"]
    run, steps, sums = added_up(result)
    float_ms: tuple[float | None, ...] = ()
    if subject.fp32 is not None and any(kind_of(kernel) == "int8" for kernel in run):
        float_ms = float_ms_of(run, kernels_in(measured(subject.fp32, precision="fp32")))
    islands = island_costs(steps, program, float_ms)
    floats = float_kernels(steps, program) if program["islands"] else ()
    return Profile(
        model=subject.model,
        precision=result["precision"],
        executor=result["executor"],
        isa=cpu.tier_of(isa).name,
        threads=result["threads"],
        batch=result["samples"],
        runs=result["runs"],
        kernels=run,
        steps=steps,
        sums=sums,
        islands=islands,
        floats=floats,
        findings=findings(run, steps, sums, islands, floats, float_ms),
        float_ms=float_ms,
        interrupted=result["interrupted"],
        crossings=Crossings.from_json(program["crossings"]) if program["crossings"] else None,
    )
