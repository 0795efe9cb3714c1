"""Workers in turns, and a row's results."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.peers.contenders import Contender, engine_of
from bench.peers.models import Artefacts, Built, artefacts_of, case_of
from bench.peers.protocol import Worker, WorkerError, opened, thread_environment
from quant import cpu
from quant.errors import OptionError, QuantError
from quant.evaluation.collect import counts_of
from quant.evaluation.parts import unpack
from quant.process import parallel
from quant.results.record import columns
from quant.suites import embedded
from quant.suites.registry import ModelSpec
from quant.timing import side_by_side
from quant.timing.rounds import cycle, in_turn

__all__ = ["Cell", "Load", "Row", "compare", "judge", "measure", "take_turns"]

S = TypeVar("S")
T = TypeVar("T")
_ROUNDS = (8, 60)
_TURN_S = 0.03  # a turn lasts about this long, so that quick models run several times
_LONG_S = 0.1  # a lap that takes longer doesn't feel what others left in the caches
_REPEATS = 10
# What is timed together, and its share of a row's time. The ratios are of INT8, so that gets most rounds.
_GROUPS: tuple[tuple[tuple[Any, ...], float], ...] = ((("int8",), 0.6), (("fp32", "bf16"), 0.4))


@dataclass(frozen=True)
class Cell:
    """What a contender gave on a row, or why nothing.

    `seconds`: a batch, one value a round; round i of all cells that were timed together ran in a row, so long as none
    of them failed. `outcomes`: metric -> columns of counts, as of quant.results.record.Record.
    """

    seconds: tuple[float, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outcomes_error: str = ""

    @property
    def milliseconds(self) -> float | None:
        return 1e3 * float(np.median(self.seconds)) if self.seconds else None


@dataclass(frozen=True)
class Row:
    """A row's cells by contender key; `reference`: outcomes of our FP32 model."""

    model: str
    isa: str | None
    threads: int
    batch: int
    cells: Mapping[str, Cell]
    reference: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """What a worker is to load: its environment, and the request."""

    key: str
    environment: Mapping[str, str]
    module: str
    arguments: Mapping[str, Any]
    batches: Mapping[str, Any] | None = None

    def start(self) -> tuple[Worker, dict[str, Any]]:
        """A worker that has loaded it, and its answer. Raises WorkerError."""
        worker = Worker(self.environment)
        try:
            request = {"module": self.module, "arguments": dict(self.arguments), "batches": self.batches}
            return worker, worker.ask(load=request)
        except BaseException:
            worker.close()
            raise


def load_of(
    contender: Contender,
    built: Built,
    isa: str | None,
    threads: int,
    batches: Mapping[str, Any] | None,
    **settings: Any,
) -> Load:
    engine = engine_of(contender)
    given = {"model": built.path, "precision": contender.precision, "threads": threads, "form": engine.form}
    environment = {**thread_environment(threads), **engine.environment(isa)}
    return Load(contender.key, environment, engine.module, {**given, **contender.settings, **settings}, batches)


# --- speed


