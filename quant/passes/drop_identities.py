"""Remove ops that return their input unchanged at inference."""

from collections.abc import Callable

from quant.graph import Graph, Op

__all__ = ["drop_identities", "is_identity"]

# Op type -> is this op the identity at inference?
_IDENTITY: dict[str, Callable[[Op], bool]] = {
    # The other mode, downgrade_in_infer, multiplies by 1 - p at inference.
    "dropout": lambda op: op.attr("dropout_implementation") == "upscale_in_train",
    "scale": lambda op: not op.input("ScaleTensor") and op.attr("scale", 1.0) == 1.0 and op.attr("bias", 0.0) == 0.0,
    "assign": lambda op: True,
}


def is_identity(op: Op) -> bool:
    """Whether an op returns its input unchanged at inference."""
    return op.type in _IDENTITY and _IDENTITY[op.type](op)


def drop_identities(graph: Graph) -> Graph:
    """Remove dropout (upscale_in_train), scale by 1 and assign; readers read their input instead.

    Not touched: an identity whose output is fetched (the name is the model's interface).
    """
    new_name: dict[str, str] = {}
    kept = []
    for op in graph.ops:
        op = op.rewired(new_name)
        if is_identity(op) and op.output("Out") not in graph.fetches:
            new_name[op.output("Out")] = op.input("X")
        else:
            kept.append(op)
    return graph.evolve(kept) if new_name else graph
