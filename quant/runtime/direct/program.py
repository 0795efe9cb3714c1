"""Runs a converted model on oneDNN directly, without Paddle's executor between one kernel and the next.

The same kernels with the same scales as Paddle's oneDNN ops run (paddle/phi/kernels/onednn, and fusion/onednn), so the
outputs are the same. What is spared is what Paddle does for each op of each run: look up names, check shapes, build
contexts and cache keys; 15 to 40 microseconds an op. Also spared: copies of residuals (a sum is taken in place where
nobody reads its second operand afterwards), transposes and reshapes (an array's strides say it all), and a pass over
memory for an addition behind a product or the rounding of a softmax.

A `Program` holds what doesn't depend on the sizes of the inputs, a `Plan` what does: kernels, memory, their order.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Column, Ragged, offsets_of
from quant.errors import DataError, ModelError, UnsupportedError
from quant.ir.graph import Graph, Op
from quant.runtime.direct.emit import ADDITIONS, EMIT
from quant.runtime.direct.emit_sequences import gives_sequence
from quant.runtime.direct.memory import Constants, Step, Workspace
from quant.runtime.direct.onednn import RefusedError

__all__ = ["Plan", "Program"]

Array = NDArray[Any]
# What sizes and attributes that don't fit together come to, here and in NumPy. Paddle's executor then gets the model,
# and refuses it in its own words.
_NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError)


class Program:
    """A model that can be run directly. Raises UnsupportedError when it can't.

    Plans for `capacity` sets of input shapes are kept; the one used least recently goes first.
    """

    def __init__(self, graph: Graph, capacity: int = 10) -> None:
        self.graph, self.capacity = graph, capacity
        self.constants = Constants(graph)
        computed = set(self.constants.computed.values())
        self.ops = tuple(op for op in graph.ops if op not in computed)
        if unknown := sorted({op.type for op in self.ops} - EMIT.keys()):
            raise UnsupportedError(f"op {unknown[0]!r}")
        self.followers = _followers(graph, self.ops)
        self._plans: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()

    def plan(self, arrays: Mapping[str, Array], sequences: Collection[str] = ()) -> "Plan":
        """The plan for inputs of these shapes, of which `sequences` are the steps of one sequence.

        Raises UnsupportedError when oneDNN has no kernel for one of its ops.
        """
        key = tuple((name, arrays[name].shape, arrays[name].dtype.str, name in sequences) for name in self.graph.feeds)
        if key not in self._plans:
            if len(self._plans) >= self.capacity:
                self._plans.popitem(last=False)
            self._plans[key] = Plan(self, {name: arrays[name] for name in self.graph.feeds}, sequences)
        self._plans.move_to_end(key)
        return self._plans[key]

    def close(self) -> None:
        """Give memory back."""
        self._plans.clear()
        self.constants.close()


def _followers(graph: Graph, ops: Sequence[Op]) -> dict[Op, Op]:
    """Op -> the one behind it that its kernel does as well.

    An addition behind a product with a float32 result, when what is added is there by then; the rounding of a softmax;
    a ReLU behind batch normalisation.
    """
    readers, place = graph.readers(), {op: number for number, op in enumerate(ops)}
    written = {name: place[op] for op in ops for name in op.writes}
    found: dict[Op, Op] = {}
    for op in ops:
        out = op.output("Out") or op.output("Y")
        behind = readers.get(out, []) if out and out not in graph.fetches else []
        if len(behind) != 1 or behind[0] in found.values():
            continue
        after = behind[0]
        if op.type in ("fc", "fused_matmul") and op.attr("force_fp32_output") and after.type in ADDITIONS:
            x, y = after.input("X"), after.input("Y")
            other = y if x == out else x
            plain = not op.attr("fuse_activation", "") and not op.input("ResidualData") and x != y
            if plain and after.attr("axis", -1) == -1 and written.get(other, -1) < place[op]:
                found[op] = after
        rounds = op.type == "softmax" and after.type == "quantize" and not after.attr("Shift", 0.0)
        if rounds or (op.type == "batch_norm" and after.type == "relu"):
            found[op] = after
    return found


@contextmanager
def _ids_are_known() -> Iterator[None]:
    try:
        yield
    except IndexError as error:
        raise DataError(f"an id is not in the embedding table: {error}") from error


class Plan:
    """The kernels for one set of input shapes, in order: `feed`, `run`, `outputs`.

    `outputs` are overwritten by the next run. What is fed isn't copied, but for the ids of lookups and what is given
    out as it came: it must stay unchanged until `run` is over.
    """

    def __init__(self, program: Program, inputs: Mapping[str, Array], sequences: Collection[str] = ()) -> None:
        work = Workspace(program.graph, program.constants, program.followers, inputs, sequences)
        followers = set(program.followers.values())
        ops = [op for op in program.ops if op not in followers]
        for number, op in enumerate(ops):
            work.last.update(dict.fromkeys(work.touched(op), number))
        self.ends: dict[Op, int] = {}  # op -> its last call
        for work.number, op in enumerate(ops):
            try:
                EMIT[op.type](work, op)
            except (RefusedError, *_NONSENSE) as error:
                raise UnsupportedError(f"op {op.type!r} (output {op.writes[0]!r}): {error}") from error
            self.ends[op] = len(work.calls) - 1
            if not work.sequences.isdisjoint(work.touched(op)) and gives_sequence(op):
                last = program.followers.get(op, op)
                work.sequences.update((*op.writes, *last.writes))
            work.release(op)
        self.work = work
        self.outputs = {name: work.steady(name) for name in program.graph.fetches}
        self.steps = work.finished()

    def read(self) -> dict[str, Column]:
        """The outputs of the last run, copied."""
        found: dict[str, Column] = {}
        for name, array in self.outputs.items():
            values = np.array(array, order="C")
            if name in self.work.sequences:
                count = int(self.work.counts[name][0]) if name in self.work.counts else len(values)
                found[name] = Ragged(values[: max(count, 1)], offsets_of([count]))
            else:
                found[name] = values
        return found

    def feed(self, arrays: Mapping[str, Array]) -> None:
        for name, offset, memory in self.work.moving:
            memory.move(arrays[name], offset)
        for name in self.work.copied:
            np.copyto(self.work.inputs[name], arrays[name])

    def run(self) -> None:
        with _ids_are_known():
            for function, arguments in self.steps:
                if function(*arguments):
                    raise ModelError("oneDNN failed to run a kernel")

    def trace(self, seen: Callable[[str, str, Array], None]) -> None:
        """Run, with `seen(op type, variable, values)` called when a variable is written: its memory is used again.

        Not told of: what a kernel does together with the op behind it, and views of the inputs.
        """
        written: dict[int, list[tuple[str, str]]] = {}
        for op, place in self.ends.items():
            last = self.work.followers.get(op, op)
            written.setdefault(place, []).extend((last.type, name) for name in last.writes if self._readable(name))
        for place, (function, arguments) in enumerate(self.steps):
            with _ids_are_known():
                if function(*arguments):
                    raise ModelError("oneDNN failed to run a kernel")
            for type, name in written.get(place, ()):
                seen(type, name, np.array(self.work.value(name), order="C"))

    def _readable(self, name: str) -> bool:
        """Whether memory of this plan holds a variable: an input lies wherever it was fed from."""
        array = self.work.values.get(name)
        return array is not None and not any(np.may_share_memory(array, fed) for fed in self.work.inputs.values())

    def watch(self, seen: Callable[[str, str], None]) -> None:
        """Have `seen(op type, variable)` called in later runs when the last kernel of an op is done.

        Ops that run nothing, such as a reshape, aren't told of: their last call would be that of the op before.
        """
        done: dict[int, Op] = {}
        for op, place in self.ends.items():
            done.setdefault(place, op)
        steps: list[Step] = []
        for place, step in enumerate(self.steps):
            steps.append(step)
            if place in done:
                steps.append((lambda op: seen(op.type, op.writes[0]), (done[place],)))
        self.steps = steps
