"""What was measured, raw: per-sample outcomes and timing samples. Everything else is derived on reading.

A `Run` is one file: all that a suite, a gate or a pytest run measured on one machine, and what it is judged by.

Schema history: 1 - first; 2 - outcomes are columns of counts, agreement, cosine, repeat, by_length; 3 - origin; 4 - a
file is a run: rows, start, commit, command, load; records with data and processes; what models consist of. Failures
came later without a number of their own: a run without the key had none that was kept, so its file says the same.
"""

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import to_json

from quant import cpu
from quant.metrics.scores import metric_of
from quant.results.target import Row

__all__ = [
    *("SCHEMA", "Anatomy", "Between", "Failure", "KeptOp", "Kernel", "Layer", "Load", "Machine", "Record", "Run"),
    "columns",
]

SCHEMA = 4
_EXACT = with_config(ConfigDict(extra="forbid"))  # of what is read back, and of all it holds
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """Where a run was taken. Runs of unlike machines are not compared in absolute terms."""

    flags: tuple[str, ...]
    tier: str
    cores: int
    python: str
    packages: Mapping[str, str]
    cpu: str = ""  # the brand string

    @staticmethod
    def here() -> "Machine":
        packages = {}
        for name in ("paddlepaddle", "numpy", "quant-onednn"):
            try:
                packages[name] = version(name)
            except PackageNotFoundError:
                continue
        found = cpu.flags()
        shown = tuple(flag for flag in _SHOWN_FLAGS if flag in found)
        return Machine(shown, cpu.detect().name, cpu.cores(), platform.python_version(), packages, cpu.brand())


@_EXACT
@dataclass(frozen=True)
class Record:
    """One model run at one precision on one ISA.

    `outcomes`: metric -> the columns of its counts (see quant.metrics.scores.Metric), each a string of one number a
    sample, in the dataset's order; `data` is a digest of that dataset; `compared` is a
    sentence, where other tensors than the outputs were (quant.ir.comparable). `latency_s`: one value a round, seconds a
    batch; in a paired measurement round i of both records ran back to back. `processes`: how many fresh processes
    the rounds are of, as many of each, one after the other. `twin_s`: rounds of the same model in a process of its
    own, which took turns with the others (an A/A run): what two measurements of one thing differ by. `repeat`: how
    often each batch ran in a row; `by_length`: samples sorted by length. `sqnr_db`, `cosine`, `agreement`:
    reference precision -> dB, mean cosine, share of equal integers. `int8_share`: share of multiply-accumulates
    that INT8 kernels did, from oneDNN's log, of all that the program declares. `threads`: what was asked for;
    `ran_threads`: what ran, fewer where recurrent layers gain by no more. Absent is None. `origin`: of the model, ""
    for an embedded one.
    """

    model: str
    precision: str
    isa: str
    threads: int
    batch: int
    samples: int = 0
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    cosine: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    latency_s: tuple[float, ...] = ()
    int8_share: float | None = None
    kernel_isas: tuple[str, ...] = ()
    variant: str = ""
    repeat: int = 1
    by_length: bool = False
    origin: str = ""
    overhead: float | None = None  # share of an evaluation's wall time outside predictor.run
    data: str = ""
    ran_threads: int | None = None
    compared: str = ""
    processes: int = 1
    twin_s: tuple[float, ...] = ()
    note: str = ""  # how an FP32 model or a simulation was run, where not as usual (quant.runtime.reference)
    uncounted: tuple[str, ...] = ()  # op types that `int8_share` leaves out: what they multiply isn't known

    def share_fault(self, due: float) -> str:
        """What is wrong with `int8_share` where at least `due` is expected, in words; "" when nothing is.

        A share beside which something isn't counted holds no limit: nobody knows what the share of all is.
        """
        share = self.int8_share or 0.0
        if share < due:
            return f"INT8 share {share:.1%}, expected {due:.0%}"
        if due and self.uncounted:
            left_out = ", ".join(self.uncounted)
            return f"INT8 share {share:.1%}, but not counted is what these ops multiply: {left_out}"
        return ""

    def counts(self, metric: str) -> NDArray[Any]:
        """What each sample adds to a metric, [N, k]: int64, or float64 of a user's own metric."""
        return np.stack([_numbers(column) for column in self.outcomes[metric]], axis=1)

    def score(self, metric: str) -> float:
        return float(metric_of(metric).score(self.counts(metric).sum(0)))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Record":
        """From what `dataclasses.asdict` and JSON made of a record. Raises ValueError."""
        found: Record = _restored(Record, content)
        return found


