"""A fake-quantized graph -> a graph of oneDNN INT8 ops that a plain Paddle predictor runs as it is.

Paddle's own way (C++ fusion passes, or Quant2Int8OnednnPass) loses accuracy or quantises nothing in several cases
(docs/paddle-faults.md), so the INT8 ops are written directly: `fused_conv2d`, `fc`, `fused_matmul`, `fusion_gru` and
`fusion_lstm` with int8 attributes (quant.quantization.int8_attributes), and quantize / dequantize ops where a value
has to change its type.

One walk in program order. For each variable it knows which of its forms exist: the float32 one, the rounded int8
one, the uint8 one around 128 that recurrent kernels read. A missing form is made only when an op asks for it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quant.errors import ConversionError
from quant.ir.fusion import (
    CONVS,
    LOOKUPS,
    PRODUCTS,
    RECURRENT,
    Chain,
    chains_of,
    chosen_ops,
    is_carrier,
    is_move,
    numbered,
    row_dims,
    whole_bias,
)
from quant.ir.graph import Attr, Graph, Op, Var, run_passes
from quant.ir.numerics import SHIFT, SIGNED, STATE_THRESHOLD, UNSIGNED
from quant.ir.ops.schema import defaults_of
from quant.ir.passes import PLACE
from quant.ir.passes.quantizers import scales_elsewhere
from quant.quantization.int8_attributes import (
    SCRATCH,
    STATE,
    Grid,
    Int8,
    conv_attrs,
    fc_attrs,
    product_attrs,
    recurrent_attrs,
)
from quant.quantization.packing import Weights
from quant.quantization.reasons import fault_of

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
    """Convert a fake-quantized graph of any Paddle dialect. `seen` is told of the graph after each step.

    Raises OptionError for unknown op types or ids, ConversionError when no op would be INT8.
    """
    graph = run_passes(graph, PLACE, seen)
    chosen = chosen_ops(graph, ops_to_quantize, op_ids_to_skip)
    emitter = _Emitter(graph, chosen)
    for op in graph.ops:
        emitter.visit(op)
    emitter.finish()
    coverage = emitter.coverage()
    if not any(coverage.int8[kind] for kind in (*CONVS, *PRODUCTS)):
        rounds = any(op.type == "fake_quant" for op in graph.ops)
        reason = "" if rounds else scales_elsewhere(graph)
        reason = reason or (coverage.kept[0].reason if coverage.kept else "it holds no quantizable op")
        raise ConversionError(f"no op became INT8: {reason}")
    result = graph.evolve(map(_complete, emitter.ops), emitter.vars, emitter.names.params)
    if seen:
        seen("emit_int8", result)
    return result, coverage


def _complete(op: Op) -> Op:
    """The op with all attributes that Paddle reads unchecked, as it does where it translates a program to PIR."""
    lacking = {name: Attr(*given) for name, given in defaults_of(op.type).items() if name not in op.attrs}
    if op.type == "fused_transpose" and "mkldnn_data_type" in op.attrs:
        lacking = {
            **lacking,
            "onednn_data_type": op.attrs["mkldnn_data_type"],
        }  # by its newer name there, and only there
    return replace(op, attrs={**lacking, **op.attrs}) if lacking else op


class _Emitter:
    def __init__(self, graph: Graph, chosen: Collection[Op]) -> None:
        self.graph, self.chosen = graph, chosen
        self.readers, self.writers = graph.readers(), graph.writers()
        weighted = {op for op in chosen if op.attr("weight_thresholds")}
        pairs = {op for op in chosen if self.rounds_both(op)}
        self.chains = chains_of(graph, weighted | pairs)
        self.last = {chain.ops[-1]: chain for chain in self.chains.values()}
        self.inner = {op for chain in self.chains.values() for op in chain.ops[:-1]}
        self.int8: dict[str, Int8] = {}  # variable -> its int8 form
        self.shifted: dict[str, Int8] = {}  # variable -> its uint8 form around 128
        self.rounding: dict[str, tuple[str, Grid]] = {}  # rounded variable that has no form yet -> (source, grid)
        self.grids: dict[str, Grid] = {}  # variable -> the grid its values lie on
        self.floats = {name: name for name in (*graph.feeds, *graph.params)}  # variable -> its float32 form
        self.vars: dict[str, Var] = {}
        self.ops: list[Op] = []
        self.names = graph.names()
        self.weights = Weights(graph, self.names, self.ops, self.vars)
        self.products: set[str] = set()  # outputs of INT8 products of two activations, and their rounded twins
        self.called_u8: set[str] = set()  # variables that hold int8, though Paddle calls them uint8
        self.reasons: dict[Op, str] = {}  # quantizable ops that stayed float32

    def rounds_both(self, op: Op) -> bool:
        """Whether the simulation rounds both factors of a product of two activations."""
        if op.type not in PRODUCTS or op.input("Y") in self.graph.params:
            return False

        def rounded(name: str) -> bool:
            writer = self.writers.get(name)
            return writer is not None and (
                writer.type == "fake_quant"
                or (is_move(writer) and all(rounded(source) for source in writer.inputs["X"]))
            )

        return rounded(op.input("X")) and rounded(op.input("Y"))

    # --- the walk

    def visit(self, op: Op) -> None:
        if op in self.last:
            self.chain(self.last[op])
        elif op in self.inner:
            return
        elif op.type == "fake_quant":
            self.quantiser(op)
        elif is_carrier(op) and self.carry(op):
            return
        else:
            self.reasons.setdefault(op, self.why_float(op))
            self.float_op(op)

    def finish(self) -> None:
        """Give every output of the model its float32 form under its own name."""
        for name in self.graph.fetches:
            source = self.need_float(name)
            if source != name:
                self.ops.append(Op.make("assign", {"X": source}, {"Out": name}))

    def float_op(self, op: Op) -> None:
        if op.type == "elementwise_add" and self.products.intersection(op.reads):
            # A predictor's matmul_elementwise_add_onednn_fuse_pass would put an addition of this type into the INT8
            # product, where it is wrong or refused (docs/paddle-faults.md). This type is the same kernel.
            op = replace(op, type="fused_elementwise_add")
        op = op.rewired({name: self.need_float(name) for name in op.reads if name})
        if op.type in LOOKUPS and op.input("W") in self.graph.params:
            op = replace(op, inputs={**op.inputs, "W": (self.weights.of_table(op.input("W")),)})
        plain = {key: attr for key, attr in op.attrs.items() if not key.startswith("weight_")}
        self.ops.append(replace(op, attrs=plain) if len(plain) < len(op.attrs) else op)
        self.floats.update({name: name for name in op.writes})

    def quantiser(self, op: Op) -> None:
        source, target = op.input("X"), op.output("Out")
        grid = (op.attr("threshold"), op.attr("levels"))
        if grid[1] not in (SIGNED, UNSIGNED):
            raise ConversionError(f"tensor {source!r}: {grid[1]} levels don't fit int8 activations")
        self.rounding[target] = (source, grid)
        self.grids[target] = grid

    # --- forms

    def need_float(self, name: str) -> str:
        """The variable that holds a tensor's float32 values, made if there is none yet."""
        if name in self.floats:
            return self.floats[name]
        if name in self.rounding and self.unchanged(name):
            self.floats[name] = self.need_float(self.rounding[name][0])
            return self.floats[name]
        form = self.int8.get(name) or self.shifted.get(name) or self.need_int8(name)
        if form is None:  # an output that no op of a damaged program writes
            return name
        self.ops.append(
            Op.make(
                "dequantize",
                {"Input": form.name},
                {"Output": name},
                Scale=form.scale,
                Shift=float(form.shift),
                use_mkldnn=True,
            )
        )
        self.floats[name] = name
        return name

    def unchanged(self, name: str) -> bool:
        """Whether a tensor to be rounded lies on that very grid already."""
        source, grid = self.rounding[name]
        return self.grids.get(source) == grid

    def need_int8(self, name: str) -> Int8 | None:
        return self.form(name, self.int8, 0)

    def need_shifted(self, name: str) -> Int8 | None:
        return self.form(name, self.shifted, SHIFT)

    def form(self, name: str, forms: dict[str, Int8], shift: int) -> Int8 | None:
        """A form of a rounded tensor, made from its float32 values if it isn't there; None for an unrounded tensor."""
        if name in forms or name not in self.grids or (shift and self.grids[name][1] != SIGNED):
            return forms.get(name)
        source = self.rounding.get(name, (name,))[0]
        if source != name and self.unchanged(name) and (stored := self.form(source, forms, shift)):
            forms[name] = stored  # its producer already wrote it rounded
        else:
            self.quantize(self.need_float(source), name, forms, shift)
        return forms[name]

    def add_form(self, name: str, form: Int8) -> None:
        dtype = "uint8" if form.unsigned else "int8"
        self.vars[form.name] = self.graph.vars[name]._replace(dtype=dtype)
        (self.shifted if form.shift else self.int8)[name] = form
        self.grids[name] = form.grid

    def quantize(self, source: str, target: str, forms: dict[str, Int8], shift: int) -> None:
        threshold, levels = self.grids[target]
        unsigned = levels == UNSIGNED or shift > 0
        form = Int8(self.names.fresh(f"{target}.{'u8' if shift else 'int8'}"), threshold, levels, unsigned, shift)
        quantize = Op.make(
            "quantize",
            {"Input": source},
            {"Output": form.name},
            Scale=form.scale,
            Shift=float(shift),
            bfloat16=False,
            is_negative_input=not unsigned,
            output_format="NCHW",
            use_mkldnn=True,
        )
        self.ops.append(quantize)
        self.add_form(target, form)

    def carry(self, op: Op) -> bool:
        """Emit an op that only carries values on int8; False when it has to run in float32.

        Inputs on one grid but of unlike types (a uint8 and an int8 branch of a concat) are carried in float32, and
        what comes out still lies on that grid.
        """
        names, outs = op.inputs["X"], op.outputs["Out"]
        grids = {self.grids.get(name) for name in names}
        if len(grids) > 1 or (shared := grids.pop()) is None:
            return False
        self.grids.update(dict.fromkeys(outs, shared))
        shifted = all(self.only_into_cells(out) for out in outs)
        have = self.shifted if shifted else self.int8
        if not is_move(op) or op not in self.chosen or not all(self.at_hand(name, have) for name in names):
            return False
        forms = [self.need_shifted(name) if shifted else self.need_int8(name) for name in names]
        if op.type == "pool2d" and any(form and form.name in self.called_u8 for form in forms):
            return False  # its kernel can't be made for such a tensor (docs/paddle-faults.md)
        first = forms[0]
        if first is None or any(form is None or not form.same_grid(first) for form in forms):
            return False
        written = [replace(first, name=self.names.fresh(f"{out}.int8")) for out in outs]
        inputs = {**op.inputs, "X": tuple(form.name for form in forms if form)}
        moved = replace(op, inputs=inputs, outputs={**op.outputs, "Out": tuple(form.name for form in written)})
        if op.type == "transpose2" and self.products.intersection(names):
            # matmul_transpose_reshape_onednn_fuse_pass would put it into the INT8 product, whose kernel ignores it.
            moved = replace(moved, type="fused_transpose")
        self.ops.append(moved.with_attrs(use_mkldnn=True, mkldnn_data_type="int8"))
        for out, form in zip(outs, written, strict=True):
            self.add_form(out, form)
        return True

    def at_hand(self, name: str, forms: dict[str, Int8]) -> bool:
        """Whether a form exists or is about to be made anyway: the tensor is rounded just here."""
        if name in forms:
            return True
        if name not in self.rounding:
            return False
        return not self.unchanged(name) or self.at_hand(self.rounding[name][0], forms)

    def only_into_cells(self, name: str) -> bool:
        """Whether a tensor ends, through rounding and carrying ops, in recurrent layers alone."""
        heads = {chain.op for chain in self.chains.values() if chain.cell}
        readers = self.readers.get(name, [])
        if not readers or name in self.graph.fetches:
            return False
        return all(
            op in heads or ((op.type in ("fake_quant", "concat")) and self.only_into_cells(op.output("Out")))
            for op in readers
        )

    # --- kernels

    def wanted_grid(self, name: str) -> Grid | None:
        """The one grid that all readers of a tensor round it to, or None."""
        readers = self.readers.get(name, [])
        if name in self.graph.fetches or any(op.type != "fake_quant" for op in readers):
            return None
        grids = {(op.attr("threshold"), op.attr("levels")) for op in readers}
        return grids.pop() if len(grids) == 1 else None

    def output_form(self, chain: Chain, residual: Int8 | None) -> Int8 | None:
        """How the kernel stores its output rounded, or None when it has to write float32."""
        if (wanted := self.wanted_grid(chain.out)) is None or self.only_into_cells(chain.out):
            return None
        threshold, levels = wanted
        unsigned = chain.stores_unsigned
        if chain.residual and (residual is None or (residual.unsigned and not unsigned)):
            return None  # a sum is stored in its residual's type: float32, or unsigned though it may be negative
        room = UNSIGNED if unsigned and (residual is None or residual.unsigned) else SIGNED
        if levels not in (SIGNED, room):
            return None
        return Int8(self.names.fresh(f"{chain.out}.int8"), threshold, levels, unsigned)

    def chain(self, chain: Chain) -> None:
        operands = [self.need_shifted(chain.data)] if chain.cell else [self.need_int8(name) for name in chain.operands]
        if None in operands:
            for op in chain.ops:
                self.reasons[op] = "its input is not quantised"
                self.float_op(op)
        elif chain.cell:
            self.recurrent(chain, *(form for form in operands if form))
        elif chain.other:
            self.pair(chain, *(form for form in operands if form))
        else:
            self.weighted(chain, *(form for form in operands if form))

    def write(self, chain: Chain, form: Int8 | None) -> str:
        """The variable that a chain's kernel writes."""
        if form is None:
            self.floats[chain.out] = chain.out
            return chain.out
        self.add_form(chain.out, form)
        return form.name

    def emit(self, kind: str, inputs: dict[str, str], outputs: dict[str, str], attrs: dict[str, Any]) -> None:
        self.ops.append(Op.make(kind, inputs, outputs, **attrs, use_mkldnn=True, mkldnn_data_type="int8"))

    def pair(self, chain: Chain, x: Int8, y: Int8) -> None:
        """A product of two activations. Its fused addition is broken in Paddle (docs/paddle-faults.md): not used."""
        form = self.output_form(chain, None)
        twins = (op.output("Out") for op in self.readers.get(chain.out, []) if op.type == "fake_quant")
        self.products.update((chain.out, *twins))
        attrs = product_attrs(chain.op, x, y, form)
        self.emit("fused_matmul", {"X": x.name, "Y": y.name}, {"Out": self.write(chain, form)}, attrs)

    def recurrent(self, chain: Chain, data: Int8) -> None:
        """A GRU or LSTM layer of one direction.

        The kernel reads its input and keeps its state on one grid, that of the state. Weights of the input are
        multiplied by the input's threshold instead, so that the input may have its own.
        """
        assert chain.cell is not None
        cell = chain.cell
        stored = None
        if self.only_into_cells(chain.out):
            stored = Int8(self.names.fresh(f"{chain.out}.u8"), *STATE, unsigned=True, shift=SHIFT)
        bias = self.names.param(f"{chain.out}.bias", whole_bias(self.graph, chain))
        scaled = self.graph.params[chain.weight] * (data.threshold / STATE_THRESHOLD)
        scratch = {slot: self.names.fresh(f"{chain.out}.{slot}") for slot in SCRATCH[cell.type]}
        self.vars.update(dict.fromkeys(scratch.values(), Var((-1, scaled.shape[1]))))
        outputs = {"Hidden": self.write(chain, stored), **scratch}
        scales = cell.attr("weight_levels") / np.array(cell.attr("weight_thresholds"), np.float64)
        inputs = {
            "X": data.name,
            "WeightX": self.weights.packed(f"{chain.weight}.scaled", scaled, scales, 1),
            "WeightH": self.weights.of_state(cell, scales),
            "Bias": bias,
        }
        self.emit(f"fusion_{cell.type}", inputs, outputs, recurrent_attrs(cell, stored))
        self.grids[chain.out] = STATE

    def weighted(self, chain: Chain, data: Int8) -> None:
        residual = self.need_int8(chain.residual) if chain.residual else None
        form = self.output_form(chain, residual)
        if form and form.unsigned and residual and not residual.unsigned:
            self.called_u8.add(form.name)
        conv = chain.op.type in CONVS
        data = data if conv else self.flat(chain, data)
        slots = ("Input", "Filter", "Output") if conv else ("Input", "W", "Out")
        inputs = {slots[0]: data.name}
        if chain.residual:
            residual = residual if form else None
            inputs["ResidualData"] = residual.name if residual else self.need_float(chain.residual)
        bias = chain.bias
        if not conv and not bias:  # the predictor's own passes crash (SIGSEGV) on an fc without one
            zeros = np.zeros(self.graph.vars[chain.weight].shape[1], np.float32)
            bias = self.names.param(f"{chain.weight}.no_bias", zeros)
        if bias:
            inputs["Bias"] = bias
        if conv:
            attrs = conv_attrs(chain, data, residual, form)
        else:
            attrs = fc_attrs(chain, row_dims(self.graph, chain.op), data, form)
        inputs[slots[1]] = self.weights.of_op(chain.op, data)
        self.emit("fused_conv2d" if conv else "fc", inputs, {slots[2]: self.write(chain, form)}, attrs)

    def flat(self, chain: Chain, data: Int8) -> Int8:
        """A product's input with its summed dimensions made one, in plain layout, which the kernel expects."""
        shape, rows = self.graph.vars[chain.data].shape, row_dims(self.graph, chain.op)
        if rows == len(shape) - 1:
            return data
        form = replace(data, name=self.names.fresh(f"{chain.out}.flat.int8"))
        self.vars[form.name] = Var((*shape[:rows], math.prod(shape[rows:])), "uint8" if form.unsigned else "int8")
        attrs = {"start_axis": rows, "stop_axis": -1, "use_mkldnn": True, "mkldnn_data_type": "int8"}
        self.ops.append(Op.make("flatten_contiguous_range", {"X": data.name}, {"Out": form.name}, **attrs))
        return form

    # --- what was done

    def why_float(self, op: Op) -> str:
        if op not in self.chosen:
            return "left out by ops_to_quantize or op_ids_to_skip"
        if fault := op.attr("weight_fault") or fault_of(self.graph, op):
            return str(fault)
        if op.type in (*CONVS, *PRODUCTS):
            if op.type not in CONVS and op.input("Y") and op.input("Y") not in self.graph.params:
                return "the model doesn't fake-quantize both its factors"
            if not op.attr("weight_thresholds"):
                return "the model doesn't fake-quantize its weight"
            return "no INT8 kernel for its layout, transposition or weight shape"
        if op.type in RECURRENT:
            return "the model doesn't fake-quantize its input and weights, or their sizes don't go together"
        if op.type == "pool2d" and not is_move(op):
            return "an average would be rounded, which the simulation doesn't do"
        return "its inputs are not int8 on one grid"

    def coverage(self) -> Coverage:
        ids = numbered(self.graph)
        kept = tuple(Kept(ids[op], op.type, op.writes[0], why) for op, why in self.reasons.items() if op in ids)
        fp32 = Counter(entry.op_type for entry in kept)
        return Coverage(Counter(op.type for op in ids) - fp32, fp32, kept)
