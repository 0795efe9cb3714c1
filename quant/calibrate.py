"""Post-training quantization: an FP32 graph and calibration batches -> a fake-quantized graph.

Only what the INT8 kernels will round is rounded here: the input of each quantised op, the other operand of an
addition that a convolution's kernel takes over, and what a recurrent layer gives out. Tensors joined by ops that only
carry values (max pooling, concat, reshape) share one threshold, so those ops can run on int8 without rounding
anything a second time. What can't be written down in a Paddle program: a recurrent kernel also rounds its state from
step to step, on the grid of its output.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quant.chains import CONVS, Chain, chains_of, chosen_ops, is_carrier
from quant.errors import ConversionError, DataError, check_choice
from quant.graph import Graph, Op, run_passes, save_dir
from quant.numerics import REDUCED, SIGNED, STATE_THRESHOLD, UNSIGNED, channel_thresholds, dequantise, quantise
from quant.observers import ALGORITHMS, BEST, Choice, Observer, Sample, choose
from quant.passes import NORMALISE
from quant.passes.quantizers import WEIGHT_SLOT, pack_state_weight, state_matrix
from quant.predictor import Predictor, Settings
from quant.readers import Ragged

__all__ = ["calibrate"]

Batches = Iterable[Mapping[str, NDArray[Any] | Ragged]]
Stored = Literal["u8", "s8", "mixed"]

_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "softmax", "hard_sigmoid")
_LOOKUPS = ("lookup_table", "lookup_table_v2")


def calibrate(
    graph: Graph,
    batches: Batches,
    *,
    algo: str = "avg",
    ops_to_quantize: Collection[str] = (),
    op_ids_to_skip: Collection[int] = (),
    weight_levels: int = SIGNED,
    progress: Callable[[int], None] | None = None,
) -> Graph:
    """The fake-quantized twin of `graph` (fake_quant ops, weights on their grid; see quant.passes.quantizers).

    `batches` are input name -> array [N, ...] or Ragged; they are read once, one at a time. `weight_levels` is 127, or
    63 for CPUs without VNNI. `progress` is told the number of samples seen after each batch. With `algo` "best" every
    tensor gets the algorithm whose threshold costs its readers least (see quant.observers.choose); `fake_quant` ops
    then name it in their attribute `algorithm`.
    Raises OptionError for unknown names, DataError for NaN or Inf in a batch or an activation, or no batch at all,
    ConversionError when nothing can be quantised.
    """
    check_choice("calibration algorithm", algo, (*ALGORITHMS, BEST))
    graph = run_passes(graph, NORMALISE)
    chains = chains_of(graph, chosen_ops(graph, ops_to_quantize, op_ids_to_skip))
    if weight_levels == REDUCED:
        # Both factors are activations there, stored with all 127 levels: pairs of products would saturate 16 bits.
        chains = {op: chain for op, chain in chains.items() if not chain.other}
    if not chains:
        raise ConversionError(
            "nothing to quantise: the model has no convolution or product with a constant weight left"
        )
    plan = _plan(graph, chains)
    names = tuple(ALGORITHMS) if algo == BEST else (algo,)
    groups = dict.fromkeys(plan.group.values())
    observers = {group: {name: ALGORITHMS[name](plan.levels[group]) for name in names} for group in groups}
    samples = {chain: Sample(_channel_energy(graph, chain)) for chain in chains.values()} if algo == BEST else {}
    _observe(graph, batches, plan, observers, samples, progress)
    chosen: dict[str, Choice] = {}
    for group in groups:
        seen = {name: observer.threshold() for name, observer in observers[group].items()}
        if group in plan.known:
            chosen[group] = Choice("known", plan.known[group])
        elif algo == BEST:
            read = [samples[chain] for chain in chains.values() if plan.group.get(chain.data) == group]
            chosen[group] = choose(seen, read, plan.levels[group])
        else:
            chosen[group] = Choice(algo, seen[algo])
    return _simulate(graph, chains, plan, chosen, weight_levels)


def _channel_energy(graph: Graph, chain: Chain) -> NDArray[np.float64]:
    """How much an error in each channel of a chain's input weighs in its output: sum of squared weights, [channels]."""
    if chain.other:
        return np.ones(1)
    weight = graph.params[chain.weight].astype(np.float64)
    if chain.op.type in WEIGHT_SLOT and WEIGHT_SLOT[chain.op.type][1] == 1:
        return np.asarray((weight**2).sum(1))
    groups = int(chain.op.attr("groups", 1) or 1)
    per_group = (weight**2).reshape(groups, -1, *weight.shape[1:]).sum((1, 3, 4))
    return np.asarray(per_group.reshape(-1))