def _numbers(column: str) -> NDArray[Any]:
    values = np.array(column.split(), np.float64)
    whole = values.astype(np.int64)
    return whole if np.array_equal(whole, values) else values


def columns(counts: NDArray[Any]) -> tuple[str, ...]:
    """The inverse of `Record.counts`."""
    return tuple(" ".join(map(repr, column.tolist())) for column in counts.T)


# --- what a model consists of


@dataclass(frozen=True)
class KeptOp:
    """An op of an INT8 model that could be INT8 and isn't."""

    op: str  # its output
    type: str
    why: str


@dataclass(frozen=True)
class Kernel:
    """oneDNN kernels of one kind: how many ran, milliseconds of all, `share` of all kernels' time."""

    op: str
    implementation: str
    types: str
    count: int
    ms: float
    share: float


@dataclass(frozen=True)
class Layer:
    """An op of the executed INT8 graph: SQNR in dB of what it puts out; None where there is no counterpart.

    `fp32_db`: against the FP32 model, `quant_db`: against the simulation, both with their errors of all ops before.
    """

    op: str  # its output
    type: str
    fp32_db: float | None
    quant_db: float | None


@dataclass(frozen=True)
class Between:
    """A float32 op with INT8 ops before and behind it. `bytes`: of activations that it reads and writes in a run."""

    type: str
    output: str
    bytes: int
    reason: str  # "pass: why it didn't take it"

    @property
    def parts(self) -> tuple[str, str]:
        """The pass, "-" where none takes such an op, and why."""
        taker, colon, why = self.reason.partition(": ")
        return (taker, why) if colon else ("-", self.reason)


@_EXACT
@dataclass(frozen=True)
class Anatomy:
    """What an INT8 model is made of on this machine's own tier.

    `int8`: op type -> count; `kernels`: most time first, of the model that is timed; `layers`: worst first.
    Of a run of that model: `mac_share`, INT8 kernels' share of the multiply-accumulates, but for those of op types
    `uncounted`; `time_share`, their share of the time of kernels and of ops outside oneDNN, and `outside_share`, these
    ops' share of it; bytes a sample that reorders read and write: `crossing_bytes` of those between float32 and int8,
    `reorder_bytes` of the others. `between`: the float32 ops between INT8 ops, most bytes first. None in runs that
    were measured before this was told.
    """

    int8: Mapping[str, int]
    fp32: tuple[KeptOp, ...]
    kernels: tuple[Kernel, ...]
    layers: tuple[Layer, ...]
    mac_share: float | None = None
    uncounted: tuple[str, ...] = ()
    time_share: float | None = None
    outside_share: float | None = None
    crossing_bytes: int | None = None
    reorder_bytes: int | None = None
    between: tuple[Between, ...] | None = None

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Anatomy":
        """As `Record.from_json`."""
        found: Anatomy = _restored(Anatomy, content)
        return found


# --- a run


@dataclass(frozen=True)
class Failure:
    """A model that couldn't be measured: its title, the error in one line, the last lines that its process printed."""

    title: str
    reason: str
    log: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.title}: could not be measured: {self.reason}"


@dataclass(frozen=True)
class Load:
    """What else the machine did during a run.

    `average`: the 1-minute load average before it began; `steal`: the share of CPU time that a hypervisor gave to
    others; `switches`: involuntary context switches of this process and its children. None where the system doesn't
    tell.
    """

    average: float | None = None
    steal: float | None = None
    switches: int | None = None


