"""Post-training quantization: an FP32 graph and calibration batches -> a fake-quantized graph.

What is rounded is decided in `quantization.plan`. What can't be written down in a Paddle program: a recurrent kernel
also
rounds its state from step to step, on the grid of its output.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.cpu import cores
from quant.datasets.columns import Column, values_of
from quant.errors import ConversionError, DataError, check_choice
from quant.ir.fusion import CONVS, Chain
from quant.ir.graph import Graph, Op, run_passes, save_dir
from quant.ir.numerics import SIGNED
from quant.ir.passes import CALIBRATE
from quant.ir.passes.quantizers import WEIGHT_SLOT
from quant.quantization.batch_memory import available
from quant.quantization.observers import ALGORITHMS, BEST, DEFAULT, Choice, Observer, Sample, choose
from quant.quantization.plan import Plan, plan_of, roundable, simulate
from quant.quantization.reasons import all_faults
from quant.runtime.predictor import Settings, nameless
from quant.runtime.reference import Reference

__all__ = ["Calibration", "calibrate"]

_COPIES = 4  # of the observed tensors, at the peak; measured: 3.4 to 3.6

Batches = Iterable[Mapping[str, Column]]
Samples = dict[str, list[tuple[Sample, int]]]  # tensor -> for each op that multiplies it a sample, and channels' axis
# Tensors of a group, its levels, and (tensor, output of the op that multiplies it).
_Observed = tuple[tuple[str, ...], int, tuple[tuple[str, str], ...]]


def calibrate(
    graph: Graph,
    batches: Batches,
    *,
    algo: str = DEFAULT,
    ops_to_quantize: Collection[str] = (),
    op_ids_to_skip: Collection[int] = (),
    weight_levels: int = SIGNED,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Graph:
    """The fake-quantized twin of `graph` (fake_quant ops, weights on their grid; see quant.ir.passes.quantizers).

    `batches` are input name -> array [N, ...] or Ragged; they are read once, one at a time. `weight_levels` is 127, or
    63 for CPUs without VNNI. `threads`: of a run; None: all that this process may use. `progress` is told the number of
    samples seen after each batch. With `algo` "best" every tensor gets the algorithm whose threshold costs its readers
    least (see quant.quantization.observers.choose); `fake_quant` ops then name it in their attribute `algorithm`.
    Raises OptionError for unknown names, DataError for NaN or Inf in a batch or an activation, or no batch at all,
    ConversionError when nothing can be quantised.
    """
    check_choice("calibration algorithm", algo, (*ALGORITHMS, BEST))
    seen = Calibration(
        graph,
        lambda: batches,
        algorithms=tuple(ALGORITHMS) if algo == BEST else (algo,),
        sampled=algo == BEST,
        ops_to_quantize=ops_to_quantize,
        weight_levels=weight_levels,
        threads=threads,
        progress=progress,
    )
    return seen.simulated(algo, op_ids_to_skip)


class Calibration:
    """A graph and its calibration batches: simulations with any of several algorithms, of any choice of ops.

    What was observed of a set of tensors that share a threshold is kept, so most simulations need no run of the model.
    `batches` gives all of them anew each time. `algorithms`: keys of ALGORITHMS; BEST too, of these, when `sampled`.
    `threads`: of a run; None: all that this process may use.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Callable[[], Batches],
        *,
        algorithms: Collection[str],
        sampled: bool,
        ops_to_quantize: Collection[str] = (),
        weight_levels: int = SIGNED,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.graph = run_passes(graph, CALIBRATE)
        self.batches, self.algorithms, self.sampled = batches, tuple(algorithms), sampled
        self.types, self.weight_levels, self.progress = ops_to_quantize, weight_levels, progress
        self.threads = threads or cores()
        self.seen: dict[_Observed, dict[str, Choice]] = {}
        self.costs: dict[tuple[str, str], float] = {}  # (output of an op, algorithm) -> error by rounding what it reads

    def simulated(
        self,
        algo: str,
        op_ids_to_skip: Collection[int] = (),
        tensors: Mapping[str, str] | None = None,
        *,
        nearly: bool = False,
    ) -> Graph:
        """The simulation by one algorithm, but for `tensors` (name -> its algorithm, and of all that share its grid).

        An op that is skipped can change which tensors share a threshold. `nearly` keeps the one they had with others,
        where that spares a run over the batches. Raises as `calibrate` does.
        """
        chains = roundable(self.graph, self.types, op_ids_to_skip, self.weight_levels)
        if not chains:
            why = all_faults(self.graph) or "the model has no convolution or product with a constant weight left"
            raise ConversionError(f"nothing to quantise: {why}")
        plan = plan_of(self.graph, chains)
        choices = self._choices(chains, plan, nearly)
        own = {plan.group[name]: other for name, other in (tensors or {}).items() if name in plan.group}
        chosen = {
            group: Choice("known", plan.known[group]) if group in plan.known else found[own.get(group, algo)]
            for group, found in choices.items()
        }
        return simulate(self.graph, chains, plan, chosen, self.weight_levels)

    def thresholds(self, op_ids_to_skip: Collection[int] = ()) -> dict[str, dict[str, Choice]]:
        """Tensor that ops multiply -> algorithm -> its threshold; without those that need no data."""
        chains = roundable(self.graph, self.types, op_ids_to_skip, self.weight_levels)
        plan = plan_of(self.graph, chains)
        choices = self._choices(chains, plan)
        read = dict.fromkeys(name for chain in chains.values() for name in chain.operands)
        return {name: choices[plan.group[name]] for name in read if plan.group[name] not in plan.known}

    def operands(self, op_ids_to_skip: Collection[int] = ()) -> dict[str, tuple[str, ...]]:
        """Output of each op that is rounded -> the tensors that it multiplies."""
        chains = roundable(self.graph, self.types, op_ids_to_skip, self.weight_levels)
        return {chain.op.writes[0]: chain.operands for chain in chains.values()}

    def _choices(self, chains: Mapping[Op, Chain], plan: Plan, nearly: bool = False) -> dict[str, dict[str, Choice]]:
        """Group -> algorithm -> threshold, from earlier runs or one over the batches."""
        members: dict[str, list[str]] = defaultdict(list)
        for name, group in plan.group.items():
            members[group].append(name)
        readers: dict[str, list[tuple[str, str]]] = defaultdict(list)  # group -> (tensor, output of what multiplies it)
        for chain in chains.values():
            for name in chain.operands:
                readers[plan.group[name]].append((name, chain.op.writes[0]))
        keys = {group: (tuple(names), plan.levels[group], tuple(readers[group])) for group, names in members.items()}
        if nearly:
            keys = {group: self._near(key) for group, key in keys.items()}
        left = {group for group, key in keys.items() if key not in self.seen}
        if left:
            part = replace(plan, group={name: group for name, group in plan.group.items() if group in left})
            observers = {
                group: {name: ALGORITHMS[name](plan.levels[group]) for name in self.algorithms} for group in left
            }
            samples = _samples(self.graph, chains.values(), plan) if self.sampled else {}
            samples = {name: found for name, found in samples.items() if name in part.group}
            _observe(self.graph, self.batches(), part, observers, samples, self.threads, self.progress)
            for group in left:
                seen = {name: observer.threshold() for name, observer in observers[group].items()}
                found = {name: Choice(name, threshold) for name, threshold in seen.items()}
                if self.sampled and group not in plan.known:
                    reading = {name: iter(taken) for name, taken in samples.items()}
                    read = [next(reading[name])[0] for name, _ in readers[group]]
                    found[BEST] = choose(seen, read, plan.levels[group])
                    self._note_costs(readers[group], read, found, plan.levels[group])
                self.seen[keys[group]] = found
        return {group: self.seen[key] for group, key in keys.items()}

    def _near(self, key: _Observed) -> _Observed:
        """What was seen of these tensors, or of these and others; the key itself when nothing was."""
        if key in self.seen:
            return key
        return next((seen for seen in self.seen if set(key[0]) <= set(seen[0])), key)

    def _note_costs(
        self, readers: Sequence[tuple[str, str]], samples: Sequence[Sample], found: Mapping[str, Choice], levels: int
    ) -> None:
        for (_, output), sample in zip(readers, samples, strict=True):
            for algo, choice in found.items():
                self.costs[output, algo] = max(
                    self.costs.get((output, algo), 0.0), sample.cost(choice.threshold, levels)
                )


