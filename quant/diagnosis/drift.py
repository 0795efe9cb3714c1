"""Why accuracy dropped: what each op of an executed INT8 graph does to its values, and what is wrong with it.

Three questions, each with its own figure. Has the executed op done what the simulation does with the same inputs
(`local_db`)? A low one is a fault of the engine or of the converted graph, never of quantization. What does rounding
this op alone cost (`local_fp32_db`)? And what has become of the values so far (`quant_db`, `fp32_db`)?
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quant import cpu
from quant.metrics.tensor_error import MOST_DB
from quant.process import isolate

__all__ = ["LOCAL_DB", "Analysis", "DriftTarget", "Finding", "OpError", "Scale", "analyze", "findings_of"]

# Healthy INT8 ops differ from the simulation where a sum of float32 lies beside a rounding boundary: at least 70 dB on
# the embedded rows. Recurrent kernels round their state from step to step, which no Paddle program can: 40 to 48 dB.
LOCAL_DB = 45.0
_CELL_DB = 30.0
_CELLS = ("fusion_gru", "fusion_lstm", "multi_gru")

_SAME = 1e-3  # scales that differ by less are the same, stored in float32
_FACTOR = 4.0  # between threshold and largest value
_SATURATED = 0.01
_OUTLIER = 10.0  # times the upper quartile of channels; at most 5 on the embedded rows
_READ_DB = 30.0
_AMPLIFIED_DB = 20.0  # by how much less than each op by itself a whole network agrees that amplifies


@dataclass(frozen=True)
class Scale:
    """What an op goes by, and what the simulation rounds to: levels / threshold, integers to a unit."""

    name: str
    value: float
    due: float


@dataclass(frozen=True)
class OpError:
    """What an op of the executed graph writes, against the simulation and the FP32 model. Absent is None.

    `output`: the tensor, by the name that models have for it; `variable`: the executed graph's, which `inputs` are,
    too. `types`: the executed op, with those before it whose outputs can't be seen; `int8`: one of them is;
    `sources`: the FP32 model's ops that it does, `op_ids` those among them that can be left in FP32.
    `stored`: type in memory, of which `shift` means 0; `grid`: threshold and levels of the simulation.
    dB are SQNR, at most MOST_DB. `local`: against what the simulation makes of the op's own inputs, as they were;
    `unmeasured`: why that isn't known. `local_fp32_db`: what the simulation makes of the FP32 model's tensors, rounded
    as this op's inputs and output are, against the FP32 model's output. `quant`, `fp32`: against the simulation's and
    the FP32 model's tensor, with the errors of all ops before.
    `low`, `high`: of the FP32 model's tensor; `saturated`: the share of it beyond the threshold, `clipped` its mean
    squared excess; `ends`: the share of stored integers at the ends of the range (0 is no end of uint8); `outlier`: the
    channel of the largest magnitude, and how many times as far as the upper quartile of channels it reaches.
    `error`: what most of the local error is.
    """

    output: str
    variable: str
    types: tuple[str, ...]
    int8: bool
    sources: tuple[str, ...]
    op_ids: tuple[int, ...]
    inputs: tuple[str, ...]
    stored: str
    shift: int
    scale: float | None
    grid: tuple[float, int] | None
    scales: tuple[Scale, ...]
    fp32_db: float | None
    fp32_cosine: float | None
    quant_db: float | None
    quant_cosine: float | None
    local_db: float | None
    local_cosine: float | None
    local_fp32_db: float | None
    low: float | None
    high: float | None
    saturated: float | None
    clipped: float | None
    ends: float | None
    outlier: tuple[int, float] | None
    finite: bool
    error: str
    unmeasured: str

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "OpError":
        lists = {
            name: None if content[name] is None else tuple(content[name])
            for name in ("types", "sources", "op_ids", "inputs", "grid", "outlier")
        }
        return OpError(**{**content, **lists, "scales": tuple(Scale(**entry) for entry in content["scales"])})

    @property
    def type(self) -> str:
        return " + ".join(self.types)

    @property
    def least_db(self) -> float:
        """Below this the op doesn't do what the simulation says."""
        return _CELL_DB if self.types[-1] in _CELLS else LOCAL_DB

    @property
    def faulty(self) -> bool:
        return not self.finite or (self.local_db is not None and self.local_db < self.least_db)


