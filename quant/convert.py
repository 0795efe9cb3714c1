"""A fake-quantized graph -> a graph of oneDNN INT8 ops that a plain Paddle predictor runs as it is.

Paddle's own way (C++ fusion passes, or Quant2Int8OnednnPass) loses accuracy or quantises nothing in several cases
(docs/paddle-faults.md), so the INT8 ops are written directly: `fused_conv2d` and `fc` with int8 attributes, and
quantize / dequantize ops where a value has to change its type. Attributes and their meaning:
paddle/phi/kernels/onednn/conv_handler.h, paddle/phi/kernels/fusion/onednn/fc_kernel.cc. All scales there are
levels / threshold.

One walk in program order. For each variable it knows which of its forms exist: the float32 one, the rounded int8
one, or both; a missing float32 form is made, by a dequantize op, only when an op asks for it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.chains import CONVS, PRODUCTS, Chain, chains_of, chosen_ops, is_move, numbered, row_dims
from quant.errors import ConversionError
from quant.graph import Attr, Graph, Op, Var, run_passes
from quant.numerics import REDUCED, SIGNED, UNSIGNED
from quant.passes import PLACE

__all__ = ["Coverage", "Kept", "convert"]


@dataclass(frozen=True)
class Kept:
    """An op that stayed in float32, and why."""

    op_id: int
    op_type: str
    output: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What a conversion did: quantizable ops by type, INT8 and FP32, and each FP32 one's reason."""

    int8: Counter[str]
    fp32: Counter[str]
    kept: tuple[Kept, ...]


def convert(
    graph: Graph,
    *,
    ops_to_quantize: Collection[str] = (),
    op_ids_to_skip: Collection[int] = (),
    seen: Callable[[str, Graph], None] | None = None,
) -> tuple[Graph, Coverage]:
    """Convert a fake-quantized graph of either Paddle dialect. `seen` is told of the graph after each step.

    Raises OptionError for unknown op types or ids, ConversionError when no op would be INT8.
    """
    graph = run_passes(graph, PLACE, seen)
    chosen = chosen_ops(graph, ops_to_quantize, op_ids_to_skip)
    emitter = _Emitter(graph, chosen)
    for op in graph.ops:
        emitter.visit(op)
    coverage = emitter.coverage()
    if not any(coverage.int8[kind] for kind in (*CONVS, *PRODUCTS)):
        reason = coverage.kept[0].reason if coverage.kept else "it holds no quantizable op"
        raise ConversionError(f"no op became INT8: {reason}")
    result = graph.evolve(emitter.ops, emitter.vars, emitter.params)
    if seen:
        seen("emit_int8", result)
    return result, coverage


@dataclass(frozen=True)
class _Int8:
    """The int8 form of a tensor: its variable, grid, and stored type."""

    name: str
    threshold: float
    levels: int
    unsigned: bool

    @property
    def scale(self) -> float:
        """oneDNN's factor from real values to stored integers."""
        return self.levels / self.threshold

    def same_grid(self, other: "_Int8") -> bool:
        return (self.threshold, self.levels, self.unsigned) == (other.threshold, other.levels, other.unsigned)


