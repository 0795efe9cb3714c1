"""Why an op that multiplies has no INT8 kernel: what of the op itself is in the way. Pure functions."""

from quant.ir.fusion import CONVS, PRODUCTS, RECURRENT, cell_fault
from quant.ir.graph import Graph, Op
from quant.ir.passes.quantizers import WEIGHT_SLOT

__all__ = ["all_faults", "fault_of"]


def fault_of(graph: Graph, op: Op) -> str:
    """Why no INT8 kernel takes a convolution, a product or a recurrent layer, by its layout, sizes and attributes.

    "" when nothing of the op itself is in the way.
    """
    if op.type in RECURRENT:
        return cell_fault(op)
    if op.type in CONVS:
        return _of_convolution(graph, op)
    return _of_product(graph, op) if op.type in PRODUCTS else ""


def all_faults(graph: Graph) -> str:
    """What is in the way of each op that multiplies, as one text: "conv2d: its filter is ..., lstm: ..."."""
    faults = dict.fromkeys((op.type, fault) for op in graph.ops if (fault := fault_of(graph, op)))
    return ", ".join(f"{kind}: {fault}" for kind, fault in faults)


def _of_convolution(graph: Graph, op: Op) -> str:
    layout, weight = op.attr("data_format", "NCHW"), op.input("Filter")
    if layout != "NCHW":
        return f"its layout is {layout}, and there are INT8 kernels for NCHW only"
    if weight not in graph.params:
        return f"its filter {weight!r} is computed when the model runs"
    return "" if len(graph.vars[weight].shape) == 4 else f"its filter has {len(graph.vars[weight].shape)} dimensions"


def _of_product(graph: Graph, op: Op) -> str:
    slot = WEIGHT_SLOT[op.type][0]
    data, weight = op.input("Input" if op.type == "fc" else "X"), op.input(slot)
    flipped = [name for name in ("trans_x", "trans_y", "transpose_X", "transpose_Y") if op.attr(name, False)]
    if weight not in graph.params:
        return "" if data not in graph.params else "its constant factor is the first one"
    if data in graph.params:
        return "both its factors are constants"
    if flipped:
        return f"it transposes a factor ({flipped[0]})"
    if len(graph.vars[weight].shape) != 2 or op.attr("y_num_col_dims", 1) != 1:
        return f"its weight has {len(graph.vars[weight].shape)} dimensions, of which it sums over other than the first"
    if op.attr("head_number", 1) != 1:
        return f"it multiplies {op.attr('head_number')} heads one by one"
    if op.attr("alpha", 1.0) != 1.0:
        return f"it multiplies its output by {op.attr('alpha')}"
    rank = len(graph.vars[data].shape)
    return "" if 2 <= rank <= 4 else f"its input has {rank} dimensions"
