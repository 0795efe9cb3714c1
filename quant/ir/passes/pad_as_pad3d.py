"""Write `pad` as `pad3d`, whose oneDNN kernel is sound.

The oneDNN kernel of `pad` corrupts the heap in Paddle 2.6 to 3.3 (see quant.runtime.predictor.BROKEN_ONEDNN), and an op
can't carry a "not on oneDNN" mark through a predictor's own passes. A model that is to run under a plain
configuration must therefore not contain the op at all.
"""

from quant.ir.graph import Graph, Op, Var

__all__ = ["pad_as_pad3d"]


def pad_as_pad3d(graph: Graph) -> Graph:
    """pad of [N, C, H, W] becomes unsqueeze2 -> pad3d -> squeeze2 over [N, 1, C, H, W].

    Not touched: other ranks, padding of the batch dimension, paddings that come from a tensor.
    """
    ops: list[Op] = []
    vars: dict[str, Var] = {}
    fresh = graph.names().fresh
    for op in graph.ops:
        paddings = op.attr("paddings", [])
        if op.type != "pad" or len(paddings) != 8 or any(paddings[:2]) or op.inputs.get("PaddingsTensor"):
            ops.append(op)
            continue
        source, target = op.input("X"), op.output("Out")
        before, after = graph.vars[source], graph.vars[target]
        wide, padded = fresh(f"{target}.wide"), fresh(f"{target}.padded")
        vars[wide] = before._replace(shape=(before.shape[0], 1, *before.shape[1:]))
        vars[padded] = after._replace(shape=(after.shape[0], 1, *after.shape[1:]))
        channel, height, width = paddings[2:4], paddings[4:6], paddings[6:8]
        ops.append(Op.make("unsqueeze2", {"X": source}, {"Out": wide}, axes=[1]))
        ops.append(
            Op.make(
                "pad3d",
                {"X": wide},
                {"Out": padded},
                paddings=[*width, *height, *channel],
                mode="constant",
                value=float(op.attr("pad_value", 0.0)),
                data_format="NCDHW",
            )
        )
        ops.append(Op.make("squeeze2", {"X": padded}, {"Out": target}, axes=[1]))
    return graph.evolve(ops, vars) if vars else graph
