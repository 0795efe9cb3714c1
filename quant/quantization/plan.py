"""What is rounded, and what shares a threshold: the rules that calibration and quantization-aware training share.

Only what the INT8 kernels will round: the input of each quantised op, the other operand of an addition that a
convolution's kernel takes over, and what a recurrent layer gives out. Tensors joined by ops that only carry values
(max pooling, concat, reshape) share one threshold, so those ops can run on int8 without rounding anything a second
time.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quant.ir.fusion import LOOKUPS, Chain, chains_of, chosen_ops, is_carrier, pack_state_weight, state_matrix
from quant.ir.graph import Graph, Op
from quant.ir.numerics import REDUCED, SIGNED, STATE_THRESHOLD, TABLE, UNSIGNED, dequantise, quantise
from quant.ir.passes.quantizers import WEIGHT_SLOT, peaks_of
from quant.quantization.observers import Choice

__all__ = ["Plan", "plan_of", "roundable", "simulate"]

Stored = Literal["u8", "s8", "mixed"]

_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "softmax", "hard_sigmoid")


@dataclass(frozen=True)
class Plan:
    """What is to be rounded.

    `group`: tensor -> its group; `levels`: group -> levels; `residual`: chains whose residual is rounded too;
    `known`: group -> threshold, where no data is needed to tell it; `states`: outputs of recurrent layers.
    """

    group: Mapping[str, str]
    levels: Mapping[str, int]
    residual: Collection[Chain]
    known: Mapping[str, float]
    states: Collection[str]


def roundable(
    graph: Graph, ops_to_quantize: Collection[str], op_ids_to_skip: Collection[int], weight_levels: int
) -> dict[Op, Chain]:
    """Weighted op of a normalised graph -> its chain, for what a user's choice leaves to be quantised.

    Raises OptionError for unknown op types or ids.
    """
    chains = chains_of(graph, chosen_ops(graph, ops_to_quantize, op_ids_to_skip))
    if weight_levels == REDUCED:
        # Both factors are activations there, stored with all 127 levels: pairs of products would saturate 16 bits.
        chains = {op: chain for op, chain in chains.items() if not chain.other}
    return chains


class ScaleGroups:
    """Sets of tensors that share a scale: a union-find. A set is named after one of its tensors."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The set that a tensor is in; its own until it is joined."""
        while (parent := self._parent.setdefault(name, name)) != name:
            name = parent
        return name

    def join(self, first: str, other: str) -> None:
        self._parent[self.of(other)] = self.of(first)


class Storage:
    """In which integers the kernels of `chains` would store each tensor of a graph.

    R1. An op that only carries values (`is_carrier`) rounds nothing: what it writes has the scale of what it reads, so
        all tensors behind its roots share one.
    R2. What a recurrent layer gives out keeps the grid of its state. Joined with other tensors it is rounded once more,
        on theirs: there the carrier's output is a root of its own.
    R3. What a kernel stores as uint8, or can't be negative by its op, has 255 levels; all else is int8 and has 127.
    R4. A kernel adds its residual as the integers that lie in its destination. So the residual is rounded, too; an
        unsigned one only where the sum can't be negative, because the sum is stored in the residual's type.
    R5. A sum over a signed residual is stored as int8, and only then read as uint8: it has 127 levels.
    R6. Both factors of a product of two activations, and what a recurrent layer reads and gives out, are signed.
    """

    def __init__(self, graph: Graph, chains: Mapping[Op, Chain]) -> None:
        self._writers = graph.writers()
        self._ends = {chain.out: chain for chain in chains.values()}
        self.states = {chain.out for chain in chains.values() if chain.cell}
        self.residual = {chain for chain in chains.values() if chain.residual and self._adds_integers(chain)}
        self._signed = {name for chain in chains.values() if chain.signed_operands for name in chain.operands}

    def roots(self, name: str) -> list[str]:
        """Where the values of a tensor were computed (R1, R2)."""
        op = self._writers.get(name)
        if op is None or not is_carrier(op):
            return [name]
        found = [root for source in op.inputs["X"] for root in self.roots(source)]
        return [name] if 0 < len(self.states.intersection(found)) < len(set(found)) else found

    def kind(self, name: str) -> Stored:
        """The type that kernels would store a tensor in (R3)."""
        kinds = {"u8" if self._never_negative(root) else "s8" for root in self.roots(name)}
        return "mixed" if len(kinds) > 1 else "u8" if kinds == {"u8"} else "s8"

    def levels(self, names: Collection[str]) -> int:
        """Levels of tensors that share a scale (R3, R5, R6)."""
        return UNSIGNED if all(self._full_range(name) for name in names) else SIGNED

    def _never_negative(self, name: str) -> bool:
        op = self._writers.get(name)
        if op is None:
            return False
        if name in self._ends:
            return self._ends[name].stores_unsigned
        if op.type in _NEVER_NEGATIVE:
            return True
        return (is_carrier(op) or op.type == "pool2d") and all(map(self._never_negative, op.inputs["X"]))

    def _adds_integers(self, chain: Chain) -> bool:
        kind = self.kind(chain.residual)
        return kind == "s8" or (kind == "u8" and chain.stores_unsigned)

    def _full_range(self, name: str) -> bool:
        if name in self._signed or name in self.states or self.kind(name) != "u8":
            return False
        sums = [self._ends[root] for root in self.roots(name) if root in self._ends]
        return not any(chain in self.residual and self.kind(chain.residual) == "s8" for chain in sums)