def take_turns(loads: Sequence[Load], *, budget_s: float, repeat: int | None, parallel: int = 1) -> dict[str, Cell]:
    """Time workers against each other: key -> Cell.

    Round by round each has a turn, everyone behind each other equally often (`rounds.in_turn`). In its turn it
    runs once untimed, because the others have emptied the caches (unless it takes long), and then a few times in a row,
    as a served model does: `repeat` times, or as many as fit a turn. The number of rounds follows from the budget: 8 to
    60, in whole cycles of that order. A worker that fails leaves the others alone. Models load `parallel` at a time,
    and nothing is timed before all are loaded.
    """
    cells: dict[str, Cell] = {}
    workers: dict[str, tuple[Worker, dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(parallel) as pool:
            for load, future in [(load, pool.submit(load.start)) for load in loads]:
                try:
                    workers[load.key] = future.result()
                    stack.callback(workers[load.key][0].close)
                except WorkerError as error:
                    cells[load.key] = Cell(error=str(error))
        # Seconds of a lap: all batches once.
        laps = {key: answer["seconds"] * answer["batches"] for key, (_, answer) in workers.items()}
        repeats = {key: repeat or int(np.clip(_TURN_S / lap, 1, _REPEATS)) for key, lap in laps.items()}
        each_s = sum(lap * (repeats[key] + (lap < _LONG_S)) for key, lap in laps.items())
        seconds: dict[str, list[float]] = {key: [] for key in workers}
        for number in range(_rounds(budget_s / each_s, len(workers)) if workers else 0):
            present = list(seconds)
            for key in [present[place] for place in in_turn(len(present), number)]:
                try:
                    answer = workers[key][0].ask(turn={"repeat": repeats[key], "warm": laps[key] < _LONG_S})
                    seconds[key].append(answer["seconds"])
                except WorkerError as error:
                    cells[key] = Cell(error=str(error))
                    del seconds[key]
        for key, times in seconds.items():
            cells[key] = Cell(tuple(times), workers[key][1]["facts"])
    return {load.key: cells[load.key] for load in loads}


def _rounds(affordable: float, contenders: int) -> int:
    """Whole cycles of `in_turn`, so that each follows each other equally often; 8 rounds, or a cycle, at least."""
    least, most = _ROUNDS
    whole = cycle(contenders)
    return max(int(np.clip(affordable, least, most)) // whole, -(-least // whole)) * whole


def measure(
    spec: ModelSpec, chosen: Sequence[Contender], artefacts: Artefacts, isa: str | None, threads: int, budget_s: float
) -> dict[str, Cell]:
    """Time a row's contenders on this quiet machine: key -> Cell. `budget_s` is for the turns alone."""
    case = case_of(spec)
    cells: dict[str, Cell] = {}
    batches = {"data": artefacts.timing, "batch": case.batch}
    fastest: dict[str, Any] = {}  # how Paddle runs our FP32 model fastest: found once, so that twins are alike
    for precisions, share in _GROUPS:
        loads = []
        for contender in [contender for contender in chosen if contender.precision in precisions]:
            built = artefacts.models[contender.key]
            if lack := _lacks(contender, isa):
                cells[contender.key] = Cell(error=lack)
            elif built.error:
                cells[contender.key] = Cell(error=built.error)
            else:
                ways = {}
                if contender.engine == "paddle" and contender.precision == "fp32":
                    ways = fastest = fastest or _fastest(artefacts, isa, threads)
                loads.append(load_of(contender, built, isa, threads, batches, **ways))
        repeat = None if spec.full else case.repeat
        timed = take_turns(loads, budget_s=share * budget_s, repeat=repeat, parallel=cpu.cores())
        for key, cell in timed.items():
            cells[key] = Cell(cell.seconds, {**artefacts.models[key].facts, **cell.facts}, cell.error)
    return {contender.key: cells[contender.key] for contender in chosen}


def _lacks(contender: Contender, isa: str | None) -> str:
    """Why this CPU, or the one that it stands for, can't run a contender; "" when it can."""
    if not contender.needs:
        return ""
    if isa and cpu.tier_of(isa) is not cpu.TIERS[-1]:
        return f"{isa} has no {contender.precision.upper()}"
    return "" if contender.needs & cpu.flags() else f"this CPU has no {contender.precision.upper()}"


def _fastest(artefacts: Artefacts, isa: str | None, threads: int) -> dict[str, Any]:
    """The settings of quant.runtime.predictor.Settings with which Paddle runs our FP32 model fastest."""
    assert artefacts.timing
    given = {"data": artefacts.timing["path"], "format": artefacts.timing["format"]}
    feed = {**given, "samples": artefacts.timing.get("samples", 0), "batch": artefacts.batch}
    ways = embedded.fp32_variants(artefacts.fp32)
    [timed] = side_by_side.bench([ways], isa=isa, threads=threads, budget_s=0.1, **feed)
    return {name: value for name, value in timed["run"].items() if name not in ("model", "precision")}


# --- accuracy


# INT8 cells by contender key, and the outcomes of our FP32 model.
Outcomes = tuple[dict[str, Cell], Mapping[str, tuple[str, ...]]]


def judge(spec: ModelSpec, chosen: Sequence[Contender], artefacts: Artefacts, isa: str | None) -> Outcomes:
    """INT8 outcomes of a row's trained model by contender key, and those of our FP32 model, on the same samples."""
    assert artefacts.test
    test, test_path = artefacts.test, Path(artefacts.test["path"])
    labels = opened(test).labels
    assert labels is not None
    reference = Contender("paddle", "fp32", "")

    def outcomes(contender: Contender, built: Built) -> Cell:
        try:
            found = _outputs(load_of(contender, built, isa, 1, None), test)
            counts = {metric: counts_of(metric, found, labels, contender.title, test_path) for metric in spec.max_drop}
        except (WorkerError, OptionError) as error:
            return Cell(outcomes_error=str(error))
        return Cell(outcomes={metric: columns(count) for metric, count in counts.items()})

    cells = {}
    for contender in chosen:
        built = artefacts.models[contender.key]
        cells[contender.key] = Cell(outcomes_error=built.error) if built.error else outcomes(contender, built)
    float32 = outcomes(reference, Built(str(artefacts.fp32)))
    if float32.outcomes_error:
        raise WorkerError(f"{artefacts.fp32}: {float32.outcomes_error}")
    return cells, float32.outcomes


def _outputs(load: Load, data: Mapping[str, Any]) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="quant-peers-") as scratch:
        file = Path(scratch) / "outputs.npz"
        worker, _ = load.start()
        with worker:
            count = worker.ask(outputs={"data": data, "file": str(file)})["count"]
        return list(unpack(file.read_bytes(), count)[0])


# --- rows


def compare(
    specs: Sequence[ModelSpec],
    chosen: Sequence[Contender],
    *,
    isa: str | None,
    threads: int,
    budget_s: float,
    tell: Callable[[str], None],
) -> list[Row]:
    """All rows: models are built and judged on all cores, then timed one row after the other.

    Where our own models of a row can't be built or judged, all its cells say why.
    """
    int8 = [contender for contender in chosen if contender.precision == "int8" and not contender.twin_of]

    def build(spec: ModelSpec) -> tuple[Artefacts, Artefacts]:
        full = artefacts_of(spec, chosen, isa, full=True)
        return full, artefacts_of(spec, int8, isa, full=False) if spec.full else full

    def outcomes(row: tuple[ModelSpec, Artefacts]) -> Outcomes:
        return judge(row[0], int8, row[1], isa)

    rows = {spec: Row(spec.name, isa, threads, case_of(spec).batch, {}) for spec in specs}
    tell("building models")
    built = _each(specs, build)
    tell("accuracy")
    small = {spec: found[1] for spec, found in built.items() if not isinstance(found, str)}
    judged = dict(zip(small, _each(list(small.items()), outcomes).values(), strict=True))
    for spec in specs:
        tell(f"timing {spec.name}")
        found, accuracy = built[spec], judged.get(spec, "")
        if isinstance(found, str) or isinstance(accuracy, str):
            why = found if isinstance(found, str) else str(accuracy)
            rows[spec] = replace(rows[spec], cells={contender.key: Cell(error=why) for contender in chosen})
            continue
        cells = measure(spec, chosen, found[0], isa, threads, budget_s)
        cells |= {
            key: replace(cells[key], outcomes=cell.outcomes, outcomes_error=cell.outcomes_error)
            for key, cell in accuracy[0].items()
        }
        rows[spec] = replace(rows[spec], cells=cells, reference=accuracy[1])
    return list(rows.values())


def _each(items: Sequence[S], work: Callable[[S], T]) -> dict[S, T | str]:
    """`work` on each, on all cores; the message of what can't be done."""

    def tried(item: S) -> T | str:
        try:
            return work(item)
        except QuantError as error:
            return " ".join(str(error).split())

    return dict(zip(items, parallel.each(items, tried), strict=True))