@_EXACT
@dataclass(frozen=True)
class Run:
    """All that was measured by one command on one machine.

    `started`: UTC, ISO 8601. `commit` of the directory that it ran in, "" outside of git; `dirty`: with changes that
    aren't committed. `command`: what measures it again; with " --model NAME" one row alone. `seed`: of generated input
    and of resampling. `kind`: "suite", "gate" or "pytest". `missed`: what thresholds say was missed, a line each;
    `failures`: models that couldn't be measured, whose lines aren't in `missed`; `passed`: whether the run's exit code
    was 0.
    """

    machine: Machine
    rows: Mapping[str, Row]
    records: tuple[Record, ...]
    started: str = ""
    seconds: float = 0.0
    commit: str = ""
    dirty: bool = False
    command: str = "quant suite"
    kind: str = "suite"
    seed: int = 0
    load: Load = Load()
    anatomy: Mapping[str, Anatomy] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    passed: bool = True
    failures: tuple[Failure, ...] = ()

    @property
    def exact(self) -> tuple[Record, ...]:
        """The accuracy records."""
        return tuple(record for record in self.records if record.outcomes)

    @property
    def timed(self) -> tuple[Record, ...]:
        """The speed records: FP32 and INT8 that were timed against each other follow one another."""
        return tuple(record for record in self.records if record.latency_s)

    def models(self) -> Iterator[str]:
        """The rows that were measured, in order."""
        yield from dict.fromkeys(record.model for record in self.records)

    def to_json(self) -> str:
        """What isn't finite is a string, "Infinity" or "NaN", as in Protocol Buffers' JSON: any parser reads it."""
        return to_json({"schema": SCHEMA, **asdict(self)}, indent=1, inf_nan_mode="strings").decode()

    @staticmethod
    def from_json(text: str) -> "Run":
        """The inverse of `to_json`. Raises ValueError for another schema, or what isn't a run."""
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not a run: not a JSON object")
        schema = content.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}, this version reads {SCHEMA}")
        found: Run = _restored(Run, content)
        if fault := next(_faults(found), ""):
            raise ValueError(f"not a run: {fault}")
        return found


# Numbers between single blanks, as `columns` writes them.
_COLUMN = re.compile(r"(?:-?[0-9]{1,18}(?:\.[0-9]+)?(?:e(?:-[0-9]{1,3}|\+[0-9]{1,2}))?(?: (?=[-0-9])|$))+")


def _faults(run: Run) -> Iterator[str]:
    """What doesn't belong together in records whose every key is right."""
    shapes: dict[tuple[str, str], tuple[int, int]] = {}  # model, metric -> numbers a sample, samples
    for record in run.records:
        who = f"a record of {record.model!r}, {record.precision}"
        if record.model not in run.rows:
            yield f"{who}: no such row"
        for metric, found in record.outcomes.items():
            if not found or {column.count(" ") + 1 for column in found} != {record.samples}:
                yield f"{who}: its outcomes of {metric!r} aren't one for each of its {record.samples} samples"
            if not all(_COLUMN.fullmatch(column) for column in found):
                yield f"{who}: its outcomes of {metric!r} aren't numbers"
            shape = (len(found), record.samples)
            if shapes.setdefault((record.model, metric), shape) != shape:
                yield f"{who}: its outcomes of {metric!r} are of other samples than another record's"
        if not all(0 < seconds < math.inf for seconds in (*record.latency_s, *record.twin_s)):
            yield f"{who}: a time isn't above 0"
    yield from _unpaired(run)


def _unpaired(run: Run) -> Iterator[str]:
    """INT8 records without what they are compared with."""
    for int8 in run.exact:
        who = f"a record of {int8.model!r}, {int8.precision}"
        beside = [record for record in run.exact if record.model == int8.model and record.precision == "fp32"]
        if int8.precision == "int8" and not beside:
            yield f"{who}: no record of its FP32 model"
        for metric in run.rows[int8.model].max_drop:
            if metric not in int8.outcomes:
                yield f"{who}: no outcomes of {metric!r}"
    timed = run.timed
    if len(timed) % 2:
        yield f"{len(timed)} speed records: one was timed against no other"
    for fp32, int8 in zip(timed[::2], timed[1::2], strict=False):
        if fp32.model != int8.model or len(fp32.latency_s) != len(int8.latency_s):
            yield f"a record of {int8.model!r}, {int8.precision}: as many rounds of FP32 aren't before it"


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _restored(kind: Any, content: Any) -> Any:
    """What `dataclasses.asdict` and JSON made of one of these classes. Raises ValueError that names what is wrong."""
    try:
        return _reader(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a {kind.__name__.lower()}: {f'{where}: ' * bool(where)}{first['msg']}") from None
