"""A conversion that is measured: which ops stay FP32, because INT8 is slower there on this CPU.

An INT8 op between FP32 ones pays for a quantize op before it and often a dequantize op behind it, and small kernels
gain less than that costs. What an op costs in either precision is read off one run each (`Predictor.watch`); from that
follows which ops, or whole islands, may lose. Whether they do is decided by timing whole models in alternation. With
one thread that is its CPU time, which other work on the machine changes least; with several, wall time.

What is left in FP32 isn't rounded either, unless an INT8 op reads the same rounded values: its simulation is the given
one without those quantizers (`left_float`).

`decisions.json`, written beside the model:

    schema          1
    cpu             tier, the ISA cap or null, threads, batch, shapes of inputs that the user gave
    budget_s        the time budget; `spent_s` what was used of it, loading and converting included
    choice          what the directory holds. "int8": every op that can be is; "optimised": INT8 but for `left_in_fp32`,
                    as that is faster by more than noise (the whole interval), or "int8" slower than FP32; "fp32": the
                    FP32 model, as both were slower (medians)
    left_in_fp32    op_id, op_type, output, int8_ms, fp32_ms of each op that INT8 would slow down; times of single ops
                    are rough, and leave out the quantize and dequantize ops that went with it
    tried           in order: op_ids, gain_ms (what was expected), ratio, low, high, kept. The ratio is the best model
                    so far / the one without these ops in INT8; low and high are its 95% interval
    fp32_variant    how FP32 was run: the fastest of quant.timing.baseline's variants
    median_ms       of "fp32", "int8" and "optimised" (absent when nothing was kept), loaded anew at the end and timed
                    in alternation
    ratios          of their times, "fp32/int8", "fp32/optimised", "int8/optimised": ratio, low, high
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from quant.diagnosis.pairing import stem
from quant.errors import ConversionError, UnsupportedError
from quant.evaluation.worker import settings_of
from quant.ir.fusion import Chain, chains_of, is_move, numbered
from quant.ir.graph import Graph, Op, load_dir, run_passes, save_dir
from quant.ir.int8_regions import islands
from quant.ir.passes import PLACE
from quant.ir.passes.quantizers import without_quantizers
from quant.metrics.scores import ratio_interval
from quant.process.isolate import report_progress
from quant.quantization.conversion import Coverage, Kept, convert
from quant.runtime.predictor import Predictor, Settings
from quant.search.op_costs import Clock, Costs, Feed, Runner, both_times
from quant.timing.baseline import fp32_variants, worth_timing
from quant.timing.rounds import in_turn

__all__ = ["DECISIONS", "SCHEMA", "Candidate", "Limits", "Trial", "left_float", "optimise", "search", "units"]

DECISIONS = "decisions.json"
SCHEMA = 1
LEFT = "in INT8 it makes the model slower on this CPU"
NO_INT8 = "no INT8 model is faster than FP32 on this CPU"

Json = dict[str, Any]
OpIds = frozenset[int]

_LOOKS = (8, 15, 30, 60)  # rounds after which a race may be decided
_SURE = 15  # rounds without which nothing is kept
_FINAL = 0.25  # share of the budget that the last comparison gets, or the time that loading took if that is more
_PREDICTING = 0.2  # and that looking for candidates may


@dataclass(frozen=True)
class Trial:
    """Ops left in FP32 on top of the best so far, what was expected of it, and what was measured."""

    op_ids: tuple[int, ...]
    gain_ms: float
    ratio: float
    low: float
    high: float
    kept: bool


@dataclass(frozen=True)
class Limits:
    """`budget_s`, of which the last comparison gets `reserved_s`; `clock` gives seconds since the beginning."""

    budget_s: float
    clock: Clock
    reserved_s: float = 0.0

    def left(self) -> float:
        return self.budget_s - self.clock()

    def searching(self) -> bool:
        return self.left() > self.reserved_s


# --- what can be left in FP32


def units(graph: Graph, int8: Collection[int]) -> tuple[Chain, ...]:
    """The chains of a placed graph (quant.ir.passes.PLACE) that conversion makes INT8, in program order.

    `int8`: the ids of the ops that it makes INT8.
    """
    ids = numbered(graph)
    return tuple(chains_of(graph, {op for op, number in ids.items() if number in int8}).values())


def left_float(graph: Graph, chains: Iterable[Chain]) -> Graph:
    """A placed graph without the quantizers that only `chains` read, themselves or through ops that carry values."""
    skipped = {op for chain in chains for op in chain.ops}
    readers = graph.readers()

    def only_skipped(name: str) -> bool:
        found = readers.get(name, [])
        if not found or name in graph.fetches:
            return False
        return all(op in skipped or (is_move(op) and all(map(only_skipped, op.outputs["Out"]))) for op in found)

    sources: dict[str, str] = {}
    ops = []
    for op in graph.ops:
        op = op.rewired(sources)
        if op.type == "fake_quant" and only_skipped(op.output("Out")):
            sources[op.output("Out")] = op.input("X")
        else:
            ops.append(op)
    return graph.evolve(ops) if sources else graph


# --- the search


@dataclass(frozen=True)
class Candidate:
    """Ops that might be left in FP32, and how many milliseconds that should save, those before it being left too."""

    op_ids: OpIds
    gain_ms: float


def search(
    propose: Callable[[OpIds], Sequence[Candidate]],
    race: Callable[[OpIds, OpIds], tuple[float, float, float]],
    limits: Limits,
) -> tuple[OpIds, list[Trial]]:
    """Leave ops in FP32 while that makes the model faster; the ops, and all that was tried.

    `propose`: candidates on top of the ops that are left in FP32 already, the most promising first. `race`: two sets
    of ops -> the median ratio of the time with the first / with the second, and its interval. A trial is kept when the
    whole interval is above 1.

    All candidates are tried at once, then, as long as a lot is not faster, its halves, the better first: many losses
    too small to be measured are found together, and one that shouldn't be among them is found out. What was kept
    changes its neighbours' borders, so candidates are proposed anew until there are none that weren't tried.
    """
    kept: OpIds = frozenset()
    trials: list[Trial] = []
    tried: set[OpIds] = set()
    while limits.searching():
        found = propose(kept)
        lots = [list(found)] if found else []
        begun = kept
        while lots and limits.searching():
            lot = lots.pop(0)
            together = kept.union(*(candidate.op_ids for candidate in lot))
            if together == kept:
                continue
            faster = False
            if together not in tried:
                tried.add(together)
                ratio, low, high = race(kept, together)
                faster = low > 1.0
                gain = sum(candidate.gain_ms for candidate in lot)
                trials.append(Trial(tuple(sorted(together - kept)), gain, ratio, low, high, faster))
            if faster:
                kept = together
            elif len(lot) > 1:
                half = len(lot) // 2
                lots[:0] = [lot[:half], lot[half:]]
        if kept == begun:
            break
    return kept, trials


# --- models that are timed


def _alternate(runners: Sequence[Runner]) -> Iterator[list[float]]:
    """Rounds without end: seconds of each, the order alternating."""
    number = 0
    while True:
        seconds = {place: runners[place].turn() for place in in_turn(len(runners), number)}
        yield [seconds[place] for place in range(len(runners))]
        number += 1


def _race(slow: Runner, fast: Runner, limits: Limits) -> tuple[float, float, float]:
    """Median ratio slow / fast with its interval, from as many rounds as it takes to tell them apart, at most 60."""
    rounds: list[list[float]] = []
    for seconds in _alternate((slow, fast)):
        rounds.append(seconds)
        over = not limits.searching() and len(rounds) >= _LOOKS[0]
        if len(rounds) in _LOOKS or over:
            times = np.array(rounds)
            ratio, low, high = ratio_interval(times[:, 0], times[:, 1])
            if high < 1 or (low > 1 and len(rounds) >= _SURE) or len(rounds) == _LOOKS[-1]:
                break
            if over:
                return ratio, min(low, 1.0), high  # too few rounds to keep anything
    return ratio, low, high


def _measured(runners: Sequence[Runner], limits: Limits) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds [rounds, runners] until the budget is used up: 8 to 60 rounds."""
    rounds: list[list[float]] = []
    for seconds in _alternate(runners):
        rounds.append(seconds)
        if len(rounds) >= _LOOKS[-1] or (len(rounds) >= _LOOKS[0] and limits.left() <= 0):
            break
    return np.array(rounds)