def _samples(graph: Graph, chains: Iterable[Chain], plan: Plan) -> Samples:
    """A sample for each kernel that multiplies a tensor, of tensors whose threshold isn't known."""
    found: Samples = defaultdict(list)
    for chain in chains:
        for name in chain.operands:
            if plan.group[name] not in plan.known:
                found[name].append((Sample(_channel_energy(graph, chain)), 1 if chain.op.type in CONVS else -1))
    return found


def _channel_energy(graph: Graph, chain: Chain) -> NDArray[np.float64]:
    """How much an error in each channel of a chain's input weighs in its output: sum of squared weights, [channels].

    In a product of two activations, where either meets no weights, all channels weigh the same: [1].
    """
    if chain.other:
        return np.ones(1)
    weight = graph.params[chain.weight].astype(np.float64)
    if chain.op.type in WEIGHT_SLOT and WEIGHT_SLOT[chain.op.type][1] == 1:
        return np.asarray((weight**2).sum(1))
    groups = int(chain.op.attr("groups", 1) or 1)
    per_group = (weight**2).reshape(groups, -1, *weight.shape[1:]).sum((1, 3, 4))
    return np.asarray(per_group.reshape(-1))


def _observe(
    graph: Graph,
    batches: Batches,
    plan: Plan,
    observers: Mapping[str, Mapping[str, Observer]],
    samples: Samples,
    threads: int,
    progress: Callable[[int], None] | None,
) -> None:
    # Unfused, because a fused kernel may write over a tensor that is to be seen.
    fed = [name for name in plan.group if name in graph.feeds]
    inner = tuple(name for name in plan.group if name not in graph.feeds)
    seen = replace(graph, fetches=inner or graph.fetches)
    count, parts = 0, _Parts(graph)
    with tempfile.TemporaryDirectory(prefix="quant-calibrate-") as scratch:
        save_dir(seen, Path(scratch))
        settings = Settings(threads=threads)
        with nameless(Path(scratch)), Reference(Path(scratch), settings, unfused=True) as predictor:
            for number, batch in ((n, part) for n, whole in enumerate(batches) for part in parts.of(whole)):
                outputs = predictor(batch)
                parts.saw(outputs.values(), _samples_in(batch))
                named = {name: batch[name] for name in fed} | dict(zip(inner, outputs.values(), strict=bool(inner)))
                for name, column in named.items():
                    value = values_of(column)
                    if not np.isfinite(value).all():
                        where = "the data" if name in fed else f"activation {name!r}"
                        raise DataError(f"calibration batch {number}: NaN or Inf in {where}")
                    if plan.group[name] not in plan.known:
                        for observer in observers[plan.group[name]].values():
                            observer.update(value)
                    for sample, axis in samples.get(name, ()):
                        sample.update(np.moveaxis(value, axis, -1))
                count += _samples_in(batch)
                if progress:
                    progress(count)
    if not count:
        raise DataError("no calibration data: the reader gave no batch")