@dataclass(frozen=True)
class Finding:
    """What is wrong with an op. `kind`: "engine" (the op doesn't do what the simulation does), "calibration" (the
    simulation's own rounding is unfit for the values) or "range" (a part of the integers is never used)."""

    kind: str
    output: str
    text: str


@dataclass(frozen=True)
class Analysis:
    """Of one INT8 model over some samples, called `title`. `ops`: in the order of execution; `unseen`: (variable, op
    type) of what is written and read inside one kernel; `as_read_db`: the simulation's outputs as converting reads it,
    to those as it is given."""

    model: Path
    title: str
    executor: str
    isa: str
    threads: int
    samples: int
    as_read_db: float | None
    unseen: tuple[tuple[str, str], ...]
    ops: tuple[OpError, ...]

    @staticmethod
    def from_job(found: Mapping[str, Any], model: Path, isa: str, title: str = "") -> "Analysis":
        """From what quant.diagnosis.drift_worker.analyze_model gives."""
        return Analysis(
            model=model,
            title=title or str(model),
            executor=found["executor"],
            isa=isa,
            threads=found["threads"],
            samples=found["samples"],
            as_read_db=found["as_read_db"],
            unseen=tuple((entry["variable"], entry["type"]) for entry in found["unseen"]),
            ops=tuple(map(OpError.from_json, found["ops"])),
        )

    @cached_property
    def _by_variable(self) -> dict[str, OpError]:
        return {op.variable: op for op in self.ops}

    def _before(self, op: OpError) -> list[float]:
        """SQNR to FP32 of an op's inputs; what isn't known is taken for exact."""
        known = (self._by_variable.get(name) for name in op.inputs)
        return [MOST_DB if one is None or one.fp32_db is None else one.fp32_db for one in known]

    def added(self, op: OpError) -> float | None:
        """Noise to signal (to FP32) that an op's output has more than the noisiest of its inputs."""
        return None if op.fp32_db is None else _noise(op.fp32_db) - max(map(_noise, self._before(op)), default=0.0)

    def drop_db(self, op: OpError) -> float | None:
        """By how many dB (to FP32) an op's output is below the lowest of its inputs; None behind exact inputs."""
        before = min(self._before(op), default=MOST_DB)
        return None if op.fp32_db is None or before == MOST_DB else before - op.fp32_db

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """Faults of the engine first, then what calibration did; each worst first."""
        found = [finding for op in self.ranked for finding in findings_of(op)]
        if self.as_read_db is not None and self.as_read_db < _READ_DB:
            text = f"converting reads the simulation otherwise than it runs: {self.as_read_db:.1f} dB at its outputs"
            found.insert(0, Finding("engine", "", text))
        return tuple(sorted(found, key=lambda finding: ("engine", "calibration", "range").index(finding.kind)))

    @property
    def amplifies(self) -> str:
        """A line where no op is at fault, and the output is far from the simulation's all the same; "" elsewhere."""
        judged = [op for op in self.ops if op.local_db is not None and op.quant_db is not None]
        if not judged or any(op.faulty for op in self.ops):
            return ""
        least, last = min(op.local_db or 0.0 for op in judged), judged[-1].quant_db or 0.0
        if last > min(least - _AMPLIFIED_DB, LOCAL_DB):
            return ""
        return f"each op agrees to {least:.0f} dB; the network amplifies: {last:.0f} dB at {judged[-1].output!r}"

    @cached_property
    def ranked(self) -> tuple[OpError, ...]:
        """Worst first: ops that don't do what the simulation does, by their own error; the others by the noise that
        rounding them alone makes or, where that isn't known, that they add; those without a counterpart last.

        What an op adds is no guide behind one that has lost most of the signal: a little more there is much.
        """

        def key(op: OpError) -> tuple[int, float]:
            if op.faulty or any(finding.kind == "engine" for finding in findings_of(op)):
                return 0, op.local_db if op.finite and op.local_db is not None else -MOST_DB
            noise = self.added(op) if op.local_fp32_db is None else _noise(op.local_fp32_db)
            return (2, 0.0) if noise is None else (1, -noise)

        return tuple(sorted(self.ops, key=key))


def _noise(db: float) -> float:
    return 0.0 if db >= MOST_DB else float(10 ** (-db / 10))


# --- what is wrong with an op


