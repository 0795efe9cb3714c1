"""Runs a converted model on oneDNN directly, without Paddle's executor between one kernel and the next.

The same kernels with the same scales as Paddle's oneDNN ops run (paddle/phi/kernels/onednn, and fusion/onednn), so the
outputs are the same. What is spared is what Paddle does for each op of each run: look up names, check shapes, build
contexts and cache keys; 15 to 40 microseconds an op. Also spared: copies of residuals (a sum is taken in place where
nobody reads its second operand afterwards), transposes and reshapes (an array's strides say it all), and a pass over
memory for an addition behind a product or the rounding of a softmax.

A `Program` holds what doesn't depend on the sizes of the inputs, a `Plan` what does: kernels, memory, their order.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.activations import KNOWN, Eltwise, conv_activation
from quant.errors import DataError, ModelError, UnsupportedError
from quant.graph import DTYPE_NUMBERS, Graph, Op
from quant.onednn import (
    ARG,
    Attributes,
    Layout,
    Memory,
    Primitive,
    RefusedError,
    any_layout,
    call_of,
    flat,
    memory_of,
    pack,
    primitive,
)

__all__ = ["Plan", "Program"]

Array = NDArray[Any]
_ALIGN = 64  # bytes: a cache line, and a vector of AVX512
_DTYPES = {number: name for name, number in DTYPE_NUMBERS.items()}
_ADDITIONS = ("elementwise_add", "fused_elementwise_add")
_SPATIAL = ("fused_conv2d", "conv2d", "depthwise_conv2d", "pool2d", "split", "concat")  # want their channels last


class Program:
    """A model that can be run directly. Raises UnsupportedError when it can't.

    Plans for `capacity` sets of input shapes are kept; the one used least recently goes first.
    """

    def __init__(self, graph: Graph, capacity: int = 10) -> None:
        self.graph, self.capacity = graph, capacity
        self.constants: dict[str, Array] = dict(graph.params)
        self.computed: dict[str, Op] = {}  # variable -> the op that computes it from constants
        self.packed: dict[str, list[Memory]] = {}  # weight -> its values in the layouts that kernels wanted
        self.ops = tuple(op for op in graph.ops if not self._folds(op))
        if unknown := sorted({op.type for op in self.ops} - _EMIT.keys()):
            raise UnsupportedError(f"op {unknown[0]!r}")
        if any(graph.vars[name].lod_level for name in graph.feeds):
            raise UnsupportedError("sequences of unequal length")
        self.readers = graph.readers()
        self.followers = self._find_followers()
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def plan(self, arrays: Mapping[str, Array]) -> "Plan":
        """The plan for inputs of these shapes. Raises UnsupportedError when oneDNN has no kernel for one of its ops."""
        key = tuple((name, arrays[name].shape, arrays[name].dtype.str) for name in self.graph.feeds)
        if key not in self._plans:
            if len(self._plans) >= self.capacity:
                self._plans.popitem(last=False)
            self._plans[key] = Plan(self, {name: arrays[name] for name in self.graph.feeds})
        self._plans.move_to_end(key)
        return self._plans[key]

    def close(self) -> None:
        """Give memory back."""
        self._plans.clear()
        self.packed.clear()
        self.constants.clear()

    def weights(self, name: str, wanted: Layout, make: Callable[[], Array]) -> Memory:
        """A constant in a kernel's layout; `make` gives its values."""
        have = self.packed.setdefault(name, [])
        found = next((memory for memory in have if memory.layout == wanted), None)
        if found is None:
            found = pack(make(), wanted)
            have.append(found)
        return found

    def constant(self, name: str) -> Array:
        """A parameter, or what is computed from parameters alone, which is done when it is first asked for."""
        if name not in self.constants:
            if name not in self.computed:
                raise UnsupportedError(f"{name!r} is not constant")
            op = self.computed[name]
            x = self.constant(op.input("X"))
            if op.type == "cast":
                found = x.astype(_DTYPES[op.attr("out_dtype")])
            elif op.type == "reshape2":
                found = x.reshape(_shape_of(op, x.shape))
            else:
                found = x * _beside(self.constant(op.input("Y")), x.ndim, op.attr("axis", -1))
            self.constants[name] = found
        return self.constants[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a constant."""
        if name not in self.computed:
            return self.constant(name).shape
        op = self.computed[name]
        before = self.shape(op.input("X"))
        return _shape_of(op, before) if op.type == "reshape2" else before

    def integers(self, name: str, scales: Sequence[float], axis: int) -> Array:
        """A weight as its kernel stores it: rounded, `scales` integers to a unit along `axis`.

        What is stored as integers with a step that is the scales' inverse, or twice that, are those very integers.
        """
        factors = np.asarray(scales, np.float32)
        stored, step = self._stored(name, axis)
        if stored is not None and step.size == factors.size:
            times = factors * step
            whole = round(float(times[0]))
            if whole in (1, 2) and np.allclose(times, whole, rtol=1e-4):
                return stored if whole == 1 else stored * np.int8(whole)
        weight = self.constant(name)
        along = factors.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        return np.clip(np.rint(weight * along), -128, 127).astype(np.int8)

    def _stored(self, name: str, axis: int) -> tuple[Array | None, Array]:
        """The int8 parameter and its steps along `axis` that a weight is computed from (None: it isn't)."""
        shape, op = self.shape(name), self.computed.get(name)
        flat = op is not None and op.type == "reshape2"  # then stored as [1, channels, the rest]
        if op is not None and flat:
            op = self.computed.get(op.input("X"))
        cast = self.computed.get(op.input("X")) if op is not None and op.type == "elementwise_mul" else None
        if op is None or cast is None or cast.type != "cast" or op.attr("axis", -1) != (1 if flat else axis):
            return None, np.empty(0)
        integers = self.constant(cast.input("X"))
        fits = integers.dtype == np.int8 and (not flat or (axis == 0 and integers.shape[:2] == (1, shape[0])))
        return (integers.reshape(shape) if fits else None), self.constant(op.input("Y"))

    def _folds(self, op: Op) -> bool:
        """Whether an op computes a constant."""
        known = all(name in self.constants or name in self.computed for name in op.reads)
        if op.type not in ("cast", "elementwise_mul", "reshape2") or not known:
            return False
        self.computed[op.output("Out")] = op
        return True

    def _find_followers(self) -> dict[Op, Op]:
        """Op -> the one behind it that its kernel does as well.

        An addition behind a product with a float32 result, when what is added is there by then; the rounding of a
        softmax. A ReLU behind batch normalisation.
        """
        place = {op: number for number, op in enumerate(self.ops)}
        written = {name: place[op] for op in self.ops for name in op.writes}
        found: dict[Op, Op] = {}
        for op in self.ops:
            out = op.output("Out") or op.output("Y")
            after = self.only_reader(out)
            if after is None or after in found.values():
                continue
            if op.type in ("fc", "fused_matmul") and op.attr("force_fp32_output") and after.type in _ADDITIONS:
                x, y = after.input("X"), after.input("Y")
                other = y if x == out else x
                plain = not op.attr("fuse_activation", "") and not op.input("ResidualData") and x != y
                if plain and after.attr("axis", -1) == -1 and written.get(other, -1) < place[op]:
                    found[op] = after
            rounds = op.type == "softmax" and after.type == "quantize" and not after.attr("Shift", 0.0)
            if rounds or (op.type == "batch_norm" and after.type == "relu"):
                found[op] = after
        return found

    def only_reader(self, name: str) -> Op | None:
        found = self.readers.get(name, [])
        return found[0] if name and len(found) == 1 and name not in self.graph.fetches else None


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel and what it reads and writes, by oneDNN's numbers of the operands."""

    made: Primitive
    operands: Mapping[int, Memory]


_Step = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments; what it returns is 0, None or wrong


@dataclass(eq=False)
class _Block:
    """A piece of memory, and the variables in it that will still be read."""

    bytes: Array
    live: set[str] = field(default_factory=set)


class Plan:
    """The kernels for one set of input shapes, in order: `feed`, `run`, `outputs`.

    `outputs` are overwritten by the next run. What is fed isn't copied, but for the ids of lookups: it must stay
    unchanged until `run` is over.
    """

    def __init__(self, program: Program, inputs: Mapping[str, Array]) -> None:
        self.program = program
        # Other arrays of these shapes are fed later: kernels are then told their place, NumPy steps read copies.
        self.inputs = {name: np.empty(array.shape, array.dtype) for name, array in inputs.items()}
        self.values: dict[str, Array] = dict(self.inputs)  # variable -> its values, a view of some block's bytes
        self.blocks: dict[str, _Block] = {}
        self.free: list[_Block] = []
        self.moving: list[tuple[str, int, Memory]] = []  # input, offset in it, and what looks at it
        self.copied: set[str] = set()
        self.temporary: list[str] = []  # variables of this op alone
        self.calls: list[_Kernel | _Step] = []
        followers = set(program.followers.values())
        ops = [op for op in program.ops if op not in followers]
        self.last: dict[str, int] = {}
        for number, op in enumerate(ops):
            for name in self._touched(op):
                self.last[name] = number
        self.ends: dict[Op, int] = {}  # op -> its last call
        for self.number, op in enumerate(ops):
            try:
                _EMIT[op.type](self, op)
            except (RefusedError, ValueError) as error:  # ValueError: NumPy's, of sizes that don't fit together
                raise UnsupportedError(f"op {op.type!r} (output {op.writes[0]!r}): {error}") from error
            self.ends[op] = len(self.calls) - 1
            self._release(op)
        self.outputs = {name: self.values[name] for name in program.graph.fetches}
        self.steps = self._finished()

    def feed(self, arrays: Mapping[str, Array]) -> None:
        for name, offset, memory in self.moving:
            memory.move(arrays[name], offset)
        for name in self.copied:
            np.copyto(self.inputs[name], arrays[name])

    def run(self) -> None:
        try:
            for function, arguments in self.steps:
                if function(*arguments):
                    raise ModelError("oneDNN failed to run a kernel")
        except IndexError as error:
            raise DataError(f"an id is not in the embedding table: {error}") from error

    def watch(self, seen: Callable[[str, str], None]) -> None:
        """Have `seen(op type, variable)` called in later runs when the last kernel of an op is done.

        Ops that run nothing, such as a reshape, aren't told of: their last call would be that of the op before.
        """
        done: dict[int, Op] = {}
        for op, place in self.ends.items():
            done.setdefault(place, op)
        steps = []
        for place, step in enumerate(self.steps):
            steps.append(step)
            if place in done:
                steps.append((lambda op: seen(op.type, op.writes[0]), (done[place],)))
        self.steps = steps

    # --- memory

    def _touched(self, op: Op) -> Iterable[str]:
        follower = self.program.followers.get(op)
        return (*op.reads, *(follower.reads if follower else ()))

    def _release(self, op: Op) -> None:
        """Give back the memory of what nobody reads after this op."""
        follower = self.program.followers.get(op)
        for name in {*self._touched(op), *op.writes, *(follower.writes if follower else ()), *self.temporary}:
            block = self.blocks.get(name)
            if block is None or self.last.get(name, -1) > self.number or name in self.program.graph.fetches:
                continue
            block.live.discard(name)
            if not block.live and block not in self.free:
                self.free.append(block)
        self.temporary = []

    def new(self, name: str, shape: Sequence[int], dtype: str, order: Sequence[int] | None = None) -> Array:
        """Memory for a variable. `order`: the dimensions from the outermost to the innermost in memory.

        Of the free blocks that are large enough the one freed last is taken: its lines are still in the caches.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = next((block for block in reversed(self.free) if size <= block.bytes.size <= 4 * size), None)
        if block is None:
            block = _Block(_aligned(size))
        else:
            self.free.remove(block)
        order = tuple(range(len(shape))) if order is None else tuple(order)
        stored = block.bytes[:size].view(dtype).reshape([shape[dim] for dim in order])
        return self._keep(name, stored.transpose(np.argsort(order)), block)

    def _keep(self, name: str, array: Array, block: _Block | None) -> Array:
        self.values[name] = array
        if block is not None:
            self.blocks[name] = block
            block.live.add(name)
        return array

    def view(self, name: str, of: str, array: Array) -> None:
        """A variable that lies where another does, be it looked at in another way."""
        self._keep(name, array, self.blocks.get(of))

    def value(self, name: str) -> Array:
        return self.values[name] if name in self.values else self.program.constant(name)

    def memory(self, array: Array) -> Memory:
        made = memory_of(array)
        for name, placeholder in self.inputs.items():
            offset = array.ctypes.data - placeholder.ctypes.data
            if 0 <= offset < placeholder.nbytes:
                self.moving.append((name, offset, made))
        return made

    # --- steps

    def kernel(self, made: Primitive, **operands: Memory) -> None:
        self.calls.append(_Kernel(made, {_argument(name): memory for name, memory in operands.items()}))

    def numpy(self, function: Callable[..., None], *arguments: Any) -> None:
        self.calls.append((function, arguments))

    def _finished(self) -> list[_Step]:
        """All calls; kernels share one piece of scratch memory, because they run one after the other."""
        scratches = [call.made.scratchpad for call in self.calls if isinstance(call, _Kernel)]
        spare = _aligned(max((scratch.bytes for scratch in scratches), default=0))
        self.kept: list[object] = [spare]  # what the steps point at
        steps: list[_Step] = []
        for call in self.calls:
            if isinstance(call, _Kernel):
                scratch = call.made.scratchpad
                extra = {ARG["scratchpad"]: Memory(scratch, spare)} if scratch.bytes else {}
                operands = {**call.operands, **extra}
                self.kept += [call.made, operands]
                steps.append(call_of(call.made, operands))
            else:
                steps.append(call)
        return steps

    def reordered(self, array: Array, order: Sequence[int]) -> Array:
        """The same values in another order in memory, until this op is done; the very array if it lies so already."""
        if _lies_in(array, order):
            return array
        name = f"temporary {len(self.calls)}"
        self.temporary.append(name)
        return self.copy(array, self.new(name, array.shape, array.dtype.name, order))

    def copy(self, array: Array, target: Array) -> Array:
        source, goal = self.memory(array), self.memory(target)
        self.kernel(primitive("reorder", Attributes(), source.layout, goal.layout), src=source, dst=goal)
        return target

    def from_input(self, name: str) -> bool:
        """Whether a variable is an input that was at most reshaped; its values are then copied on feeding."""
        place = self.value(name).ctypes.data
        source = next((key for key, array in self.inputs.items() if array.ctypes.data == place), None)
        if source is not None:
            self.copied.add(source)
        return source is not None

    def dies(self, name: str) -> bool:
        """Whether nobody reads a variable, or what shares its memory, after this op."""
        block = self.blocks.get(name)
        return block is not None and all(
            self.last.get(other, -1) <= self.number and other not in self.program.graph.fetches for other in block.live
        )


def _argument(name: str) -> int:
    """oneDNN's number of an operand: "src", "scales_src", "zero_points_dst", "several_2", "post_op"."""
    if name == "post_op":  # the second operand of the first post-op
        return ARG["post_op"] | ARG["src1"]
    kind, _, of = name.rpartition("_")
    if kind == "several":
        return ARG["several"] + int(of)
    return ARG[kind] | ARG[of] if kind else ARG[name]


def _aligned(size: int) -> Array:
    raw = np.empty(max(size, 1) + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + max(size, 1)]


def _lies_in(array: Array, order: Sequence[int]) -> bool:
    """Whether an array is dense with its dimensions in this order; those of size 1 lie anywhere."""
    expected = array.itemsize
    for dim in reversed(order):
        if array.shape[dim] != 1:
            if array.strides[dim] != expected:
                return False
            expected *= array.shape[dim]
    return True


def _beside(array: Array, ndim: int, axis: int) -> Array:
    """The second operand of an elementwise op, with the dimensions that Paddle's `axis` leaves out."""
    trailing = 0 if axis < 0 else ndim - axis - array.ndim
    shape = (*array.shape, *([1] * trailing))
    return array.reshape(*([1] * (ndim - len(shape))), *shape)


_LAST = (0, 2, 3, 1)  # the order of an image's dimensions in memory: channels last


def _order_of(array: Array) -> list[int]:
    """The dimensions of an array from the outermost to the innermost in memory."""
    return sorted(range(array.ndim), key=lambda dim: (-array.strides[dim], dim))


# --- ops


def _scales(*values: float) -> Memory:
    return flat(values)


def _quantize(plan: Plan, op: Op) -> None:
    x, out, shift = plan.value(op.input("Input")), op.output("Output"), op.attr("Shift", 0.0)
    if op.attr("bfloat16", False) or x.dtype != np.float32:
        raise UnsupportedError("quantize to bfloat16")
    spatial = x.ndim == 4 and any(reader.type in _SPATIAL for reader in plan.program.readers.get(out, []))
    dtype = "int8" if op.attr("is_negative_input", False) else "uint8"
    target = plan.new(out, x.shape, dtype, _LAST if spatial else _order_of(x))
    source, goal = plan.memory(x), plan.memory(target)
    extra = {"zero_points_dst": flat([shift], "int32")} if shift else {}
    attributes = Attributes({"src": 0}, ("dst",) if shift else ())
    made = primitive("reorder", attributes, source.layout, goal.layout)
    plan.kernel(made, src=source, dst=goal, scales_src=_scales(op.attr("Scale")), **extra)


def _dequantize(plan: Plan, op: Op) -> None:
    x, out, shift = plan.value(op.input("Input")), op.output("Output"), op.attr("Shift", 0.0)
    target = plan.new(out, x.shape, "float32", _order_of(x))
    source, goal = plan.memory(x), plan.memory(target)
    extra = {"zero_points_src": flat([shift], "int32")} if shift else {}
    made = primitive("reorder", Attributes({"dst": 0}, ("src",) if shift else ()), source.layout, goal.layout)
    plan.kernel(made, src=source, dst=goal, scales_dst=_scales(op.attr("Scale")), **extra)


def _pads(op: Op, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and behind, per spatial dimension (paddle/phi/kernels/funcs/pooling.h, UpdatePadding)."""
    given, rank = list(op.attr("paddings", [0] * len(sizes))), len(sizes)
    algorithm = op.attr("padding_algorithm", "EXPLICIT")
    if algorithm == "VALID":
        return [0] * rank, [0] * rank
    if algorithm == "SAME":
        total = [
            max((-(-size // step) - 1) * step + taps - size, 0)
            for size, taps, step in zip(sizes, kernel, strides, strict=True)
        ]
        return [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
    return (given, given) if len(given) == rank else (given[::2], given[1::2])


def _activation(op: Op) -> list[tuple[Any, ...]]:
    """The post-op of `fuse_activation` (paddle/phi/backends/onednn/onednn_helper.h)."""
    name = op.attr("fuse_activation", "")
    return [_kernels_words(Eltwise(name, op.attr("fuse_alpha", 0.0), op.attr("fuse_beta", 0.0)))] if name else []


def _conv(plan: Plan, op: Op) -> None:
    x, name, out = plan.value(op.input("Input")), op.input("Filter"), op.output("Output")
    filters = plan.program.shape(name)
    if x.ndim != 4 or op.attr("data_format", "NCHW") not in ("NCHW", "AnyLayout"):
        raise UnsupportedError("a convolution that isn't two-dimensional, channels first")
    int8 = op.attr("mkldnn_data_type") == "int8"
    strides, dilations, groups = op.attr("strides"), op.attr("dilations", [1, 1]), op.attr("groups", 1)
    spread = [1 + (taps - 1) * step for taps, step in zip(filters[2:], dilations, strict=True)]
    before, behind = _pads(op, x.shape[2:], spread, strides)
    sizes = zip(x.shape[2:], before, behind, spread, strides, strict=True)
    spatial = [(size + left + right - taps) // step + 1 for size, left, right, taps, step in sizes]
    shape = (x.shape[0], filters[0], *spatial)
    x = plan.reordered(x, _LAST)
    bias = op.input("Bias")
    residual = op.input("ResidualData") if op.attr("fuse_residual_connection", False) else ""
    post: list[tuple[Any, ...]] = []
    dtype = "float32"
    unsigned = int8 and op.attr("fuse_activation", "") in ("relu", "relu6")
    if int8 and not op.attr("force_fp32_output", False):
        dtype = "uint8" if unsigned else "int8"
    if residual:
        other = plan.value(residual)
        dtype = other.dtype.name  # a sum is stored in its residual's type
        post.append(("sum", 1.0 / op.attr("Scale_in_eltwise", 1.0) if int8 else 1.0, dtype))
        in_place = plan.dies(residual) and other.shape == shape and _lies_in(other, _LAST)
        if in_place and plan.blocks[residual] is not plan.blocks.get(op.input("Input")):
            plan.view(out, residual, other)
            target = other
        else:
            target = plan.copy(other, plan.new(out, shape, dtype, _LAST))
    else:
        target = plan.new(out, shape, dtype, _LAST)
    post += _activation(op)
    grouped = (groups, filters[0] // groups, *filters[1:]) if groups > 1 else filters
    scales: dict[str, int] = {}
    if int8:
        per_channel = len(op.attr("Scale_weights")) > 1
        scales = {"src": 0, "weights": (3 if groups > 1 else 1) if per_channel else 0}
        if dtype != "float32":
            scales["dst"] = 0
    source, goal = plan.memory(x), plan.memory(target)
    made = primitive(
        "convolution",
        Attributes(scales, post=post),
        source.layout,
        any_layout(grouped, "int8" if int8 else "float32"),
        any_layout((filters[0],), "float32") if bias else None,
        goal.layout,
        strides,
        [step - 1 for step in dilations],
        before,
        behind,
    )

    def values() -> Array:
        made = plan.program.integers(name, op.attr("Scale_weights"), 0) if int8 else plan.program.constant(name)
        return made.reshape(grouped)

    operands = {"src": source, "dst": goal, "weights": plan.program.weights(f"{name} {out}", made.weights, values)}
    if bias:
        operands["bias"] = flat(plan.program.constant(bias))
    plan.kernel(made, **operands, **_scale_memories(op, scales, "Scale_in", "Scale_weights"))
    if unsigned and dtype == "int8":  # not negative, and read as uint8 from here on
        plan.values[out] = target.view(np.uint8)


def _scale_memories(op: Op, scales: Mapping[str, int], source: str, weights: str) -> dict[str, Memory]:
    """Paddle's scales are factors from real values to stored integers, oneDNN's the other way round."""
    given = {"src": op.attr(source), "weights": op.attr(weights), "dst": op.attr("Scale_out", 1.0)}
    return {f"scales_{name}": flat(np.float32(1.0) / np.asarray(given[name], np.float32)) for name in scales}


def _fc(plan: Plan, op: Op) -> None:
    x, name, out = plan.value(op.input("Input")), op.input("W"), op.output("Out")
    columns, bias = plan.program.shape(name)[1], op.input("Bias")
    int8 = op.attr("mkldnn_data_type") == "int8"
    if op.attr("activation_type", "") or op.input("ResidualData"):
        raise UnsupportedError("fc with activation_type or a residual")
    rows = op.attr("in_num_col_dims", 1)
    shape = (*x.shape[:rows], columns)
    flat_x = plan.reordered(x, range(x.ndim)).reshape(int(np.prod(x.shape[:rows])), -1)
    whole = not int8 or op.attr("force_fp32_output", False)
    target = plan.new(out, shape, "float32" if whole else "int8")
    follower = plan.program.followers.get(op)
    post = _activation(op)
    operands: dict[str, Memory] = {}
    if follower is not None:
        other = plan.value(next(read for read in follower.reads if read != out))
        beside = np.broadcast_to(_beside(other, len(shape), -1), shape)
        if not _lies_in(beside, range(len(shape))):
            beside = plan.reordered(other, range(other.ndim)) if other.shape == shape else other
        operands["post_op"] = plan.memory(_rows_of(beside, shape, flat_x.shape[0]))
        post = [("add", operands["post_op"].layout)]
        plan.view(follower.output("Out"), out, target)
    scales = {"src": 0, "weights": 1 if len(op.attr("Scale_weights")) > 1 else 0} if int8 else {}
    if not whole:
        scales["dst"] = 0
    source, goal = plan.memory(flat_x), plan.memory(target.reshape(flat_x.shape[0], -1))
    made = primitive(
        "inner_product",
        Attributes(scales, post=post),
        source.layout,
        any_layout(plan.program.shape(name)[::-1], "int8" if int8 else "float32"),
        any_layout((columns,), "float32") if bias else None,
        goal.layout,
    )

    def values() -> Array:
        made = plan.program.integers(name, op.attr("Scale_weights"), 1) if int8 else plan.program.constant(name)
        return made.T

    operands |= {"src": source, "dst": goal, "weights": plan.program.weights(f"{name} {out}", made.weights, values)}
    if bias:
        operands["bias"] = flat(plan.program.constant(bias))
    plan.kernel(made, **operands, **_scale_memories(op, scales, "Scale_in", "Scale_weights"))


def _rows_of(array: Array, shape: Sequence[int], rows: int) -> Array:
    """What is added to a product's output, in the two dimensions that its kernel sees."""
    if array.size == int(np.prod(shape)):
        return array.reshape(rows, -1)
    if array.size == shape[-1]:
        return array.reshape(1, -1)
    raise UnsupportedError("an addition behind fc that is neither of its shape nor of its columns")


def _matmul(plan: Plan, op: Op) -> None:
    x, y, out = plan.value(op.input("X")), plan.value(op.input("Y")), op.output("Out")
    int8 = op.attr("mkldnn_data_type") == "int8"
    if any(op.attr(name, False) for name in ("trans_x", "transpose_X")):
        x = x.swapaxes(-1, -2)
    if any(op.attr(name, False) for name in ("trans_y", "transpose_Y")):
        y = y.swapaxes(-1, -2)
    alpha = op.attr("matmul_alpha", 1.0) * op.attr("alpha", 1.0)
    if x.ndim != y.ndim or x.ndim < 2 or (not int8 and (alpha != 1.0 or x.dtype != np.float32)):
        raise UnsupportedError("a product of operands of unlike rank")
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    whole = not int8 or op.attr("force_fp32_output", False)
    reader = plan.program.only_reader(out)
    # Where a transpose follows, write in the order that makes its output dense.
    order = reader.attr("axis") if reader is not None and reader.type in ("transpose2", "fused_transpose") else None
    target = plan.new(out, shape, "float32" if whole else "int8", order)
    post: list[tuple[Any, ...]] = []
    operands: dict[str, Memory] = {}
    follower = plan.program.followers.get(op)
    if follower is not None:
        other = plan.value(next(read for read in follower.reads if read != out))
        operands["post_op"] = plan.memory(_beside(other, len(shape), -1))
        post = [("add", operands["post_op"].layout)]
        plan.view(follower.output("Out"), out, target)
    scales = {"src": 0, "weights": 0, **({} if whole else {"dst": 0})} if int8 else {}
    memories = _scale_memories(op, scales, "Scale_x", "Scale_y") if int8 else {}
    if int8 and alpha != 1.0:
        memories["scales_src"] = flat([alpha / op.attr("Scale_x")])
    left, right, goal = plan.memory(x), plan.memory(y), plan.memory(target)
    made = primitive("matmul", Attributes(scales, post=post), left.layout, right.layout, None, goal.layout)
    plan.kernel(made, src=left, weights=right, dst=goal, **operands, **memories)


def _pool(plan: Plan, op: Op) -> None:
    x, out = plan.value(op.input("X")), op.output("Out")
    if x.ndim != 4 or op.attr("data_format", "NCHW") not in ("NCHW", "AnyLayout"):
        raise UnsupportedError("a pooling that isn't two-dimensional, channels first")
    kernel, strides, sizes = list(op.attr("ksize")), list(op.attr("strides", [1, 1])), x.shape[2:]
    kind = op.attr("pooling_type")
    if op.attr("global_pooling", False) or (op.attr("adaptive", False) and kernel == [1, 1]):
        kernel, before, behind = list(sizes), [0, 0], [0, 0]
        strides = list(sizes)
    elif op.attr("adaptive", False):
        raise UnsupportedError("adaptive pooling to more than one value")
    else:
        before, behind = _pads(op, sizes, kernel, strides)
    if op.attr("ceil_mode", False):  # as if there were more padding behind
        behind = [
            right + (-(size + left + right - taps) % step)
            for size, left, right, taps, step in zip(sizes, before, behind, kernel, strides, strict=True)
        ]
    dims = zip(sizes, before, behind, kernel, strides, strict=True)
    shape = (*x.shape[:2], *((size + left + right - taps) // step + 1 for size, left, right, taps, step in dims))
    x = plan.reordered(x, _LAST)
    target = plan.new(out, shape, x.dtype.name, _LAST)
    algorithm = "max" if kind == "max" else "avg exclusive" if op.attr("exclusive", True) else "avg"
    source, goal = plan.memory(x), plan.memory(target)
    numbers = (strides, kernel, [0, 0], before, behind)
    made = primitive("pooling", Attributes(), algorithm, source.layout, goal.layout, *numbers)
    plan.kernel(made, src=source, dst=goal)


def _concat(plan: Plan, op: Op) -> None:
    arrays, out = [plan.value(name) for name in op.inputs["X"]], op.output("Out")
    axis = op.attr("axis") % arrays[0].ndim
    if op.input("AxisTensor"):
        raise UnsupportedError("concat along a computed axis")
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    order = _order_of(arrays[0])
    target = plan.new(out, shape, arrays[0].dtype.name, order)
    sources = [plan.memory(plan.reordered(array, order)) for array in arrays]
    goal = plan.memory(target)
    made = primitive("concat", Attributes(), [source.layout for source in sources], goal.layout, axis)
    operands = {f"several_{place}": source for place, source in enumerate(sources)}
    plan.kernel(made, dst=goal, **operands)


def _binary(plan: Plan, op: Op) -> None:
    kind = "elementwise_add" if op.type in _ADDITIONS else op.type
    x, y, out = plan.value(op.input("X")), plan.value(op.input("Y")), op.output("Out")
    if x.ndim < y.ndim or x.dtype != np.float32 or y.dtype != np.float32:
        raise UnsupportedError(f"{op.type} of {x.dtype.name} [{x.ndim} dimensions] and {y.dtype.name} [{y.ndim}]")
    y = _beside(y, x.ndim, op.attr("axis", -1))
    if np.broadcast_shapes(x.shape, y.shape) != x.shape:
        if kind == "elementwise_sub" or np.broadcast_shapes(x.shape, y.shape) != y.shape:
            raise UnsupportedError(f"{op.type} of {list(x.shape)} and {list(y.shape)}")
        x, y = y, x
    order = _order_of(x)
    if y.shape == x.shape:
        y = plan.reordered(y, order)
    target = plan.new(out, x.shape, "float32", order)
    left, right, goal = plan.memory(x), plan.memory(y), plan.memory(target)
    made = primitive("binary", Attributes(), kind, left.layout, right.layout, goal.layout)
    plan.kernel(made, src=left, src1=right, dst=goal)


def _softmax(plan: Plan, op: Op) -> None:
    x, out = plan.value(op.input("X")), op.output("Out")
    follower = plan.program.followers.get(op)
    scales, memories, dtype = {}, {}, "float32"
    if follower is not None:
        out, scales = follower.output("Output"), {"dst": 0}
        dtype = "int8" if follower.attr("is_negative_input", False) else "uint8"
        memories["scales_dst"] = flat([1.0 / follower.attr("Scale")])
    target = plan.new(out, x.shape, dtype, _order_of(x))
    source, goal = plan.memory(x), plan.memory(target)
    axis = op.attr("axis", -1) % x.ndim
    made = primitive("softmax", Attributes(scales), source.layout, goal.layout, axis)
    plan.kernel(made, src=source, dst=goal, **memories)


def _layer_norm(plan: Plan, op: Op) -> None:
    x, out = plan.value(op.input("X")), op.output("Y")
    columns = int(np.prod(x.shape[op.attr("begin_norm_axis", 1) :]))
    if not op.input("Scale") or not op.input("Bias"):
        raise UnsupportedError("layer_norm without scale or bias")
    x = plan.reordered(x, range(x.ndim))
    target = plan.new(out, x.shape, "float32")
    source, goal = plan.memory(x.reshape(-1, columns)), plan.memory(target.reshape(-1, columns))
    made = primitive("layer_normalization", Attributes(), source.layout, goal.layout, op.attr("epsilon", 1e-5))
    constants = {slot: flat(plan.program.constant(op.input(name))) for slot, name in _SCALE_AND_SHIFT.items()}
    plan.kernel(made, src=source, dst=goal, **constants)


_SCALE_AND_SHIFT = {"scale": "Scale", "shift": "Bias"}


def _kernels_words(eltwise: Eltwise) -> tuple[str, float, float]:
    """Paddle's names of activations -> oneDNN's."""
    name = {"relu6": "clip", "leaky_relu": "relu", "gelu": "gelu_erf"}.get(eltwise.name, eltwise.name)
    return name, eltwise.alpha, eltwise.beta


def _scale(op: Op) -> Eltwise:
    factor, bias = op.attr("scale", 1.0), op.attr("bias", 0.0)
    return Eltwise("linear", factor, bias if op.attr("bias_after_scale", True) else factor * bias)


def _eltwise(plan: Plan, op: Op) -> None:
    x, out = plan.value(op.input("X")), op.output("Out")
    if x.dtype != np.float32 or op.input("ScaleTensor"):
        raise UnsupportedError(f"{op.type} of {x.dtype.name}")
    target = plan.new(out, x.shape, "float32", _order_of(x))
    source, goal = plan.memory(x), plan.memory(target)
    eltwise = _scale(op) if op.type == "scale" else conv_activation(op)
    if eltwise is None:
        raise UnsupportedError(f"{op.type} with these attributes")
    name, alpha, beta = _kernels_words(eltwise)
    made = primitive("eltwise", Attributes(), name, source.layout, goal.layout, alpha, beta)
    plan.kernel(made, src=source, dst=goal)


def _lookup(plan: Plan, op: Op) -> None:
    table, ids = plan.program.constant(op.input("W")), plan.value(op.input("Ids"))
    if not plan.from_input(op.input("Ids")):
        raise UnsupportedError("a lookup of computed ids")
    shape = ids.shape[:-1] if op.type == "lookup_table" else ids.shape
    target = plan.new(op.output("Out"), (*shape, table.shape[1]), "float32")
    rows, found = ids.reshape(-1), target.reshape(-1, table.shape[1])
    plan.numpy(_take, table, rows, op.attr("padding_idx", -1), found)


def _take(table: Array, ids: Array, padding: int, out: Array) -> None:
    """Rows of a table; zeros for the id `padding` (-1: none)."""
    if ids.min() < 0:
        raise IndexError(f"{ids.min()}")
    np.take(table, ids, axis=0, out=out)
    if padding >= 0:
        out[ids == padding] = 0.0


def _move(plan: Plan, op: Op) -> None:
    """Ops that only look at an array in another way, or copy it densely where that can't be."""
    name, out = op.input("X"), op.output("Out")
    if any(op.inputs.get(slot) for slot in ("Shape", "ShapeTensor", "AxesTensor", "StartsTensor", "EndsTensor")):
        raise UnsupportedError(f"{op.type} to a computed shape")
    x = plan.value(name)
    if op.type in ("transpose2", "fused_transpose"):
        plan.view(out, name, x.transpose(op.attr("axis")))
        return
    shape = _shape_of(op, x.shape)
    if not _viewable(x, shape):
        x = plan.copy(x, plan.new(out, x.shape, x.dtype.name, _order_for(x, shape)))
        plan.values[out] = x.reshape(shape)
        return
    plan.view(out, name, x.reshape(shape))


def _order_for(array: Array, shape: Sequence[int]) -> list[int]:
    """In which order to copy an array that is then looked at in another shape.

    Where only channels are regrouped, as in a channel shuffle, they stay the last in memory.
    """
    dims = list(range(array.ndim))
    regrouped = array.ndim > 3 and len(shape) == 4 and tuple(shape[2:]) == array.shape[-2:]
    if regrouped and array.strides[-1] > min(array.strides[1:-2]):
        return [0, *dims[-2:], *dims[1:-2]]
    return dims


def _viewable(array: Array, shape: Sequence[int]) -> bool:
    """Whether an array can be looked at in another shape without a copy."""
    stand_in = np.lib.stride_tricks.as_strided(np.empty(1, np.int8), array.shape, array.strides)
    return np.may_share_memory(stand_in, stand_in.reshape(shape))


def _shape_of(op: Op, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that reshape2, squeeze2, unsqueeze2 or a flattening gives."""
    rank = len(shape)
    if op.type == "reshape2":
        wanted = [shape[place] if size == 0 else size for place, size in enumerate(op.attr("shape"))]
        known = int(np.prod([size for size in wanted if size > 0]))
        return tuple(int(np.prod(shape)) // known if size < 0 else size for size in wanted)
    if op.type == "squeeze2":
        axes = [axis % rank for axis in op.attr("axes")] or list(range(rank))
        return tuple(size for place, size in enumerate(shape) if size != 1 or place not in axes)
    if op.type == "unsqueeze2":
        result = list(shape)
        for axis in op.attr("axes"):
            result.insert(axis if axis >= 0 else len(result) + 1 + axis, 1)
        return tuple(result)
    if op.type == "flatten2":
        axis = op.attr("axis", 1)
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    first, last = op.attr("start_axis", 1) % rank, op.attr("stop_axis", -1) % rank
    return (*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :])


def _slice(plan: Plan, op: Op) -> None:
    name, out = op.input("Input"), op.output("Out")
    x = plan.value(name)
    if any(op.inputs.get(slot) for slot in ("StartsTensor", "EndsTensor", "StartsTensorList", "EndsTensorList")):
        raise UnsupportedError("a slice with computed bounds")
    cut = [slice(None)] * x.ndim
    for axis, start, end in zip(op.attr("axes"), op.attr("starts"), op.attr("ends"), strict=True):
        cut[axis] = slice(start, end)
    view = x[tuple(cut)]
    dropped = op.attr("decrease_axis", [])
    plan.view(out, name, view.reshape([size for axis, size in enumerate(view.shape) if axis not in dropped]))


def _split(plan: Plan, op: Op) -> None:
    name, outs = op.input("X"), op.outputs["Out"]
    x = plan.value(name)
    if op.inputs.get("AxisTensor") or op.inputs.get("SectionsTensorList"):
        raise UnsupportedError("a split with computed bounds")
    axis, sections = op.attr("axis", 0) % x.ndim, list(op.attr("sections", []))
    if not sections:
        sections = [x.shape[axis] // len(outs)] * len(outs)
    if -1 in sections:
        sections[sections.index(-1)] = x.shape[axis] - sum(size for size in sections if size > 0)
    for out, part in zip(outs, np.split(x, np.cumsum(sections)[:-1], axis), strict=True):
        plan.view(out, name, part)


def _assign(plan: Plan, op: Op) -> None:
    name = op.input("X")
    plan.view(op.output("Out"), name, plan.value(name))


def _dropout(plan: Plan, op: Op) -> None:
    if op.attr("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        _assign(plan, op)
    else:
        kept = 1.0 - op.attr("dropout_prob", 0.5)
        _eltwise(plan, Op.make("scale", {"X": op.input("X")}, {"Out": op.output("Out")}, scale=kept))


def _batch_norm(plan: Plan, op: Op) -> None:
    x, follower = plan.value(op.input("X")), plan.program.followers.get(op)
    if x.ndim != 4 or x.dtype != np.float32 or op.attr("data_layout", "NCHW") not in ("NCHW", "AnyLayout"):
        raise UnsupportedError("a batch normalisation that isn't of images, channels first")
    out = follower.output("Out") if follower else op.output("Y")
    x = plan.reordered(x, _LAST)
    target = plan.new(out, x.shape, "float32", _LAST)
    source, goal = plan.memory(x), plan.memory(target)
    numbers = (op.attr("epsilon", 1e-5), follower is not None)
    made = primitive("batch_normalization", Attributes(), source.layout, goal.layout, *numbers)
    slots = {**_SCALE_AND_SHIFT, "mean": "Mean", "variance": "Variance"}
    constants = {slot: flat(plan.program.constant(op.input(name))) for slot, name in slots.items()}
    plan.kernel(made, src=source, dst=goal, **constants)


def _nearest(plan: Plan, op: Op) -> None:
    """Enlarging by whole factors; at others oneDNN rounds positions otherwise than Paddle does."""
    x, scale = plan.value(op.input("X")), op.attr("scale", 0.0)
    factors = list(scale) if isinstance(scale, list) else [scale, scale]
    whole = len(factors) == 2 and all(factor >= 1 and float(factor).is_integer() for factor in factors)
    by_tensor = any(op.inputs.get(slot) for slot in ("OutSize", "SizeTensor", "Scale"))
    if x.ndim != 4 or not whole or by_tensor or op.attr("align_corners", True):
        raise UnsupportedError("an interpolation that isn't by whole factors")
    shape = (*x.shape[:2], *(size * int(factor) for size, factor in zip(x.shape[2:], factors, strict=True)))
    x = plan.reordered(x, _LAST)
    target = plan.new(op.output("Out"), shape, x.dtype.name, _LAST)
    source, goal = plan.memory(x), plan.memory(target)
    plan.kernel(primitive("resampling", Attributes(), source.layout, goal.layout), src=source, dst=goal)


_MOVES = ("reshape2", "squeeze2", "unsqueeze2", "flatten2", "flatten_contiguous_range", "transpose2", "fused_transpose")
_BINARY = ("elementwise_add", "fused_elementwise_add", "elementwise_mul", "elementwise_sub")

_EMIT: dict[str, Callable[[Plan, Op], None]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "fused_conv2d": _conv,
    "conv2d": _conv,
    "depthwise_conv2d": _conv,
    "fc": _fc,
    "fused_matmul": _matmul,
    "matmul_v2": _matmul,
    "pool2d": _pool,
    "concat": _concat,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "lookup_table": _lookup,
    "lookup_table_v2": _lookup,
    "slice": _slice,
    "split": _split,
    "batch_norm": _batch_norm,
    "nearest_interp": _nearest,
    "nearest_interp_v2": _nearest,
    "assign": _assign,
    "dropout": _dropout,
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(("scale", *KNOWN), _eltwise),
}
