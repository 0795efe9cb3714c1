"""Move fake quantisation above ops that only carry values, so that those ops can run on int8.

    fake_quant(max_pool(x)) = max_pool(fake_quant(x))
    fake_quant(concat(x, y)) = concat(fake_quant(x), fake_quant(y))
    fake_quant of each part of split(x) = split(fake_quant(x))

Exact, because rounding to one grid is monotone and acts on each value by itself.
"""

from quant.ir.fusion import is_move
from quant.ir.graph import Graph, Op, Var

__all__ = ["hoist_quantizers"]


def hoist_quantizers(graph: Graph) -> Graph:
    """Hoist until nothing moves, then let equal quantisers of one tensor share one.

    Not touched: a carrying op with a reader that wants an unrounded value, a fetched output, or readers that round to
    different grids.
    """
    start = graph
    while (hoisted := _hoist_once(graph)) is not graph:
        graph = hoisted
    merged = _merge_equal(graph)
    return start if merged is start else merged


def _hoist_once(graph: Graph) -> Graph:
    readers, fresh = graph.readers(), graph.names().fresh
    for op in graph.ops:
        if not is_move(op):
            continue
        outs = op.outputs["Out"]
        found = [reader for out in outs for reader in readers.get(out, [])]
        if not found or set(outs).intersection(graph.fetches):
            continue
        if any(reader.type != "fake_quant" or _grid(reader) != _grid(found[0]) for reader in found):
            continue
        names = {reader.output("Out"): reader.input("X") for reader in found}
        if set(names).intersection(graph.fetches):
            continue
        vars: dict[str, Var] = {}
        above, renamed = [], {}
        for name in dict.fromkeys(op.inputs["X"]):
            renamed[name] = fresh(f"{name}.above.{outs[0]}")
            vars[renamed[name]] = graph.vars[name]
            above.append(Op("fake_quant", {"X": (name,)}, {"Out": (renamed[name],)}, found[0].attrs))
        swap = {op: (*above, op.rewired(renamed)), **dict.fromkeys(found, ())}
        return graph.evolve((new.rewired(names) for old in graph.ops for new in swap.get(old, (old,))), vars)
    return graph


def _grid(op: Op) -> tuple[float, int]:
    return op.attr("threshold"), op.attr("levels")


def _merge_equal(graph: Graph) -> Graph:
    first: dict[tuple[str, float, int], str] = {}
    names: dict[str, str] = {}
    ops = []
    for op in graph.ops:
        op = op.rewired(names)
        if op.type == "fake_quant" and op.output("Out") not in graph.fetches:
            key = (op.input("X"), *_grid(op))
            if key in first:
                names[op.output("Out")] = first[key]
                continue
            first[key] = op.output("Out")
        ops.append(op)
    return graph.evolve(ops) if names else graph
