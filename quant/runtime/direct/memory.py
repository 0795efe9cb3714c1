"""Where a directly run program keeps its values: constants, packed weights, blocks of memory used again and again.

What the ops of direct.emit are given: arrays of their inputs, memory for their outputs, and a list that they add
their kernels to.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import UnsupportedError
from quant.ir.constants import computed, shape_of
from quant.ir.graph import Graph, Op
from quant.runtime.direct.onednn import ARG, Layout, Memory, memory_of
from quant.runtime.direct.primitives import Attributes, Primitive, call_of, pack, reorder

__all__ = ["LAST", "Constants", "Step", "Workspace", "lies_in", "order_of"]

Array = NDArray[Any]
Step = tuple[Callable[..., Any], tuple[Any, ...]]  # a function and its arguments; what it returns is 0, None or wrong
LAST = (0, 2, 3, 1)  # the order of an image's dimensions in memory: channels last
_ALIGN = 64  # bytes: a cache line, and a vector of AVX512


class Constants:
    """What all sets of input shapes share.

    A graph's parameters, what ops compute from them alone, weights in the layouts that kernels wanted, scratch memory.
    """

    def __init__(self, graph: Graph) -> None:
        self.known: dict[str, Array] = dict(graph.params)
        self.computed: dict[str, Op] = {}  # variable -> the op that computes it from constants
        self.packed: dict[str, list[Memory]] = {}
        self._spare = _aligned(0)
        for op in graph.ops:
            if op.type in ("cast", "concat", "elementwise_mul", "reshape2") and all(
                name in self.known or name in self.computed for name in op.reads
            ):
                self.computed[op.output("Out")] = op

    def close(self) -> None:
        """Give memory back."""
        self.known.clear()
        self.packed.clear()

    def scratch(self, size: int) -> Array:
        """So many bytes, at least, that a kernel may use while it runs: no two run at once.

        What was given out before stays where it is, so memory that has to grow is doubled.
        """
        if size > self._spare.size:
            self._spare = _aligned(max(size, 2 * self._spare.size))
        return self._spare

    def weights(
        self, name: str, wanted: Layout, make: Callable[[], Array], attributes: Attributes | None = None
    ) -> Memory:
        """A constant in a kernel's layout; `make` gives its values, which `attributes` say how to round."""
        have = self.packed.setdefault(name, [])
        found = next((memory for memory in have if memory.layout == wanted), None)
        if found is None:
            found = pack(make(), wanted, attributes)
            have.append(found)
        return found

    def value(self, name: str) -> Array:
        """A parameter, or what is computed from parameters alone, which is done when it is first asked for."""
        if name not in self.known:
            if name not in self.computed:
                raise UnsupportedError(f"{name!r} is not constant")
            op = self.computed[name]
            found = computed(op, self.value)
            if found is None:
                raise UnsupportedError(f"op {op.type!r} of constants, with these types and attributes")
            self.known[name] = found
        return self.known[name]

    def table(self, name: str) -> Array:
        """As `value`, dense and aligned: NumPy copies a whole array that isn't whenever it takes rows of it."""
        self.known[name] = np.require(self.value(name), requirements=["C", "A"])
        return self.known[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a constant."""
        if name not in self.computed:
            return self.value(name).shape
        op = self.computed[name]
        if op.type == "concat":
            return self.value(name).shape
        before = self.shape(op.input("X"))
        return shape_of(op, before) if op.type == "reshape2" else before

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
        weight = self.value(name)
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
        integers = self.value(cast.input("X"))
        fits = integers.dtype == np.int8 and (not flat or (axis == 0 and integers.shape[:2] == (1, shape[0])))
        return (integers.reshape(shape) if fits else None), self.value(op.input("Y"))


@dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel and what it reads and writes, by oneDNN's numbers of the operands."""

    made: Primitive
    operands: Mapping[int, Memory]


@dataclass(eq=False)
class _Block:
    """A piece of memory, and the variables in it that will still be read."""

    bytes: Array
    live: set[str] = field(default_factory=set)


class Workspace:
    """Values of one set of input shapes. `last`: variable -> the number of the op that reads it last.

    `followers`: op -> the one behind it that its kernel does as well. `sequences`: the inputs that are the steps of one
    sequence [steps, ...], not samples; then also what is computed of them step by step.
    """

    def __init__(
        self,
        graph: Graph,
        constants: Constants,
        followers: Mapping[Op, Op],
        inputs: Mapping[str, Array],
        sequences: Collection[str] = (),
    ) -> None:
        self.constants, self.followers = constants, followers
        self.fetches, self.readers = graph.fetches, graph.readers()
        # Other arrays of these shapes are fed later: kernels are then told their place, NumPy steps read copies.
        self.inputs = {name: np.empty(array.shape, array.dtype) for name, array in inputs.items()}
        self.values: dict[str, Array] = dict(self.inputs)  # variable -> its values, a view of some block's bytes
        self.blocks: dict[str, _Block] = {}
        self.free: list[_Block] = []
        self.moving: list[tuple[str, int, Memory]] = []  # input, offset in it, and what looks at it
        self.copied: set[str] = set()
        self.temporary: list[str] = []  # variables of this op alone
        self.sequences = set(sequences)
        self.counts: dict[str, Array] = {}  # a sequence whose length isn't known before it is computed -> [that length]
        self.calls: list[_Kernel | Step] = []
        self.number = 0  # of the op that is at work
        self.last: dict[str, int] = {}

    def touched(self, op: Op) -> Iterable[str]:
        """What an op and its follower read."""
        follower = self.followers.get(op)
        return (*op.reads, *(follower.reads if follower else ()))

    def release(self, op: Op) -> None:
        """Give back the memory of what nobody reads after this op."""
        follower = self.followers.get(op)
        for name in {*self.touched(op), *op.writes, *(follower.writes if follower else ()), *self.temporary}:
            block = self.blocks.get(name)
            if block is None or self.last.get(name, -1) > self.number or name in self.fetches:
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
        return self.values[name] if name in self.values else self.constants.value(name)

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

    def finished(self) -> list[Step]:
        """All calls; kernels share one piece of scratch memory, because they run one after the other."""
        scratches = [call.made.scratchpad for call in self.calls if isinstance(call, _Kernel)]
        spare = self.constants.scratch(max((scratch.bytes for scratch in scratches), default=0))
        self.kept: list[object] = [spare]  # what the steps point at
        steps: list[Step] = []
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
        if lies_in(array, order):
            return array
        return self.copy(array, self.scratch(array.shape, array.dtype.name, order))

    def scratch(self, shape: Sequence[int], dtype: str, order: Sequence[int]) -> Array:
        """Memory until this op is done."""
        name = f"temporary {len(self.temporary)} of op {self.number}"
        self.temporary.append(name)
        return self.new(name, shape, dtype, order)

    def copy(self, array: Array, target: Array) -> Array:
        source, goal = self.memory(array), self.memory(target)
        self.kernel(reorder(source.layout, goal.layout), src=source, dst=goal)
        return target

    def from_input(self, name: str) -> bool:
        """Whether a variable is an input that was at most reshaped; its values are then copied on feeding."""
        place = self.value(name).ctypes.data
        source = next((key for key, array in self.inputs.items() if array.ctypes.data == place), None)
        if source is not None:
            self.copied.add(source)
        return source is not None

    def steady(self, name: str) -> Array:
        """A variable as a step in NumPy reads it, always in this place: what of it is fed is then copied."""
        array = self.value(name)
        self.copied.update(key for key, fed in self.inputs.items() if np.may_share_memory(array, fed))
        return array

    def only_reader(self, name: str) -> Op | None:
        found = self.readers.get(name, [])
        return found[0] if name and len(found) == 1 and name not in self.fetches else None

    def wanted(self, name: str) -> bool:
        """Whether a variable is read or given out."""
        return bool(self.readers.get(name)) or name in self.fetches

    def dies(self, name: str) -> bool:
        """Whether nobody reads a variable, or what shares its memory, after this op."""
        block = self.blocks.get(name)
        return block is not None and all(
            self.last.get(other, -1) <= self.number and other not in self.fetches for other in block.live
        )


def _argument(name: str) -> int:
    """oneDNN's number of an operand: "src", "scales_src", "zero_points_dst", "several_2", "post_op"."""
    if name == "post_op":  # the second operand of the first post-op
        return ARG["post_op"] | ARG["src1"]
    if name in ARG:
        return ARG[name]
    kind, _, of = name.rpartition("_")
    return ARG["several"] + int(of) if kind == "several" else ARG[kind] | ARG[of]


def _aligned(size: int) -> Array:
    raw = np.empty(max(size, 1) + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    return raw[start : start + max(size, 1)]


def lies_in(array: Array, order: Sequence[int]) -> bool:
    """Whether an array is dense with its dimensions in this order; those of size 1 lie anywhere."""
    expected = array.itemsize
    for dim in reversed(order):
        if array.shape[dim] != 1:
            if array.strides[dim] != expected:
                return False
            expected *= array.shape[dim]
    return True


def order_of(array: Array) -> list[int]:
    """The dimensions of an array from the outermost to the innermost in memory."""
    return sorted(range(array.ndim), key=lambda dim: (-array.strides[dim], dim))