@dataclass(frozen=True)
class _Plan:
    """What is to be rounded.

    `group`: tensor -> its group; `levels`: group -> levels; `residual`: chains whose residual is rounded too;
    `known`: group -> threshold, where no data is needed to tell it; `states`: outputs of recurrent layers.
    """

    group: Mapping[str, str]
    levels: Mapping[str, int]
    residual: Collection[Chain]
    known: Mapping[str, float]
    states: Collection[str]


def _plan(graph: Graph, chains: Mapping[Op, Chain]) -> _Plan:
    writers = graph.writers()
    ends = {chain.out: chain for chain in chains.values()}
    states = {chain.out for chain in chains.values() if chain.cell}
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def roots(name: str) -> list[str]:
        op = writers.get(name)
        if op is None or not is_carrier(op):
            return [name]
        found = [root for source in op.inputs["X"] for root in roots(source)]
        # A layer's state keeps the grid of its kernel; beside other tensors it is rounded once more, on theirs.
        return [name] if 0 < len(states.intersection(found)) < len(set(found)) else found

    def stored(name: str) -> Stored:
        """The type that kernels would store a tensor in."""
        kinds = {"u8" if never_negative(root) else "s8" for root in roots(name)}
        return "mixed" if len(kinds) > 1 else "u8" if kinds == {"u8"} else "s8"

    def half_range(root: str) -> bool:
        """A sum over a signed residual is stored signed, and only then read as unsigned: 127 levels at most."""
        chain = ends.get(root)
        return chain in residual and stored(chain.residual) == "s8"

    def never_negative(name: str) -> bool:
        """Whether a tensor is stored as uint8: by its kernel, or because no value of it can be negative."""
        op = writers.get(name)
        if op is None:
            return False
        if name in ends:
            return ends[name].stores_unsigned
        if op.type in _NEVER_NEGATIVE:
            return True
        return (is_carrier(op) or op.type == "pool2d") and all(never_negative(source) for source in op.inputs["X"])

    def full_range(name: str) -> bool:
        return stored(name) == "u8" and not any(half_range(root) for root in roots(name))

    # A kernel stores a sum in its residual's type, so an unsigned residual needs a sum that can't be negative.
    residual = {
        chain
        for chain in chains.values()
        if chain.residual
        and (stored(chain.residual) == "s8" or (stored(chain.residual) == "u8" and chain.stores_unsigned))
    }
    read = [name for chain in chains.values() for name in chain.operands]
    tensors = dict.fromkeys([*read, *(chain.residual for chain in chains.values() if chain in residual), *states])
    signed = {name for chain in chains.values() if chain.signed_operands for name in chain.operands} | states
    for name in tensors:
        first, *others = roots(name)
        for other in others:
            parent[find(other)] = find(first)
    group = {name: find(roots(name)[0]) for name in tensors}
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name, of in group.items():
        members[of].append(name)

    def grid_levels(names: Collection[str]) -> int:
        return UNSIGNED if signed.isdisjoint(names) and all(full_range(name) for name in names) else SIGNED

    levels = {of: grid_levels(names) for of, names in members.items()}
    known = {group[name]: STATE_THRESHOLD for name in states}
    for chain in chains.values():
        lookup = writers.get(chain.data)
        if chain.cell and lookup is not None and lookup.type in _LOOKUPS and lookup.input("W") in graph.params:
            known[group[chain.data]] = float(np.abs(graph.params[lookup.input("W")]).max())
    return _Plan(group, levels, residual, known, states)