class _Emitter:
    def __init__(self, graph: Graph, chosen: Collection[Op]) -> None:
        self.graph, self.chosen = graph, chosen
        self.readers = graph.readers()
        weighted = {op for op in chosen if op.attr("weight_thresholds")}
        self.chains = chains_of(graph, weighted)
        self.last = {chain.ops[-1]: chain for chain in self.chains.values()}
        self.inner = {op for chain in self.chains.values() for op in chain.ops[:-1]}
        self.int8: dict[str, _Int8] = {}  # variable -> its int8 form
        self.grids: dict[str, tuple[float, int]] = {}  # variable -> the grid (threshold, levels) its values lie on
        self.floats = {*graph.feeds, *graph.params}  # variables whose float32 form exists
        self.vars: dict[str, Var] = {}
        self.params: dict[str, NDArray[np.float32]] = {}
        self.ops: list[Op] = []
        self.reasons: dict[Op, str] = {}  # quantizable ops that stayed float32

    # --- the walk

    def visit(self, op: Op) -> None:
        if op in self.last:
            self.chain(self.last[op])
        elif op in self.inner:
            return
        elif op.type == "fake_quant":
            self.quantiser(op)
        elif is_move(op) and op in self.chosen and self.move(op):
            return
        else:
            self.reasons.setdefault(op, self.why_float(op))
            self.float_op(op)

    def float_op(self, op: Op) -> None:
        for name in op.reads:
            self.need_float(name)
        plain = {key: attr for key, attr in op.attrs.items() if not key.startswith("weight_")}
        self.ops.append(replace(op, attrs=plain) if len(plain) < len(op.attrs) else op)
        self.floats.update(op.writes)

    def need_float(self, name: str) -> None:
        if name in self.floats or name not in self.int8:
            return
        form = self.int8[name]
        self.ops.append(
            Op.make("dequantize", {"Input": form.name}, {"Output": name}, Scale=form.scale, Shift=0.0, use_mkldnn=True)
        )
        self.floats.add(name)

    def add_int8(self, name: str, grid: _Int8) -> None:
        dtype = "uint8" if grid.unsigned else "int8"
        self.vars[grid.name] = self.graph.vars[name]._replace(dtype=dtype)
        self.int8[name] = grid

    def quantiser(self, op: Op) -> None:
        source, target = op.input("X"), op.output("Out")
        threshold, levels = op.attr("threshold"), op.attr("levels")
        stored = self.int8.get(source)
        if stored is not None and (stored.threshold, stored.levels) == (threshold, levels):
            self.int8[target] = stored  # its producer already wrote it rounded
            return
        if levels not in (SIGNED, UNSIGNED):
            raise ConversionError(f"tensor {source!r}: {levels} levels don't fit int8 activations")
        self.quantize(source, target, threshold, levels)

    def quantize(self, source: str, target: str, threshold: float, levels: int) -> None:
        """Make the int8 form of `target` from the float32 values of `source`."""
        self.need_float(source)
        grid = _Int8(self.graph.fresh(f"{target}.int8"), threshold, levels, levels == UNSIGNED)
        quantize = Op.make(
            "quantize",
            {"Input": source},
            {"Output": grid.name},
            Scale=grid.scale,
            Shift=0.0,
            bfloat16=False,
            is_negative_input=not grid.unsigned,
            output_format="NCHW",
            use_mkldnn=True,
        )
        self.ops.append(quantize)
        self.add_int8(target, grid)

    def need_int8(self, name: str) -> _Int8 | None:
        if name not in self.int8 and name in self.grids:
            self.quantize(name, name, *self.grids[name])  # exact: its float32 values lie on the grid
        return self.int8.get(name)

    def grid_of(self, name: str) -> tuple[float, int] | None:
        form = self.int8.get(name)
        return (form.threshold, form.levels) if form else self.grids.get(name)

    def move(self, op: Op) -> bool:
        """Emit an op that only carries values on int8; False when its inputs aren't int8 on one grid.

        Inputs on one grid but of unlike types (a uint8 and an int8 branch of a concat) are carried in float32, and
        what comes out still lies on that grid.
        """
        grids = {self.grid_of(name) for name in op.inputs["X"]}
        if len(grids) == 1 and (shared := grids.pop()) is not None:
            self.grids[op.output("Out")] = shared
        forms = [self.int8.get(name) for name in op.inputs["X"]]
        first = forms[0]
        if first is None or any(form is None or not form.same_grid(first) for form in forms):
            return False
        out = op.output("Out")
        grid = replace(first, name=self.graph.fresh(f"{out}.int8"))
        inputs = {**op.inputs, "X": tuple(form.name for form in forms if form)}
        moved = replace(op, inputs=inputs, outputs={**op.outputs, "Out": (grid.name,)})
        self.ops.append(moved.with_attrs(use_mkldnn=True, mkldnn_data_type="int8"))
        self.add_int8(out, grid)
        return True

    # --- kernels

    def wanted_grid(self, name: str) -> tuple[float, int] | None:
        """The one grid (threshold, levels) that all readers of a tensor round it to, or None."""
        readers = self.readers.get(name, [])
        if name in self.graph.fetches or any(op.type != "fake_quant" for op in readers):
            return None
        grids = {(op.attr("threshold"), op.attr("levels")) for op in readers}
        return grids.pop() if len(grids) == 1 else None

    def output_form(self, chain: Chain, residual: _Int8 | None) -> _Int8 | None:
        """How the kernel stores its output rounded, or None when it has to write float32."""
        if (wanted := self.wanted_grid(chain.out)) is None:
            return None
        threshold, levels = wanted
        unsigned = chain.stores_unsigned
        if chain.residual and (residual is None or (residual.unsigned and not unsigned)):
            return None  # a sum is stored in its residual's type: float32, or unsigned though it may be negative
        room = UNSIGNED if unsigned and (residual is None or residual.unsigned) else SIGNED
        return (
            _Int8(self.graph.fresh(f"{chain.out}.int8"), threshold, levels, unsigned)
            if levels in (SIGNED, room)
            else None
        )

    def chain(self, chain: Chain) -> None:
        data = self.need_int8(chain.data)
        if data is None:
            self.reasons[chain.op] = "its input is not quantised"
            for op in chain.ops:
                self.float_op(op)
            return
        residual = self.need_int8(chain.residual)
        form = self.output_form(chain, residual)
        if chain.residual and form is None:
            self.need_float(chain.residual)
            residual = None
        if form is not None:
            self.add_int8(chain.out, form)
        else:
            self.floats.add(chain.out)
        conv = chain.op.type in CONVS
        data = data if conv else self.flat(chain, data)
        slots = ("Input", "Filter", "Output") if conv else ("Input", "W", "Out")
        inputs = {slots[0]: (data.name,), slots[1]: (chain.weight,)}
        bias = chain.bias
        if not conv and not bias:  # the predictor's own passes crash (SIGSEGV) on an fc without one
            bias = self.graph.fresh(f"{chain.weight}.no_bias")
            self.params[bias] = np.zeros(self.graph.vars[chain.weight].shape[1], np.float32)
        if bias:
            inputs["Bias"] = (bias,)
        if chain.residual:
            inputs["ResidualData"] = (residual.name if residual else chain.residual,)
        outputs = {slots[2]: (form.name if form else chain.out,)}
        attrs = {
            **self.scales(chain, data, residual, form),
            **self.activation(chain, form),
            **(self.conv_attrs(chain) if conv else self.fc_attrs(chain)),
            "use_mkldnn": True,
            "mkldnn_data_type": "int8",
        }
        kind = "fused_conv2d" if conv else "fc"
        self.ops.append(Op(kind, inputs, outputs, {name: Attr.of(value) for name, value in attrs.items()}))

    def scales(self, chain: Chain, data: _Int8, residual: _Int8 | None, form: _Int8 | None) -> dict[str, Any]:
        levels = chain.op.attr("weight_levels")
        # Without VNNI oneDNN halves a convolution's int8 weights when the input is signed (scale adjust 0.5), and a
        # 7-bit weight must still be whole after that. The 8-bit scale of an unsigned input would saturate instead.
        step = 2 if levels <= REDUCED and not data.unsigned and chain.op.type in CONVS else 1
        return {
            "Scale_in": data.scale,
            "Scale_weights": [step * levels / threshold for threshold in chain.op.attr("weight_thresholds")],
            "Scale_in_eltwise": residual.scale if residual else 1.0,
            "Scale_out": form.scale if form else 1.0,
            "force_fp32_output": form is None and not chain.residual,
        }

    @staticmethod
    def activation(chain: Chain, form: _Int8 | None) -> dict[str, Any]:
        top = 6.0 if chain.activation == "relu6" else math.inf
        if form is not None and form.unsigned and form.levels == SIGNED:
            top = min(top, form.threshold)  # uint8 has room above 127 levels, where the simulation clips
        fused = "" if not chain.activation else "relu" if math.isinf(top) else "relu6"
        return {"fuse_activation": fused, "fuse_alpha": 0.0, "fuse_beta": 0.0 if math.isinf(top) else top}

    @staticmethod
    def conv_attrs(chain: Chain) -> dict[str, Any]:
        copied = ("strides", "paddings", "dilations", "groups", "data_format", "padding_algorithm")
        present = {name: chain.op.attr(name) for name in copied if name in chain.op.attrs}
        return {**present, "fuse_residual_connection": bool(chain.residual)}

    def flat(self, chain: Chain, data: _Int8) -> _Int8:
        """A product's input with its summed dimensions made one, in plain layout, which the kernel expects."""
        shape, rows = self.graph.vars[chain.data].shape, row_dims(self.graph, chain.op)
        if rows == len(shape) - 1:
            return data
        form = replace(data, name=self.graph.fresh(f"{chain.out}.flat.int8"))
        self.vars[form.name] = Var((*shape[:rows], math.prod(shape[rows:])), "uint8" if form.unsigned else "int8")
        attrs = {"start_axis": rows, "stop_axis": -1, "use_mkldnn": True, "mkldnn_data_type": "int8"}
        self.ops.append(Op.make("flatten_contiguous_range", {"X": data.name}, {"Out": form.name}, **attrs))
        return form

    def fc_attrs(self, chain: Chain) -> dict[str, Any]:
        return {
            "in_num_col_dims": row_dims(self.graph, chain.op),
            "padding_weights": False,
            "activation_type": "",
        }

    # --- what was done

    def why_float(self, op: Op) -> str:
        if op not in self.chosen:
            return "left out by ops_to_quantize or op_ids_to_skip"
        if op.type in (*CONVS, *PRODUCTS):
            if not op.attr("weight_thresholds"):
                return "the model doesn't fake-quantize its weight"
            return "no INT8 kernel for its layout, transposition or weight shape"
        if op.type == "pool2d" and not is_move(op):
            return "an average would be rounded, which the simulation doesn't do"
        return "its inputs are not int8 on one grid"

    def coverage(self) -> Coverage:
        ids = numbered(self.graph)
        kept = tuple(Kept(ids[op], op.type, op.writes[0], why) for op, why in self.reasons.items() if op in ids)
        fp32 = Counter(entry.op_type for entry in kept)
        return Coverage(Counter(op.type for op in ids) - fp32, fp32, kept)
