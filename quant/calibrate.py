"""Post-training quantization: an FP32 graph and calibration batches -> a fake-quantized graph.

Only what the INT8 kernels will round is rounded here: the input of each quantised op, and the other operand of an
addition that a convolution's kernel takes over. Tensors joined by ops that only carry values (max pooling, concat,
reshape) share one threshold, so those ops can run on int8 without rounding anything a second time.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quant.chains import Chain, chains_of, chosen_ops, is_move
from quant.errors import ConversionError, DataError, check_choice
from quant.graph import Graph, Op, run_passes, save_dir
from quant.numerics import SIGNED, UNSIGNED, channel_thresholds, dequantise, quantise
from quant.observers import ALGORITHMS, Observer
from quant.passes import NORMALISE
from quant.passes.quantizers import WEIGHT_SLOT
from quant.predictor import Predictor, Settings

__all__ = ["calibrate"]

Batches = Iterable[Mapping[str, NDArray[Any]]]
Stored = Literal["u8", "s8", "mixed"]

_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "softmax", "hard_sigmoid")


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

    `batches` are input name -> array [N, ...]; they are read once, one at a time. `weight_levels` is 127, or 63 for
    CPUs without VNNI. `progress` is told the number of samples seen after each batch.
    Raises OptionError for unknown names, DataError for NaN or Inf in a batch or an activation, or no batch at all,
    ConversionError when nothing can be quantised.
    """
    check_choice("calibration algorithm", algo, ALGORITHMS)
    graph = run_passes(graph, NORMALISE)
    chains = chains_of(graph, chosen_ops(graph, ops_to_quantize, op_ids_to_skip))
    if not chains:
        raise ConversionError(
            "nothing to quantise: the model has no convolution or product with a constant weight left"
        )
    plan = _plan(graph, chains)
    observers = {group: ALGORITHMS[algo](plan.levels[group]) for group in set(plan.group.values())}
    _observe(graph, batches, plan, observers, progress)
    thresholds = {name: observers[group].threshold() for name, group in plan.group.items()}
    return _simulate(graph, chains, plan, thresholds, weight_levels)


@dataclass(frozen=True)
class _Plan:
    """`group`: tensor to quantise -> its group; `levels`: group -> levels; `residual`: chains whose residual is too."""

    group: Mapping[str, str]
    levels: Mapping[str, int]
    residual: Collection[Chain]


def _plan(graph: Graph, chains: Mapping[Op, Chain]) -> _Plan:
    writers = graph.writers()
    ends = {chain.out: chain for chain in chains.values()}
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def roots(name: str) -> list[str]:
        op = writers.get(name)
        return [root for source in op.inputs["X"] for root in roots(source)] if op and is_move(op) else [name]

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
        return (is_move(op) or op.type == "pool2d") and all(never_negative(source) for source in op.inputs["X"])

    def full_range(name: str) -> bool:
        return stored(name) == "u8" and not any(half_range(root) for root in roots(name))

    # A kernel stores a sum in its residual's type, so an unsigned residual needs a sum that can't be negative.
    residual = {
        chain
        for chain in chains.values()
        if chain.residual
        and (stored(chain.residual) == "s8" or (stored(chain.residual) == "u8" and chain.stores_unsigned))
    }
    tensors = dict.fromkeys([chain.data for chain in chains.values()] + [chain.residual for chain in residual])
    for name in tensors:
        first, *others = roots(name)
        for other in others:
            parent[find(other)] = find(first)
    group = {name: find(roots(name)[0]) for name in tensors}
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name, of in group.items():
        members[of].append(name)
    levels = {of: UNSIGNED if all(full_range(name) for name in names) else SIGNED for of, names in members.items()}
    return _Plan(group, levels, residual)


def _observe(
    graph: Graph,
    batches: Batches,
    plan: _Plan,
    observers: Mapping[str, Observer],
    progress: Callable[[int], None] | None,
) -> None:
    # Unfused, because a fused kernel may write over a tensor that is to be seen; each op on its oneDNN kernel still.
    fed = [name for name in plan.group if name in graph.feeds]
    seen_ops = tuple(
        op.with_attrs(use_mkldnn=True) if op.type in WEIGHT_SLOT or op.type == "relu" else op for op in graph.ops
    )
    seen = replace(graph, ops=seen_ops, fetches=tuple(name for name in plan.group if name not in graph.feeds))
    samples = 0
    with tempfile.TemporaryDirectory(prefix="quant-calibrate-") as scratch:
        save_dir(seen, Path(scratch))
        with Predictor(Path(scratch), Settings(optimise=False, threads=2)) as predictor:
            for number, batch in enumerate(batches):
                outputs = predictor(batch)
                named = {name: batch[name] for name in fed} | dict(zip(seen.fetches, outputs.values(), strict=True))
                for name, value in named.items():
                    if not np.isfinite(value).all():
                        where = "the data" if name in fed else f"activation {name!r}"
                        raise DataError(f"calibration batch {number}: NaN or Inf in {where}")
                    observers[plan.group[name]].update(value)
                samples += len(next(iter(batch.values())))
                if progress:
                    progress(samples)
    if not samples:
        raise DataError("no calibration data: the reader gave no batch")


def _simulate(
    graph: Graph, chains: Mapping[Op, Chain], plan: _Plan, thresholds: Mapping[str, float], weight_levels: int
) -> Graph:
    rounded = {name: graph.fresh(f"{name}.quantized") for name in plan.group}
    params = dict(graph.params)
    swap: dict[Op, Op] = {}
    for op, chain in chains.items():
        axis = WEIGHT_SLOT[op.type][1]
        peaks = channel_thresholds(params[chain.weight], axis)
        on_grid = graph.fresh(f"{chain.weight}.grid")
        integers = quantise(graph.params[chain.weight], peaks, weight_levels, axis)
        params[on_grid] = dequantise(integers, peaks, weight_levels, axis)
        renamed = op.rewired({chain.data: rounded[chain.data], chain.weight: on_grid})
        swap[op] = renamed.with_attrs(weight_thresholds=[float(peak) for peak in peaks], weight_levels=weight_levels)
        if chain in plan.residual:
            add = next(link for link in chain.ops[1:] if chain.residual in link.reads)
            swap[add] = add.rewired({chain.residual: rounded[chain.residual]})

    def quantiser(name: str) -> Op:
        # A tensor that was always zero keeps any grid; 1 is harmless.
        threshold = thresholds[name] or 1.0
        attrs = {"threshold": float(threshold), "levels": plan.levels[plan.group[name]]}
        return Op.make("fake_quant", {"X": name}, {"Out": rounded[name]}, **attrs)

    ops = [quantiser(name) for name in rounded if name in graph.feeds]
    for op in graph.ops:
        ops.append(swap.get(op, op))
        ops.extend(quantiser(name) for name in op.writes if name in rounded)
    described = {new: graph.vars[old] for old, new in rounded.items()}
    return graph.evolve(ops, described, params)