# --- all of it


class _Bench:
    """A fake-quantized graph's conversions, measured on one input: what `search` asks for."""

    def __init__(
        self,
        given: Graph,
        feed: Feed,
        scratch: Path,
        *,
        own: Path | None,
        threads: int,
        ops_to_quantize: Collection[str],
        op_ids_to_skip: Collection[int],
    ) -> None:
        placed = run_passes(given, PLACE)
        self.placed, self.feed, self.scratch, self.threads = placed, feed, scratch, threads
        self.clock: Clock = time.thread_time if threads == 1 else time.perf_counter
        self.types, self.given = tuple(ops_to_quantize), frozenset(op_ids_to_skip)
        self.ids = numbered(placed)
        self.plain = convert(placed, ops_to_quantize=self.types, op_ids_to_skip=self.given)
        self.units = units(placed, set(self.ids.values()) - {entry.op_id for entry in self.plain[1].kept})
        self.directories = 0
        self.fp32 = placed  # the one that `final` finds the fastest, from then on
        self.runners: dict[OpIds, Runner] = {}
        self.predictions: dict[OpIds, float | None] = {}
        floats = without_quantizers(placed)
        fp32, self.int8 = self.saved(floats), self.saved(self.plain[0])
        int8_ms, fp32_ms = both_times(self.int8, fp32, feed, threads, self.clock)
        self.costs = Costs.of(placed.vars, self.plain[0], int8_ms, fp32_ms)
        exported = without_quantizers(given)
        self.fp32s = {fp32: floats, self.saved(exported): exported} if own is None else {own: load_dir(own)}

    def saved(self, graph: Graph) -> Path:
        self.directories += 1
        place = self.scratch / str(self.directories)
        place.mkdir()
        save_dir(graph, place)
        return place

    def op_ids(self, chain: Chain) -> OpIds:
        return frozenset(self.ids[op] for op in chain.ops if op in self.ids)

    def converted(self, left: OpIds) -> tuple[Graph, Coverage]:
        """The conversion that leaves ops in FP32."""
        if not left:
            return self.plain
        graph = left_float(self.placed, [chain for chain in self.units if self.op_ids(chain) <= left])
        return convert(graph, ops_to_quantize=self.types, op_ids_to_skip=self.given | left)

    def predicted_ms(self, left: OpIds) -> float | None:
        """What the ops of such a conversion take; None when nothing would be INT8."""
        if left not in self.predictions:
            try:
                self.predictions[left] = self.costs.predicted_ms(self.converted(left)[0])
            except ConversionError:
                self.predictions[left] = None
        return self.predictions[left]

    def candidates(self, left: OpIds, limits: Limits) -> list[Candidate]:
        """Ops and islands that may be faster in FP32, on top of what is left there already.

        What an op can save at most is the difference of its two kernels and the borders on both sides. Each gain is
        what remains when all candidates before are left in FP32 too, the ones that save most alone coming first; when
        finding out takes long, it is what each saves alone. Ops whose time in FP32 isn't known are left out: Paddle
        fuses recurrent layers under names of its own.
        """
        border = 2 * float(np.mean(list(self.costs.border.values()) or [0.0]))
        times = {chain: self.costs.of_chain(chain) for chain in self.units}
        saves = {chain: int8 - fp32 + border for chain, (int8, fp32) in times.items() if fp32 is not None}
        alone = sorted((chain for chain in saves if saves[chain] > 0), key=lambda chain: -saves[chain])
        owners = {chain.out: chain for chain in self.units}
        found_islands = [
            {
                owners[written]
                for op in island.ops
                for name in op.writes
                if (written := stem(name, self.placed.vars)) in owners
            }
            for island in islands(self.converted(left)[0])
        ]
        whole = [frozenset().union(*map(self.op_ids, island)) for island in found_islands if island <= saves.keys()]
        begin, share = limits.clock(), _PREDICTING * limits.budget_s

        def gain(have: OpIds, ops: OpIds) -> float:
            now, then = self.predicted_ms(have), self.predicted_ms(have | ops)
            return 0.0 if now is None or then is None else now - then

        gains: dict[OpIds, float] = {}
        for ops in dict.fromkeys([*whole, *map(self.op_ids, alone)]):
            if not ops <= left and limits.clock() < begin + share / 2:
                gains[ops] = gain(left, ops)
        found, have = [], left
        for ops in sorted((ops for ops, saved in gains.items() if saved > 0), key=lambda ops: -gains[ops]):
            if ops <= have:
                continue
            saved = gain(have, ops) if limits.clock() < begin + share else gains[ops]
            if saved > 0:
                found.append(Candidate(ops, saved))
                have |= ops
        return found

    def runner(self, left: OpIds) -> Runner:
        directory = self.saved(self.converted(left)[0]) if left else self.int8
        return Runner(Predictor(directory, Settings("int8", self.threads)), self.feed, self.clock)

    def race(self, slow: OpIds, fast: OpIds, limits: Limits) -> tuple[float, float, float]:
        """Models stay loaded while they may be asked for again."""
        for left in set(self.runners) - {slow, fast}:
            self.runners.pop(left).predictor.close()
        for left in (slow, fast):
            if left not in self.runners:
                self.runners[left] = self.runner(left)
        total = math.ceil(limits.budget_s)
        report_progress("optimise", min(int(limits.clock()), total), total)
        return _race(self.runners[slow], self.runners[fast], limits)

    def final(self, left: OpIds, limits: Limits) -> Json:
        """FP32, INT8 and what the search came to, loaded anew and timed against each other: what is chosen, and why."""
        for runner in self.runners.values():
            runner.predictor.close()
        self.runners.clear()
        fp32 = _fastest(list(worth_timing(fp32_variants(*self.fp32s))), self.threads, self.feed, self.clock)
        self.fp32 = self.fp32s[Path(fp32[0]["model"])]
        contenders = {"fp32": fp32[1], "int8": self.runner(frozenset())}
        if left:
            contenders["optimised"] = self.runner(left)
        seconds = dict(zip(contenders, _measured(list(contenders.values()), limits).T, strict=True))
        ratios = {
            f"{slow}/{fast}": ratio_interval(seconds[slow], seconds[fast]) for slow, fast in combinations(contenders, 2)
        }
        return {
            "choice": _choice(ratios),
            "fp32_variant": {key: value for key, value in fp32[0].items() if key not in ("model", "precision")},
            "median_ms": {name: 1e3 * float(np.median(values)) for name, values in seconds.items()},
            "ratios": {name: dict(zip(("ratio", "low", "high"), found, strict=True)) for name, found in ratios.items()},
        }


