"""Where a run of a model spends its time: which model is meant, the child that runs it, and what its log adds up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant import cpu, isolate
from quant.errors import ModelError
from quant.findings import (
    Finding,
    FloatKernel,
    IslandCost,
    findings,
    float_kernels,
    float_ms_of,
    island_costs,
)
from quant.kernel_table import OUTPUT_LINE, Step, Sums, kind_of, steps_of, sums_of, typical
from quant.numerics import SIGNED
from quant.pipeline import data_of, full_of, weight_levels
from quant.profile import Kernel, kernels
from quant.registry import find

__all__ = ["Profile", "Subject", "profile", "subject_of"]


@dataclass(frozen=True)
class Subject:
    """A model to profile: its directory, what it is fed (arguments of quant.profile_jobs.profile_model), and the FP32
    model that it was made of, where that is known."""

    model: Path
    feed: Mapping[str, Any] = field(default_factory=dict)
    fp32: Path | None = None


def subject_of(name: str, isa: str | None = None, progress: isolate.Progress | None = None) -> Subject:
    """A model directory, or a registry row's full-size INT8 model for the tier, which is built when it isn't there yet.

    Raises OptionError, with the nearest row, for what is neither.
    """
    if Path(name).exists() or len(Path(name).parts) != 1:
        return Subject(Path(name))
    spec, levels = find(name), weight_levels(isa)
    models = full_of(spec, progress)
    differs = not spec.full or spec.differs_below_vnni
    model = models / ("int8" if levels == SIGNED or not differs else "int8-7bit")
    if spec.full:
        return Subject(model, {"full_input": spec.full_input}, models / "fp32")
    data = data_of(spec, (spec.test[0], 50), progress)
    return Subject(model, {"data": str(data), "format": spec.format}, models / "fp32")


@dataclass(frozen=True)
class Profile:
    """What was found of one model. `runs`: how many runs were logged. `steps` is empty where the executor doesn't tell
    which ops it runs. `float_ms`: of each kernel, its counterpart's time in the FP32 model, if there is one.
    `interrupted`: the share of runs in which other processes took the CPU; the sums leave those out if others are left.
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


def profile(
    subject: Subject,
    *,
    precision: str | None = None,
    executor: str = "auto",
    isa: str | None = None,
    threads: int = 1,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: isolate.Progress | None = None,
) -> Profile:
    """Run a model in a child and add up what its log says; its FP32 model, if there is one, in another child."""
    arguments = {"threads": threads, "batch": batch, "shapes": dict(shapes or {}), **subject.feed}
    own = _Log(subject.model, {**arguments, "precision": precision, "executor": executor}, isa, threads, progress)
    run, result = own.kernels(), own.result
    program = result["program"]
    steps = own.steps(run)
    float_ms: tuple[float | None, ...] = ()
    if subject.fp32 is not None and any(kind_of(kernel) == "int8" for kernel in run):
        other = _Log(subject.fp32, {**arguments, "precision": "fp32"}, isa, threads, progress)
        float_ms = float_ms_of(run, other.kernels())
    sums = sums_of(run, steps, 1e3 * result["wall_s"], 1e3 * result["logged_s"])
    islands = island_costs(steps, program, float_ms)
    floats = float_kernels(steps, program) if program["islands"] else ()
    return Profile(
        model=subject.model,
        precision=result["precision"],
        executor=result["executor"],
        isa=cpu.tier_of(isa).name,
        threads=threads,
        batch=batch,
        runs=len(own.runs),
        kernels=run,
        steps=steps,
        sums=sums,
        islands=islands,
        floats=floats,
        findings=findings(run, steps, sums, islands, floats),
        float_ms=float_ms,
        interrupted=result["interrupted"],
    )


class _Log:
    """What a child that ran quant.profile_jobs.profile_model printed: the log of each run, and of the watched one."""

    def __init__(
        self,
        model: Path,
        arguments: Mapping[str, Any],
        isa: str | None,
        threads: int,
        progress: isolate.Progress | None,
    ) -> None:
        self.model = model
        self.runs: list[list[str]] = []
        self.watched: list[str] = []
        self._open: list[str] | None = None
        self.result: dict[str, Any] = isolate.call(
            "quant.profile_jobs:profile_model",
            {"model": str(model), **arguments},
            isa=isa,
            threads=threads,
            progress=progress,
            log=self._line,
            heard=self._event,
        )

    def _event(self, event: Mapping[str, Any]) -> None:
        if event["log"] == "kernels":
            self._open = []
            self.runs.append(self._open)
        else:
            self._open = self.watched if event["log"] == "ops" else None

    def _line(self, line: str) -> None:
        if self._open is not None:
            self._open.append(line)

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of one run. Raises ModelError when no kernel of oneDNN ran, or not the same ones each time."""
        runs = [list(kernels(lines)) for lines in self.runs]
        if not any(runs):
            raise ModelError(f"{self.model}: runs no kernel of oneDNN's, so there is nothing to profile")
        try:
            return typical(runs)
        except ModelError as error:
            raise ModelError(f"{self.model}: {error}") from error

    def steps(self, run: Sequence[Kernel]) -> tuple[Step, ...]:
        """The executed ops with the kernels of `run`."""
        ran, before = 0, []
        for line in self.watched:
            if line == OUTPUT_LINE:
                before.append(ran)
            else:
                ran += sum(1 for _ in kernels([line]))
        written = [(type, variable) for type, variable in self.result["written"]]
        if ran != len(run) or len(before) != len(written):
            raise ModelError(f"{self.model}: the model doesn't run the same kernels each time")
        return steps_of(written, before, self.result["output_ms"], run, self.result["program"]["writers"])