def plan_of(graph: Graph, chains: Mapping[Op, Chain]) -> Plan:
    """What the kernels of `chains` will round, by the rules of `Storage`."""
    storage = Storage(graph, chains)
    read = [name for chain in chains.values() for name in chain.operands]
    added = [chain.residual for chain in chains.values() if chain in storage.residual]
    tensors = dict.fromkeys([*read, *added, *storage.states])
    groups = ScaleGroups()
    for name in tensors:
        first, *others = storage.roots(name)
        for other in others:
            groups.join(first, other)
    group = {name: groups.of(storage.roots(name)[0]) for name in tensors}
    members: defaultdict[str, list[str]] = defaultdict(list)
    tables: defaultdict[str, set[str]] = defaultdict(set)
    for name, of in group.items():
        members[of].append(name)
        tables[of].update(_looked_up(graph, root) for root in storage.roots(name))
    levels = {of: storage.levels(names) for of, names in members.items()}
    known = {group[name]: STATE_THRESHOLD for name in storage.states}
    for chain in chains.values():
        if chain.cell and _looked_up(graph, chain.data) and "" not in tables[group[chain.data]]:
            known[group[chain.data]] = max(_reach(table, graph.params[table]) for table in tables[group[chain.data]])
    return Plan(group, levels, storage.residual, known, storage.states)


def _reach(name: str, table: NDArray[Any]) -> float:
    """The largest magnitude in a table. Raises ModelError where it isn't finite."""
    peaks_of(name, table, 1)
    return float(np.abs(table).max())


def _looked_up(graph: Graph, name: str) -> str:
    """The constant table whose rows a tensor holds, or ""."""
    lookup = graph.writers().get(name)
    table = lookup.input("W") if lookup is not None and lookup.type in LOOKUPS else ""
    return table if table in graph.params else ""


def simulate(
    graph: Graph,
    chains: Mapping[Op, Chain],
    plan: Plan,
    chosen: Mapping[str, Choice],
    weight_levels: int,
) -> Graph:
    """Write `plan` into a graph: fake_quant ops, weights on their grid. `chosen`: group -> threshold.

    Embedding tables are rounded to 16 bits, as which INT8 models store them; what else reads them reads a copy that
    isn't rounded.
    """
    names = graph.names()
    rounded = {name: names.fresh(f"{name}.quantized") for name in plan.group}
    swap: dict[Op, Op] = {}

    def threshold(name: str) -> float:
        # As programs and tables of thresholds store it. A tensor that was always zero keeps any grid; 1 is harmless.
        return float(np.float32(chosen[plan.group[name]].threshold)) or 1.0

    def onto_grid(matrix: NDArray[Any], peaks: NDArray[Any], axis: int) -> NDArray[np.float32]:
        return dequantise(quantise(matrix, peaks, weight_levels, axis), peaks, weight_levels, axis)

    def weight_attrs(peaks: NDArray[Any]) -> dict[str, Any]:
        return {"weight_thresholds": [float(peak) for peak in peaks], "weight_levels": weight_levels}

    for op, chain in chains.items():
        renamed = op.rewired({name: rounded[name] for name in chain.operands})
        if chain.weight:
            axis = WEIGHT_SLOT[op.type][1]
            own = op.attr("weight_thresholds")  # where a training has settled them
            peaks = np.array(own, np.float64) if own else peaks_of(chain.weight, graph.params[chain.weight], axis)
            if chain.cell:  # one scale a channel for both weights, the input's in units of its threshold
                cell, state = chain.cell, state_matrix(chain.cell, graph.params[chain.state_weight])
                states = peaks_of(chain.state_weight, state, 1)
                peaks = np.maximum(peaks * threshold(chain.data) / STATE_THRESHOLD, states)
                packed = pack_state_weight(cell, onto_grid(state, peaks, 1))
                name = names.param(f"{chain.state_weight}.grid", packed)
                swap[cell] = cell.rewired({chain.state_weight: name}).with_attrs(**weight_attrs(peaks))
                peaks = peaks * STATE_THRESHOLD / threshold(chain.data)
            name = names.param(f"{chain.weight}.grid", onto_grid(graph.params[chain.weight], peaks, axis))
            renamed = renamed.rewired({chain.weight: name}).with_attrs(**weight_attrs(peaks))
        swap[op] = renamed
        if chain in plan.residual:
            add = next(link for link in chain.ops[1:] if chain.residual in link.reads)
            swap[add] = add.rewired({chain.residual: rounded[chain.residual]})

    def quantiser(name: str) -> Op:
        choice = chosen[plan.group[name]]
        attrs = {"threshold": threshold(name), "levels": plan.levels[plan.group[name]], "algorithm": choice.algorithm}
        return Op.make("fake_quant", {"X": name}, {"Out": rounded[name]}, **attrs)

    tables = _rounded_tables(graph)
    exact = {name: names.param(f"{name}.exact", graph.params[name]) for name in tables}
    ops = [quantiser(name) for name in rounded if name in graph.feeds]
    for op in graph.ops:
        own_grid = {name: rounded[name] for name in plan.states if name in op.reads}
        ops.append(swap.get(op, op).rewired(own_grid if op.type in LOOKUPS else exact | own_grid))
        ops.extend(quantiser(name) for name in op.writes if name in rounded)
    described = {new: graph.vars[old] for old, new in rounded.items()}
    return replace(graph, params={**graph.params, **tables}).evolve(ops, described, names.params)


def _rounded_tables(graph: Graph) -> dict[str, NDArray[np.float32]]:
    """The embedding tables on a 16-bit grid, one step a column."""
    names = {op.input("W") for op in graph.ops if op.type in LOOKUPS}
    tables = {name: graph.params[name] for name in names if name in graph.params}
    peaks = {name: peaks_of(name, table, 1) for name, table in tables.items()}
    return {
        name: dequantise(quantise(table, peaks[name], TABLE, 1), peaks[name], TABLE, 1)
        for name, table in tables.items()
    }
