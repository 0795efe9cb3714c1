"""Remove ops that return their input unchanged at inference."""

from collections.abc import Callable

from quant.ir.graph import Graph, Op

__all__ = ["drop_identities", "is_identity"]


def _takes_single_values(op: Op) -> bool:
    """Whether a pooling window is one value, at every position."""
    fixed = not op.attr("global_pooling", False) and not op.attr("adaptive", False)
    ones = all(size == 1 for name in ("ksize", "strides") for size in op.attr(name, [0]))
    valid = op.attr("padding_algorithm", "EXPLICIT") == "EXPLICIT"
    return fixed and ones and valid and not any(op.attr("paddings", [0]))


# Op type -> is this op the identity at inference?
_IDENTITY: dict[str, Callable[[Op], bool]] = {
    # The other mode, downgrade_in_infer, multiplies by 1 - p at inference.
    "dropout": lambda op: op.attr("dropout_implementation") == "upscale_in_train",
    "scale": lambda op: not op.input("ScaleTensor") and op.attr("scale", 1.0) == 1.0 and op.attr("bias", 0.0) == 0.0,
    "assign": lambda op: True,
    "cast": lambda op: op.attr("in_dtype") == op.attr("out_dtype"),
    "concat": lambda op: len(op.inputs["X"]) == 1,
    "pool2d": _takes_single_values,
    "transpose2": lambda op: op.attr("axis") == sorted(op.attr("axis")),
}


def is_identity(op: Op) -> bool:
    """Whether an op returns its input unchanged at inference."""
    return op.type in _IDENTITY and _IDENTITY[op.type](op)


def drop_identities(graph: Graph) -> Graph:
    """Remove ops that give out what they read; readers read that instead.

    Dropout (upscale_in_train), scale by 1, assign, cast to the same type, concat of one tensor, pooling of single
    values, transpose that leaves all axes in place.

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
