"""What only rearranges a tensor's dimensions, as values: a transpose, or leaving out a dimension of size 1.

    tensor = move(source):   `out` has the tensor's dimensions, `in` those of its source

A `Stack` is several of them, the first applied first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ir.graph import Op, Var

__all__ = ["TO_CHANNELS_LAST", "Move", "Stack", "backwards", "move_of", "source_axis", "source_var"]


@dataclass(frozen=True)
class Move:
    """`axes`: for each dimension that comes out, which one of the source it is. `rank`: of the source."""

    axes: tuple[int, ...]
    rank: int

    @property
    def squeezed(self) -> tuple[int, ...]:
        """The dimensions of the source, of size 1, that are left out."""
        return tuple(axis for axis in range(self.rank) if axis not in self.axes)

    @property
    def _order(self) -> tuple[int, ...]:
        """For each dimension of the source that comes out, in the source's order, which one comes out there."""
        return tuple(int(place) for place in np.argsort(self.axes))

    def forth(self, source: str, target: str) -> Op:
        """The op that makes the tensor of its source."""
        if self.squeezed:
            return Op.make("squeeze2", {"X": source}, {"Out": target}, axes=list(self.squeezed))
        return Op.make("transpose2", {"X": source}, {"Out": target}, axis=list(self.axes))

    def back(self, tensor: str, target: str) -> Op:
        """The op that makes the source of a tensor."""
        if self.squeezed:
            return Op.make("unsqueeze2", {"X": tensor}, {"Out": target}, axes=list(self.squeezed))
        return Op.make("transpose2", {"X": tensor}, {"Out": target}, axis=list(self._order))

    def source_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        sizes = dict(zip(self.axes, shape, strict=True))
        return tuple(sizes.get(axis, 1) for axis in range(self.rank))

    def source_array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Back for values of the full rank."""
        return array.transpose(self._order).reshape(self.source_shape(array.shape))

    def undone_by(self, op: Op) -> bool:
        """Whether an op that reads the tensor gives its source."""
        if op.type == "transpose2" and not self.squeezed:
            return tuple(op.attr("axis")) == self._order
        if op.type != "unsqueeze2" or any(op.inputs.get(slot) for slot in ("AxesTensor", "AxesTensorList")):
            return False
        axes = op.attr("axes", [])
        return len(axes) == 1 and self.squeezed == (axes[0] % self.rank,)


Stack = tuple[Move, ...]
TO_CHANNELS_LAST = Move((0, 2, 3, 1), 4)


def move_of(op: Op, rank: int) -> Move | None:
    """The move that squeeze2 of one dimension, of a tensor of `rank`, is; None for other ops."""
    axes = op.attr("axes", [])
    if op.type != "squeeze2" or len(axes) != 1 or op.inputs.get("AxesTensor"):
        return None
    return Move(tuple(axis for axis in range(rank) if axis != axes[0] % rank), rank)


def source_axis(stack: Stack, axis: int) -> int:
    """A dimension of what a stack gives -> the one of its source."""
    for move in reversed(stack):
        axis = move.axes[axis % len(move.axes)]
    return axis


def source_var(stack: Stack, var: Var) -> Var:
    """The description of a stack's source."""
    for move in reversed(stack):
        var = var._replace(shape=move.source_shape(var.shape))
    return var


def backwards(stack: Stack, array: NDArray[Any]) -> NDArray[Any]:
    """Values (of the full rank of what a stack gives; sizes of 1 are broadcast) as the source has them."""
    for move in reversed(stack):
        array = move.source_array(array)
    return array
