"""The job behind `quant.diagnosis.composition`: what an INT8 model is made of, from its graph and from running it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.diagnosis.drift_worker import analyze_model
from quant.diagnosis.profile_worker import profile_model
from quant.ir.graph import Graph, Op, load_dir
from quant.ir.int8_regions import int8_op, why_float
from quant.ir.ops.arithmetic import MULTIPLY

__all__ = ["dissect", "kept_ops"]

Json = dict[str, Any]

_PROFILE_S = 0.6


def dissect(timed: str, feed: Mapping[str, Any], threads: int, analyzed: Mapping[str, Any] | None) -> Json:
    """`int8`: op type -> how many; `fp32`: ops that could be INT8 and aren't (`op`, `type`, `why`); `run`, what
    profile_model gives; `ops` of another model, which `analyzed` are arguments of analyze_model for.

    `feed`: arguments of profile_model. All of the model `timed`, but for `ops`.
    """
    found = analyze_model(**analyzed, local=False)["ops"] if analyzed else []
    graph = load_dir(Path(timed))
    run = profile_model(timed, threads=threads, budget_s=_PROFILE_S, **feed)
    return {
        "int8": dict(Counter(op.type for op in graph.ops if int8_op(op)).most_common()),
        "fp32": kept_ops(graph),
        "run": run,
        "ops": found,
    }


def kept_ops(graph: Graph) -> list[Json]:
    """Convolutions, products, recurrent layers, pooling of a converted graph that aren't INT8, each with a reason."""

    def why(op: Op) -> str:
        if op.type != "pool2d":
            return why_float(graph, op)
        average = op.attr("pooling_type") != "max"
        return "an average would be rounded, which the simulation doesn't do" if average else "its input isn't int8"

    kept = [op for op in graph.ops if op.type in (*MULTIPLY, "pool2d") and not int8_op(op)]
    return [{"op": op.writes[0], "type": op.type, "why": why(op)} for op in kept]