def _choice(ratios: Mapping[str, tuple[float, float, float]]) -> str:
    """What is written, of "fp32", "int8" and "optimised", by the (ratio, low, high) of each two of them."""
    not_slower = [name for name in ("int8", "optimised") if f"fp32/{name}" in ratios and ratios[f"fp32/{name}"][0] >= 1]
    if len(not_slower) < 2:
        return not_slower[0] if not_slower else "fp32"
    return "optimised" if ratios["int8/optimised"][1] > 1 else "int8"


def _fastest(
    runs: Sequence[Mapping[str, Any]], threads: int, feed: Feed, clock: Clock
) -> tuple[Mapping[str, Any], Runner]:
    best: tuple[Mapping[str, Any], Runner] | None = None
    for run in runs:
        try:
            runner = Runner(Predictor(Path(run["model"]), settings_of(run, threads)), feed, clock)
        except UnsupportedError:  # not run by quant.runtime.direct.program; the others always can
            continue
        if best is None or runner.best < best[1].best:
            best, runner = (run, runner), best[1] if best else runner
        if runner is not best[1]:
            runner.predictor.close()
    assert best is not None
    return best


def optimise(
    graph: Graph,
    feed: Feed,
    *,
    budget_s: float,
    threads: int = 1,
    ops_to_quantize: Collection[str] = (),
    op_ids_to_skip: Collection[int] = (),
    own: Path | None = None,
) -> tuple[Graph, Coverage, Json]:
    """Convert a fake-quantized graph to what is fastest here: INT8, INT8 in parts, or FP32.

    `feed` is the batch to measure on, `own` the user's FP32 model, where that is known (quant.timing.baseline).
    Returns the
    graph, what was covered, and `decisions.json` but for what the caller knows. Raises ConversionError as `convert`
    does.
    """
    start = time.monotonic()
    limits = Limits(budget_s, lambda: time.monotonic() - start)
    with tempfile.TemporaryDirectory(prefix="quant-optimise-") as scratch:
        bench = _Bench(
            graph,
            feed,
            Path(scratch),
            own=own,
            threads=threads,
            ops_to_quantize=ops_to_quantize,
            op_ids_to_skip=op_ids_to_skip,
        )
        limits = replace(limits, reserved_s=max(_FINAL * budget_s, limits.clock()))
        kept, trials = search(lambda ids: bench.candidates(ids, limits), lambda a, b: bench.race(a, b, limits), limits)
        report = bench.final(kept, limits)
    if report["choice"] != "optimised":
        kept = frozenset()
    result, coverage = bench.converted(kept)
    if report["choice"] == "fp32":
        result, coverage = bench.fp32, _all_float(bench.ids)
    marked = (replace(entry, reason=LEFT) if entry.op_id in kept else entry for entry in coverage.kept)
    decisions = {
        "spent_s": limits.clock(),
        "left_in_fp32": [_cost(bench, chain) for chain in bench.units if bench.op_ids(chain) <= kept],
        "tried": [asdict(trial) for trial in trials],
        **report,
    }
    return result, replace(coverage, kept=tuple(marked)), decisions


def _cost(bench: _Bench, chain: Chain) -> Json:
    int8_ms, fp32_ms = bench.costs.of_chain(chain)
    about = {"op_id": bench.ids[chain.op], "op_type": chain.op.type, "output": chain.op.writes[0]}
    return {**about, "int8_ms": int8_ms, "fp32_ms": fp32_ms}


def _all_float(ids: Mapping[Op, int]) -> Coverage:
    kept = tuple(Kept(number, op.type, op.writes[0], NO_INT8) for op, number in ids.items())
    return Coverage(Counter(), Counter(op.type for op in ids), kept)