def findings_of(op: OpError) -> Iterator[Finding]:
    for kind, rule in _RULES:
        if text := rule(op):
            yield Finding(kind, op.output, text)


def _own_error(op: OpError) -> str:
    if not op.finite:
        return "puts out NaN or Inf"
    if not op.faulty:
        return ""
    return f"{op.local_db:.1f} dB to what the simulation makes of the same inputs; {op.error}"


def _scales(op: OpError) -> str:
    off = [scale for scale in op.scales if abs(scale.value - scale.due) > _SAME * abs(scale.due)]
    return "; ".join(
        f"{scale.name} is {scale.value:.4g}, {scale.value / scale.due:.3g} times the simulation's {scale.due:.4g}"
        for scale in off
    )


def _loses_sign(op: OpError) -> str:
    """uint8 without a shift, of a tensor that has negative values beyond what rounding hides."""
    if op.stored != "uint8" or op.shift or op.grid is None or op.low is None:
        return ""
    threshold, levels = op.grid
    if op.low >= -0.5 * threshold / levels:
        return ""
    return f"stored as uint8, but the FP32 model's values reach {op.low:.3g}"


def _wide(op: OpError) -> str:
    if op.grid is None or op.low is None or op.high is None:
        return ""
    largest = max(-op.low, op.high)
    if not largest or op.grid[0] <= _FACTOR * largest:
        return ""
    return f"threshold {op.grid[0]:.3g}, {op.grid[0] / largest:.1f} times the largest value seen: steps are wasted"


def _narrow(op: OpError) -> str:
    """What is beyond the threshold costs more than rounding does: else a threshold below the largest value is right."""
    if op.grid is None or op.low is None or op.high is None or op.saturated is None or op.clipped is None:
        return ""
    threshold, levels = op.grid
    beyond = max(-op.low, op.high) / threshold
    if op.clipped <= (threshold / levels) ** 2 / 12 or (op.saturated <= _SATURATED and beyond <= _FACTOR):
        return ""
    return (
        f"{100 * op.saturated:.2g}% of the values are beyond the threshold {threshold:.3g}, the largest {beyond:.1f} "
        "times that: clipping costs more than rounding"
    )


def _outliers(op: OpError) -> str:
    if op.grid is None or op.outlier is None or op.outlier[1] < _OUTLIER:
        return ""
    channel, ratio = op.outlier
    return (
        f"channel {channel} reaches {ratio:.0f} times as far as three quarters of the others: one threshold serves few"
    )


def _half_range(op: OpError) -> str:
    if op.grid is None or op.stored != "int8" or op.low is None or op.low < 0:
        return ""
    return "stored as int8, but never negative: half of the range is lost"


# Kind of finding, and what tells it: the text, or "" where nothing is wrong.
_RULES: tuple[tuple[str, Callable[[OpError], str]], ...] = (
    ("engine", _own_error),
    ("engine", _scales),
    ("engine", _loses_sign),
    ("calibration", _wide),
    ("calibration", _narrow),
    ("calibration", _outliers),
    ("range", _half_range),
)


# --- running it


@dataclass(frozen=True)
class DriftTarget:
    """An INT8 model, what it was made of (`quant`: its simulation, None if there is none), and data to run it on.

    `title`: what it is called where its path says little.
    """

    model: Path
    fp32: Path
    quant: Path | None
    data: Path
    format: str | None = None
    labels: Path | None = None
    title: str = ""


def analyze(
    subject: DriftTarget,
    *,
    samples: int = 64,
    executor: str = "auto",
    isa: str | None = None,
    threads: int = 1,
    local: bool = True,
    progress: isolate.Progress | None = None,
) -> Analysis:
    """Run a subject's models in a child. Without `local` single ops aren't run apart, which takes half the time.

    Raises ModelError and DataError, naming what doesn't fit.
    """
    arguments = {
        "model": str(subject.model),
        "fp32_model": str(subject.fp32),
        "quant_model": str(subject.quant) if subject.quant else None,
        "data": str(subject.data),
        "format": subject.format,
        "labels": str(subject.labels) if subject.labels else None,
        "samples": samples,
        "threads": threads,
        "executor": executor,
        "local": local,
    }
    found = isolate.call(
        "quant.diagnosis.drift_worker:analyze_model", arguments, isa=isa, threads=threads, progress=progress
    )
    return Analysis.from_job(found, subject.model, cpu.tier_of(isa).name, subject.title)