def _samples_in(batch: Mapping[str, Column]) -> int:
    return len(next(iter(batch.values())))


class _Parts:
    """Cuts batches: first one sample, then as many as half of the memory that is left holds.

    All observed tensors of a run are held at once, by Paddle and as arrays, and observers copy: several times `each`,
    the bytes of those of a sample, as seen so far. A batch stays whole where the model fixes its size, or where its
    columns aren't all of one length.
    """

    def __init__(self, graph: Graph) -> None:
        self.each = 0
        self.whole = any(graph.vars[name].shape[:1] not in ((), (-1,)) for name in graph.feeds)

    def of(self, batch: Mapping[str, Column]) -> Iterator[Mapping[str, Column]]:
        size, done = _samples_in(batch), 0
        if self.whole or {len(column) for column in batch.values()} != {size}:
            yield batch
            return
        while done < size:
            part = slice(done, min(done + self._most(size), size))
            yield {name: column[part] for name, column in batch.items()}
            done = part.stop

    def _most(self, size: int) -> int:
        if not self.each:
            return 1
        left = available()
        return size if left is None else max(left // 2 // (_COPIES * self.each), 1)

    def saw(self, values: Iterable[Column], samples: int) -> None:
        self.each = max(self.each, sum(values_of(value).nbytes for value in values) // samples)