def _observe(
    graph: Graph,
    batches: Batches,
    plan: _Plan,
    observers: Mapping[str, Mapping[str, Observer]],
    samples: Mapping[Chain, Sample],
    progress: Callable[[int], None] | None,
) -> None:
    # Unfused, because a fused kernel may write over a tensor that is to be seen; each op on its oneDNN kernel still.
    fed = [name for name in plan.group if name in graph.feeds]
    seen_ops = tuple(
        op.with_attrs(use_mkldnn=True) if op.type in WEIGHT_SLOT or op.type == "relu" else op for op in graph.ops
    )
    seen = replace(graph, ops=seen_ops, fetches=tuple(name for name in plan.group if name not in graph.feeds))
    count = 0
    readers_of = defaultdict(list)
    for chain, sample in samples.items():
        readers_of[chain.data].append((sample, chain.op.type in CONVS))
    with tempfile.TemporaryDirectory(prefix="quant-calibrate-") as scratch:
        save_dir(seen, Path(scratch))
        with Predictor(Path(scratch), Settings(optimise=False, threads=2)) as predictor:
            for number, batch in enumerate(batches):
                outputs = predictor(batch)
                named = {name: batch[name] for name in fed} | dict(zip(seen.fetches, outputs.values(), strict=True))
                for name, column in named.items():
                    value = column.values if isinstance(column, Ragged) else np.asarray(column)
                    if not np.isfinite(value).all():
                        where = "the data" if name in fed else f"activation {name!r}"
                        raise DataError(f"calibration batch {number}: NaN or Inf in {where}")
                    if plan.group[name] not in plan.known:
                        for observer in observers[plan.group[name]].values():
                            observer.update(value)
                    for sample, channels_second in readers_of[name]:
                        sample.update(np.moveaxis(value, 1, -1) if channels_second else value)
                count += len(next(iter(batch.values())))
                if progress:
                    progress(count)
    if not count:
        raise DataError("no calibration data: the reader gave no batch")


def _simulate(
    graph: Graph, chains: Mapping[Op, Chain], plan: _Plan, chosen: Mapping[str, Choice], weight_levels: int
) -> Graph:
    rounded = {name: graph.fresh(f"{name}.quantized") for name in plan.group}
    params = dict(graph.params)
    swap: dict[Op, Op] = {}

    def threshold(name: str) -> float:
        # A tensor that was always zero keeps any grid; 1 is harmless.
        return float(chosen[plan.group[name]].threshold or 1.0)

    def onto_grid(matrix: NDArray[Any], peaks: NDArray[Any], axis: int) -> NDArray[np.float32]:
        return dequantise(quantise(matrix, peaks, weight_levels, axis), peaks, weight_levels, axis)

    def weight_attrs(peaks: NDArray[Any]) -> dict[str, Any]:
        return {"weight_thresholds": [float(peak) for peak in peaks], "weight_levels": weight_levels}

    for op, chain in chains.items():
        renamed = op.rewired({name: rounded[name] for name in chain.operands})
        if chain.weight:
            axis = WEIGHT_SLOT[op.type][1]
            peaks = channel_thresholds(graph.params[chain.weight], axis)
            if chain.cell:  # one scale a channel for both weights, the input's in units of its threshold
                cell, state = chain.cell, state_matrix(chain.cell, graph.params[chain.state_weight])
                peaks = np.maximum(peaks * threshold(chain.data) / STATE_THRESHOLD, channel_thresholds(state, 1))
                name = graph.fresh(f"{chain.state_weight}.grid")
                params[name] = pack_state_weight(cell, onto_grid(state, peaks, 1))
                swap[cell] = cell.rewired({chain.state_weight: name}).with_attrs(**weight_attrs(peaks))
                peaks = peaks * STATE_THRESHOLD / threshold(chain.data)
            name = graph.fresh(f"{chain.weight}.grid")
            params[name] = onto_grid(graph.params[chain.weight], peaks, axis)
            renamed = renamed.rewired({chain.weight: name}).with_attrs(**weight_attrs(peaks))
        swap[op] = renamed
        if chain in plan.residual:
            add = next(link for link in chain.ops[1:] if chain.residual in link.reads)
            swap[add] = add.rewired({chain.residual: rounded[chain.residual]})

    def quantiser(name: str) -> Op:
        choice = chosen[plan.group[name]]
        attrs = {"threshold": threshold(name), "levels": plan.levels[plan.group[name]], "algorithm": choice.algorithm}
        return Op.make("fake_quant", {"X": name}, {"Out": rounded[name]}, **attrs)

    ops = [quantiser(name) for name in rounded if name in graph.feeds]
    for op in graph.ops:
        ops.append(swap.get(op, op).rewired({name: rounded[name] for name in plan.states if name in op.reads}))
        ops.extend(quantiser(name) for name in op.writes if name in rounded)
    described = {new: graph.vars[old] for old, new in rounded.items()}
    return graph.evolve(ops, described, params)
