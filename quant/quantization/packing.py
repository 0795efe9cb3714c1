"""Weights of INT8 ops as a model stores them: integers and a step a channel, which ops on constants make float32 again.

Paddle's constant_folding_pass runs those ops once, on loading the model. (It leaves out dequantize_linear, which would
be one op, so that would run each time.) Kernels take int8 weights too, but Paddle's convolution then reads its bias as
unscaled int32 (docs/paddle-faults.md).

What ops share is stored once. But Paddle's `fc` keeps what it made of a weight under the name of its variable, be it
for an input of uint8 or of int8 (fc_kernel.cc). So a weight that is read beside both comes back as two variables of the
same integers. (Ops that share an input, too, have weights of their own by then: quant.ir.passes.own_weights.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.ir.fusion import CONVS, state_matrix
from quant.ir.graph import DTYPE_NUMBERS, Attr, Graph, Op, Var
from quant.ir.names import Names
from quant.ir.numerics import SIGNED, TABLE, dequantise, quantise
from quant.ir.passes.quantizers import WEIGHT_SLOT, peaks_of
from quant.quantization.int8_attributes import Int8

__all__ = ["Weights"]


class Weights:
    """Packs parameters of `graph`; new parameters go to `names`, ops and variables to `ops` and `vars`."""

    def __init__(self, graph: Graph, names: Names, ops: list[Op], vars: dict[str, Var]) -> None:
        self.graph, self.names, self.ops, self.vars = graph, names, ops, vars
        self._restored: dict[tuple[str, str, str], str] = {}  # integers, step, mark -> their variable

    def packed(
        self,
        stem: str,
        values: NDArray[Any],
        scales: NDArray[np.float64],
        axis: int,
        levels: int = SIGNED,
        mark: str = "",
    ) -> str:
        """The variable of float32 values that lie on their grid, of `scales` integers to a unit, [channels].

        What is equal is stored once for all of one `stem`, and comes back as one variable for each `mark`.

        A step along the first axis is one for which oneDNN has a plain loop only (ResNet-50 loaded in six times the
        time of FP32). So such a weight [O, I, H, W] is stored as [1, O, I H W], and reshaped after the product.
        """
        dtype = "int8" if levels == SIGNED else "int16"
        shape = values.shape if axis else (1, len(values), values[0].size)
        stored = quantise(values, levels / scales, levels, axis).astype(dtype).reshape(shape)
        integers = self.names.param(f"{stem}.stored", stored)
        step = self.names.param(f"{stem}.step", (1 / scales).astype(np.float32))
        if (integers, step, mark) not in self._restored:
            kinds = {"in_dtype": DTYPE_NUMBERS[dtype], "out_dtype": DTYPE_NUMBERS["float32"]}
            whole = self._computed("cast", {"X": (integers,)}, shape, **kinds)
            scaled = self._computed("elementwise_mul", {"X": (whole,), "Y": (step,)}, shape, axis=axis or 1)
            if shape != values.shape:
                scaled = self._computed("reshape2", {"X": (scaled,)}, values.shape, shape=list(values.shape))
            self._restored[integers, step, mark] = scaled
        return self._restored[integers, step, mark]

    def of_op(self, op: Op, data: Int8) -> str:
        """Of a convolution or product that reads `data`.

        By the weight's own grid: an op's Scale_weights may be twice that for one of its readers
        (quant.quantization.int8_attributes).
        """
        slot, axis = WEIGHT_SLOT[op.type]
        name = op.input(slot)
        scales = op.attr("weight_levels") / np.array(op.attr("weight_thresholds"), np.float64)
        mark = "unsigned" if data.unsigned and op.type not in CONVS else ""
        return self.packed(name, self.graph.params[name], scales, axis, mark=mark)

    def of_state(self, cell: Op, scales: NDArray[np.float64]) -> str:
        """Of the state of a recurrent layer; gru's is put together from its two parts."""
        name = cell.input("Weight")
        values = self.graph.params[name]
        if cell.type != "gru":
            return self.packed(name, values, scales, 1)
        hidden = values.shape[0]
        matrix, cut = state_matrix(cell, values), 2 * hidden
        parts = []
        for part, columns in (("gates", slice(0, cut)), ("candidate", slice(cut, None))):
            some = self.packed(f"{name}.{part}", matrix[:, columns], scales[columns], 1)
            parts.append(self._computed("reshape2", {"X": (some,)}, (matrix[:, columns].size,), shape=[-1]))
        whole = self._computed("concat", {"X": tuple(parts)}, (values.size,), axis=0)
        return self._computed("reshape2", {"X": (whole,)}, values.shape, shape=list(values.shape))

    def of_table(self, name: str) -> str:
        """Store an embedding table as int16 where that loses nothing, as in a simulation. Not as float16: a
        predictor then leaves out what its passes for oneDNN do (docs/paddle-faults.md)."""
        values = self.graph.params[name]
        peaks = peaks_of(name, values, 1)
        grid = quantise(values, peaks, TABLE, 1)
        if not np.array_equal(dequantise(grid, peaks, TABLE, 1), values):
            return name
        return self.packed(name, values, TABLE / peaks, 1, TABLE)

    def _computed(self, kind: str, reads: Mapping[str, tuple[str, ...]], size: tuple[int, ...], **attrs: Any) -> str:
        """Emit an op on parameters alone; the variable, of shape `size`, that it writes."""
        out = self.names.fresh(f"{reads['X'][0]}.{kind}")
        self.vars[out] = Var(size)
        self.ops.append(Op(kind, reads, {"Out": (out,)}, {key: Attr.of(value) for key, value in attrs.items()}))
        return out
