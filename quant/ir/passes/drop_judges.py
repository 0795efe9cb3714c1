"""Take out the layers that score a model's answers against labels, so that the answers come out instead.

Some models of the seeds' time were saved with them ("with accuracy layer"): labels are a second input, and what comes
out are counts of a whole batch, from which no sample's own outcome can be read.
"""

from dataclasses import replace

from quant.ir.comparable import cut_to
from quant.ir.graph import Graph, Op

__all__ = ["drop_judges"]

_JUDGED = {  # op type -> the slot of what it judges
    "accuracy": "Out",
    "chunk_eval": "Inference",
    "cross_entropy": "X",
    "cross_entropy2": "X",
    "softmax_with_cross_entropy": "Logits",
}
_BEST = ("top_k", "top_k_v2")  # `accuracy` reads the best scores, picked by one of these


def drop_judges(graph: Graph) -> Graph:
    """Fetch what was judged, first, and all that doesn't depend on labels; drop the labels' input.

    Not touched: a model without such layers.
    """
    judges = [op for op in graph.ops if op.type in _JUDGED]
    if not judges:
        return graph
    writers = graph.writers()
    answers = dict.fromkeys(_behind_best(op.input(_JUDGED[op.type]), writers) for op in judges)
    from_labels = {op.input("Label") for op in judges}
    for op in graph.ops:
        if from_labels.intersection(op.reads):
            from_labels.update(op.writes)
    fetches = tuple(dict.fromkeys([*answers, *(name for name in graph.fetches if name not in from_labels)]))
    kept = cut_to(graph, fetches)
    read = {name for op in kept.ops for name in op.reads}.union(fetches)
    return replace(kept, feeds=tuple(name for name in graph.feeds if name in read)).evolve(kept.ops)


def _behind_best(name: str, writers: dict[str, Op]) -> str:
    writer = writers.get(name)
    return writer.input("X") if writer is not None and writer.type in _BEST else name
