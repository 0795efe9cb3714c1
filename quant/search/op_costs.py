"""What single ops of a loaded model cost, and models on an input that can be timed, for quant.search.for_speed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quant.datasets.columns import Column
from quant.diagnosis.pairing import stem
from quant.errors import UnsupportedError
from quant.ir.fusion import Chain
from quant.ir.graph import Graph, Op
from quant.ir.int8_regions import int8_op
from quant.runtime.predictor import Predictor, Settings

__all__ = ["Clock", "Costs", "Feed", "Runner", "both_times", "op_times"]

Feed = Mapping[str, Column]
Clock = Callable[[], float]

_TURN_S = 0.03  # how long a model's turn lasts, so that quick ones get several runs
_LONG_S = 0.1  # a run that takes longer doesn't feel what the other model left in the caches
_WATCHED = 15  # runs that single ops' times come from


class Runner:
    """A loaded model on its input."""

    def __init__(self, predictor: Predictor, feed: Feed, clock: Clock) -> None:
        self.predictor, self.fed, self.clock = predictor, feed, clock
        predictor.feed(feed)
        predictor.run()  # builds the kernels
        self.best = min(self.run() for _ in range(3))

    def run(self) -> float:
        start = self.clock()
        self.predictor.run()
        return self.clock() - start

    def turn(self) -> float:
        """Seconds of a run: the median of a few in a row, after one that isn't timed."""
        self.predictor.feed(self.fed)
        if self.best < _LONG_S:
            self.predictor.run()
        return float(np.median([self.run() for _ in range(int(np.clip(_TURN_S / self.best, 1, 10)))]))


@dataclass(frozen=True)
class Costs:
    """Milliseconds of single ops, by the variable that they write, from a run in INT8 and one in FP32.

    `names`: the variables of the placed graph, which both programs' names begin with.
    """

    names: Collection[str]
    int8: Mapping[str, float]  # written by INT8 ops
    border: Mapping[str, float]  # by quantize and dequantize ops
    fp32: Mapping[str, float]  # by all others, in FP32 or else in the INT8 program
    per_border: tuple[float, float]  # ms of a quantize op that was never seen: per element, and in any case

    @staticmethod
    def of(
        names: Collection[str], converted: Graph, int8_ms: Mapping[str, float], fp32_ms: Mapping[str, float]
    ) -> "Costs":
        """From what runs of the converted graph and of FP32 took, variable -> ms."""
        by_name = {name: op for op in converted.ops for name in op.writes}
        kinds: dict[str, dict[str, float]] = {"int8": {}, "border": {}, "float": {}}
        sizes, times = [], []
        for name, ms in int8_ms.items():
            op = by_name.get(name)
            kind = "float" if op is None else _kind(op)
            key = stem(name, names) if op is None else _key(op, name, names)
            kinds[kind][key] = kinds[kind].get(key, 0.0) + ms
            if kind == "border":
                sizes.append(_elements(converted, name))
                times.append(ms)
        slope, start = np.polyfit(sizes, times, 1) if len(set(sizes)) > 1 else (0.0, float(np.mean(times or [0.0])))
        return Costs(names, kinds["int8"], kinds["border"], {**kinds["float"], **fp32_ms}, (float(slope), float(start)))

    def predicted_ms(self, graph: Graph) -> float:
        """What the ops of a converted graph take together. Ops that both programs fused away count nothing."""
        total = 0.0
        written: dict[str, list[str]] = {"int8": [], "float": []}  # several ops may write forms of one tensor
        for op in graph.ops:
            kind = _kind(op)
            for key, name in {_key(op, name, self.names): name for name in reversed(op.writes)}.items():
                if kind in written:
                    written[kind].append(key)
                elif key in self.border:
                    total += self.border[key]
                else:
                    total += max(self.per_border[0] * _elements(graph, name) + self.per_border[1], 0.0)
        total += sum(self.int8.get(key, 0.0) for key in dict.fromkeys(written["int8"]))
        return total + sum(self.fp32.get(key, 0.0) for key in dict.fromkeys(written["float"]))

    def of_chain(self, chain: Chain) -> tuple[float, float | None]:
        """(INT8, FP32) ms of a chain alone; None when no op was seen that wrote one of its variables."""
        written = {name for op in chain.ops for name in op.writes}
        fp32 = [self.fp32[name] for name in written if name in self.fp32]
        return sum(self.int8.get(name, 0.0) for name in written), sum(fp32) if fp32 else None


def _key(op: Op, name: str, names: Collection[str]) -> str:
    """The tensor of the placed graph that an op's output is a form of; of scratch memory, what it is scratch for."""
    return next(filter(None, (stem(written, names) for written in (name, *op.writes))), name)


def _kind(op: Op) -> str:
    return "border" if op.type in ("quantize", "dequantize") else "int8" if int8_op(op) else "float"


def _elements(graph: Graph, name: str) -> int:
    """Elements of a sample: open dimensions count once, which is the same for all tensors that hold a batch."""
    return int(np.prod([max(size, 1) for size in graph.vars[name].shape])) if name in graph.vars else 1


def op_times(predictor: Predictor, feed: Feed, clock: Clock) -> dict[str, float]:
    """Variable -> ms until it is written since the one before it, kernels and dispatch, median of some runs.

    Watching itself takes some microseconds an op: what the sum is above the time of a run is taken off evenly.
    """
    runner = Runner(predictor, feed, clock)
    whole = float(np.median([runner.run() for _ in range(_WATCHED)]))
    seen: list[tuple[str, float]] = []
    predictor.watch(lambda type, variable: seen.append((variable, clock())))
    predictor.run()
    taken = []
    for _ in range(_WATCHED):
        seen.clear()
        start = clock()
        predictor.run()
        moments = [start, *(moment for _, moment in seen)]
        taken.append(np.diff(moments))
    each = np.median(np.array(taken), axis=0)
    each = np.maximum(each - max(each.sum() - whole, 0.0) / len(each), 0.0)
    times: dict[str, float] = {}
    for (name, _), seconds in zip(seen, each, strict=True):
        times[name] = times.get(name, 0.0) + 1e3 * float(seconds)
    return times


def both_times(
    int8: Path, fp32: Path, feed: Feed, threads: int, clock: Clock
) -> tuple[dict[str, float], dict[str, float]]:
    """`op_times` of a converted model, and of the same in FP32 on the executor that the converted one gets.

    What is left in FP32 will run there. Where that executor can't run all of it in FP32, it is Paddle's.
    """
    with Predictor(int8, Settings("int8", threads)) as predictor:
        int8_ms = op_times(predictor, feed, clock)
        executor = predictor.executor
    try:
        with Predictor(fp32, Settings("fp32", threads, executor=executor)) as predictor:
            return int8_ms, op_times(predictor, feed, clock)
    except UnsupportedError:
        with Predictor(fp32, Settings("fp32", threads)) as predictor:
            return int8_ms, op_times(predictor, feed, clock)
