"""Which tensors of two models are compared: their outputs, but for those that have as many rows as values ask for.

A detector that ends in non-maximum suppression gives out a row for each box that it keeps. FP32 and INT8 keep unlike
numbers, and a row of one is no row of the other. What can be compared is what such an op reads: boxes and scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from quant.errors import ModelError, check_choice
from quant.ir.graph import Graph, Op

__all__ = ["comparable", "cut_to", "sized_by_values"]

# Op type -> the inputs that decide how many rows it writes, and are compared; none: all of them.
_SIZED_BY_VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("multiclass_nms", "multiclass_nms2", "multiclass_nms3"), ("BBoxes", "Scores")),
        **dict.fromkeys(("matrix_nms", "locality_aware_nms"), ("BBoxes", "Scores")),
        **dict.fromkeys(("generate_proposals", "generate_proposals_v2"), ("BboxDeltas", "Scores")),
        "retinanet_detection_output": ("BBoxes", "Scores"),
        "yolo_box_post": ("Boxes0", "Boxes1", "Boxes2"),
        "nms": ("Boxes",),
        "where_index": ("Condition",),
        "masked_select": ("X", "Mask"),
        "unique": ("X",),
        "unique_consecutive": ("X",),
        "distribute_fpn_proposals": ("FpnRois",),
        "collect_fpn_proposals": ("MultiLevelRois", "MultiLevelScores"),
    }
)


def sized_by_values(graph: Graph) -> frozenset[str]:
    """The variables whose shapes depend on values, and all that is computed of them."""
    found: set[str] = set()
    for op in graph.ops:
        if op.type in _SIZED_BY_VALUES or found.intersection(op.reads):
            found.update(op.writes)
    return frozenset(found)


def comparable(graph: Graph, outputs: Sequence[str] = (), model: object = "the model") -> Graph:
    """The graph with outputs that can be compared, or with `outputs`; inputs stay, ops that nothing needs go.

    For an output whose shape depends on values stand the float tensors that decide it, in front of the other outputs
    at its place, each once. `model` is what errors name. The same graph where nothing has to change.
    Raises OptionError with the nearest name for an output that isn't there, ModelError where no float tensor decides.
    """
    if outputs:
        computed = [*graph.feeds, *(name for op in graph.ops for name in op.writes)]
        for name in outputs:
            check_choice(f"output of {model}", name, computed)
        return cut_to(graph, tuple(outputs))
    rows = sized_by_values(graph)
    if not rows.intersection(graph.fetches):
        return graph
    fetches: dict[str, None] = {}
    for name in graph.fetches:
        fetches.update(dict.fromkeys(_deciding(graph, name, rows) if name in rows else [name]))
    if not fetches:
        raise ModelError(f"{model}: no float tensor decides its outputs {', '.join(graph.fetches)}")
    return cut_to(graph, tuple(fetches))


def _deciding(graph: Graph, output: str, rows: frozenset[str]) -> list[str]:
    """The float tensors of fixed shape that decide an output, in the order in which ops read them."""
    writers = graph.writers()
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in seen or name in graph.params:
            continue
        seen.add(name)
        op = writers.get(name)
        if name not in rows and graph.vars[name].dtype == "float32":
            if op is not None:  # an input of the model is the same for all
                found[name] = None
        elif op is not None:
            waiting.extend(reversed(list(_read(op, rows))))
    return list(found)


def _read(op: Op, rows: frozenset[str]) -> Iterator[str]:
    """What decides an op's output: of those behind a number of rows only what carries that on."""
    behind = [name for name in op.reads if name in rows]
    if behind:
        return iter(behind)
    return (name for slot in _SIZED_BY_VALUES.get(op.type, tuple(op.inputs)) for name in op.inputs.get(slot, ()))


def cut_to(graph: Graph, fetches: tuple[str, ...]) -> Graph:
    """The graph with other outputs, without the ops that none of them needs; its inputs stay."""
    needed, kept = set(fetches), []
    for op in reversed(graph.ops):
        if needed.intersection(op.writes):
            needed.update(op.reads)
            kept.append(op)
    return replace(graph, fetches=fetches).evolve(reversed(kept))
