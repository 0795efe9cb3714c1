"""What ops on sequences become in a directly run program: recurrent kernels of oneDNN, steps in NumPy or Paddle's own.

A plan has one sequence, so what Paddle finds in its level of detail ("LoD") is all steps here, and nothing is padded.
Attributes and their meaning are those of Paddle's kernels: fusion_gru_kernel.cc and fusion_lstm_kernel.cc in
paddle/phi/kernels/fusion/onednn, ctc_align_op.h in paddle/fluid/operators, sequence_pooling.cc in
paddle/phi/kernels/funcs.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import UnsupportedError
from quant.ir.fusion import state_matrix
from quant.ir.graph import Op
from quant.ir.ops.activations import KNOWN
from quant.runtime.direct.memory import Workspace
from quant.runtime.direct.onednn import any_layout, memory_of
from quant.runtime.direct.primitives import Attributes, gru, lstm

__all__ = ["EMIT_SEQUENCES", "gives_sequence"]

Array = NDArray[Any]
_GATES = {"fusion_gru": 3, "fusion_lstm": 4}
_ACTIVATIONS = {"gate_activation": "sigmoid", "activation": "tanh", "cell_activation": "tanh",
                "candidate_activation": "tanh"}  # fmt: skip


# Ops that do the same with each step, so that what they make of a sequence is one.
_STEP_BY_STEP = {
    *("lookup_table", "lookup_table_v2", "quantize", "dequantize", "fc", "concat", "softmax", "layer_norm", "scale"),
    *("fusion_gru", "fusion_lstm", "top_k", "ctc_align", "crf_decoding", "assign", "dropout"),
    *("elementwise_add", "fused_elementwise_add", "elementwise_mul", "elementwise_sub", *KNOWN),
}


def gives_sequence(op: Op) -> bool:
    """Whether an op makes a sequence of one. Raises UnsupportedError when only Paddle knows what it makes."""
    if op.type not in {*_STEP_BY_STEP, "sequence_pool"} or (op.type == "concat" and op.attr("axis", 0) == 0):
        raise UnsupportedError(f"{op.type} of a sequence")
    return op.type in _STEP_BY_STEP


def _steps(work: Workspace, name: str) -> Array:
    """A sequence [steps, ...], for NumPy or Paddle to read."""
    if name not in work.sequences:
        raise UnsupportedError(f"{name!r} is no sequence")
    return work.steady(name)


def _only(work: Workspace, op: Op, *slots: str) -> None:
    """Raises UnsupportedError when another output than those in these slots is of use."""
    for slot, names in op.outputs.items():
        if slot not in slots and any(map(work.wanted, names)):
            raise UnsupportedError(f"{op.type} with its output {slot}")


def _recurrent(work: Workspace, op: Op) -> None:
    """One layer, one direction. INT8 kernels read uint8 with a shift, and write that or float32."""
    gates, x, out = _GATES[op.type], work.value(op.input("X")), op.output("Hidden")
    _only(work, op, "Hidden")
    known = all(op.attr(name, kind) == kind for name, kind in _ACTIVATIONS.items())
    if not known or op.attr("use_peepholes", False) or op.input("H0") or op.input("C0"):
        raise UnsupportedError(f"{op.type} with peepholes, other activations or a state to begin with")
    int8 = op.attr("mkldnn_data_type", "") == "int8"
    if x.dtype != (np.uint8 if int8 else np.float32) or x.ndim != 2 or op.input("X") not in work.sequences:
        raise UnsupportedError(f"{op.type} of {x.dtype.name} {list(x.shape)}, or of no sequence")
    (steps, width), hidden = x.shape, work.constants.shape(op.input("WeightH"))[0]
    sizes = {"WeightX": (width, gates * hidden), "WeightH": (hidden, gates * hidden), "Bias": (1, gates * hidden)}
    given = {slot: work.constants.shape(op.input(slot)) for slot in sizes}
    if given != sizes:
        raise UnsupportedError(f"{op.type} of {width} channels with {given}")
    rounding, stored, zero = _rounding(op, gates * hidden) if int8 else (Attributes(), "float32", 0)
    target = work.new(out, (steps, hidden), "float32" if op.attr("force_fp32_output", False) else stored)
    operands = {
        "src": work.memory(work.reordered(x, (0, 1)).reshape(steps, 1, width)),
        "src_iter": memory_of(np.full((1, 1, 1, hidden), zero, stored)),
        "bias": memory_of(_gates(op, work.constants.value(op.input("Bias"))).reshape(1, 1, gates, hidden)),
        "dst": work.memory(target.reshape(steps, 1, hidden)),
    }
    shapes = {"weights": (1, 1, width, gates, hidden), "weights_iter": (1, 1, hidden, gates, hidden)}
    of_x, of_h = (any_layout(shape, "int8" if int8 else "float32") for shape in shapes.values())
    src, state, bias, dst = (operands[name].layout for name in ("src", "src_iter", "bias", "dst"))
    reverse = op.attr("is_reverse", False)
    if op.type == "fusion_lstm":
        operands["src_iter_c"] = memory_of(np.zeros((1, 1, 1, hidden), np.float32))
        cell = operands["src_iter_c"].layout
        made = lstm(src, state, cell, of_x, of_h, bias, dst, reverse=reverse, attributes=rounding)
    else:
        made = gru(src, state, of_x, of_h, bias, dst, reverse=reverse, attributes=rounding)

    def of_input() -> Array:
        return _gates(op, work.constants.value(op.input("WeightX"))).reshape(shapes["weights"])

    def of_state() -> Array:
        matrix = state_matrix(op, work.constants.value(op.input("WeightH")))
        return _gates(op, matrix).reshape(shapes["weights_iter"])

    packed, key = work.constants.weights, f"{op.input('WeightX')} {out}"
    operands["weights"] = packed(key, made.weights, of_input, rounding)
    operands["weights_iter"] = packed(f"{key} state", made.weights_iter, of_state, rounding)
    work.kernel(made, **operands)


def _rounding(op: Op, outputs: int) -> tuple[Attributes, str, int]:
    """How a kernel rounds data and weights, the type of the data, and its zero."""
    scales, shift = np.asarray(op.attr("Scale_weights"), np.float32), op.attr("Shift_data")
    if scales.shape != (outputs,):
        raise UnsupportedError(f"{op.type} with {scales.size} scales for {outputs} outputs")
    return Attributes(recurrent=(op.attr("Scale_data"), shift, scales)), "uint8", round(shift)


def _gates(op: Op, weight: Array) -> Array:
    """Weights or biases [.., gates * hidden] as oneDNN's kernels want them.

    Its LSTM has the candidate behind input and forget gate, not before. Its GRU mixes state and candidate as Paddle's
    "origin mode" does; the other way round is a negated update gate: sigmoid(-x) is 1 - sigmoid(x).
    """
    parts = np.split(weight, _GATES[op.type], axis=-1)
    if op.type == "fusion_lstm":
        candidate, *others, last = parts
        return np.concatenate([*others, candidate, last], axis=-1)
    update, *others = parts
    return np.concatenate([update if op.attr("origin_mode", False) else -update, *others], axis=-1)


def _pool(work: Workspace, op: Op) -> None:
    x, kind = _steps(work, op.input("X")), op.attr("pooltype", "AVERAGE")
    _only(work, op, "Out")
    if kind not in _POOLS:  # sums of floats depend on their order
        raise UnsupportedError(f"sequence_pool {kind}")
    target = work.new(op.output("Out"), (1, *x.shape[1:]), x.dtype.name)
    work.numpy(_POOLS[kind], x, target[0])


def _peaks(x: Array, out: Array) -> None:
    np.maximum.reduce(x, axis=0, out=out)


_POOLS: dict[str, Callable[[Array, Array], None]] = {
    "MAX": _peaks,
    "FIRST": lambda x, out: np.copyto(out, x[0]),
    "LAST": lambda x, out: np.copyto(out, x[-1]),
}


def _top_1(work: Workspace, op: Op) -> None:
    x = work.steady(op.input("X"))
    _only(work, op, "Indices")
    if x.ndim != 2 or x.dtype != np.float32 or op.attr("k", 1) != 1 or op.input("K"):
        raise UnsupportedError("top_k of more than one")
    target = work.new(op.output("Indices"), (len(x), 1), "int64")
    work.numpy(_largest, x, target[:, 0])


def _largest(x: Array, out: Array) -> None:
    np.argmax(x, axis=1, out=out)


def _ctc_align(work: Workspace, op: Op) -> None:
    """Labels without repetitions and blanks. Where none is left Paddle gives one -1, and no sequence."""
    x, out = _steps(work, op.input("Input")), op.output("Output")
    _only(work, op, "Output")
    if work.readers.get(out) or op.input("InputLength") or x.ndim != 2 or x.shape[1] != 1:
        raise UnsupportedError("ctc_align that is read, or has padded input")
    target = work.new(out, x.shape, x.dtype.name)
    work.counts[out] = np.zeros(1, np.int64)
    work.numpy(_align, x[:, 0], op.attr("blank", 0), op.attr("merge_repeated", True), target[:, 0], work.counts[out])


def _align(labels: Array, blank: int, merge: bool, out: Array, count: Array) -> None:
    kept = labels != blank
    if merge:
        kept[1:] &= labels[1:] != labels[:-1]
    found = labels[kept]
    out[: len(found)] = found
    count[0] = len(found)
    if not len(found):
        out[0] = -1


def _crf_decoding(work: Workspace, op: Op) -> None:
    x, weights, out = _steps(work, op.input("Emission")), op.input("Transition"), op.output("ViterbiPath")
    tags = work.constants.shape(weights)[-1]
    if op.input("Label") or x.dtype != np.float32 or x.shape[1:] != (tags,) or x.strides != (4 * tags, 4):
        raise UnsupportedError(f"crf_decoding of {x.dtype.name} {list(x.shape)} for {tags} tags")
    transition = work.constants.table(weights)
    if transition.shape != (tags + 2, tags) or transition.dtype != np.float32:
        raise UnsupportedError(f"crf_decoding with transitions {transition.dtype.name} {list(transition.shape)}")
    target = work.new(out, (len(x), 1), "int64")
    work.numpy(_decode, _tensor(x, [0, len(x)]), _tensor(transition), target)


def _tensor(array: Array, offsets: list[int] | None = None) -> Any:
    """A tensor of Paddle's that lies where the array does."""
    from paddle import CPUPlace
    from paddle.base.core import DenseTensor, eager

    held = DenseTensor()
    held.set(array, CPUPlace(), True)
    if offsets:
        held.set_lod([offsets])
    with _ops_are_called():
        return eager.Tensor(held)


def _decode(emission: Any, transition: Any, out: Array) -> None:
    """The best path of tags, by Paddle's own kernel: it is compiled for this, and oneDNN has none."""
    from paddle import _legacy_C_ops

    with _ops_are_called():
        np.copyto(out, _legacy_C_ops.crf_decoding(emission, transition, None, None).numpy())


def _ops_are_called() -> AbstractContextManager[Any]:
    """The mode in which ops can be called; a program that builds static graphs would end with a crash."""
    from paddle import in_dynamic_mode
    from paddle.base import dygraph

    return nullcontext() if in_dynamic_mode() else dygraph.guard()


EMIT_SEQUENCES: dict[str, Callable[[Workspace, Op], None]] = {
    "fusion_gru": _recurrent,
    "fusion_lstm": _recurrent,
    "sequence_pool": _pool,
    "top_k": _top_1,
    "ctc_align": _ctc_align,
    "crf_decoding": _crf_decoding,
}
