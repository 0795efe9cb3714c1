"""The attributes of oneDNN's INT8 ops: what each kernel is told of scales, activation and layout. Pure functions.

Attributes and their meaning: paddle/phi/kernels/onednn/conv_handler.h and, in paddle/phi/kernels/fusion/onednn,
fc_kernel.cc, fused_matmul_kernel.cc, fusion_gru_kernel.cc, fusion_lstm_kernel.cc. All scales there are
levels / threshold.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quant.ir.fusion import CONVS, Chain
from quant.ir.graph import Op
from quant.ir.numerics import REDUCED, SHIFT, SIGNED, STATE_THRESHOLD
from quant.ir.ops.activations import Eltwise, conv_activation, fc_activation

__all__ = ["SCRATCH", "STATE", "Grid", "Int8", "conv_attrs", "fc_attrs", "product_attrs", "recurrent_attrs"]

Grid = tuple[float, int]  # threshold, levels
Attrs = dict[str, Any]
STATE: Grid = (STATE_THRESHOLD, SIGNED)

# Outputs that the fused recurrent ops insist on.
SCRATCH = {
    "gru": ("XX", "BatchedInput", "BatchedOut", "ReorderedH0"),
    "lstm": (
        *("Cell", "XX", "BatchedInput", "BatchedHidden", "BatchedCell"),
        *("ReorderedH0", "ReorderedC0", "CheckedCell"),
    ),
}

_NONE = Eltwise("")


@dataclass(frozen=True)
class Int8:
    """An int8 form of a tensor: its variable, grid, and stored type. `shift` is the stored integer that means 0."""

    name: str
    threshold: float
    levels: int
    unsigned: bool
    shift: int = 0

    @property
    def scale(self) -> float:
        """oneDNN's factor from real values to stored integers."""
        return self.levels / self.threshold

    @property
    def grid(self) -> Grid:
        return self.threshold, self.levels

    def same_grid(self, other: "Int8") -> bool:
        return replace(self, name="") == replace(other, name="")


def conv_attrs(chain: Chain, data: Int8, residual: Int8 | None, form: Int8 | None) -> Attrs:
    """Of fused_conv2d. `form`: how the output is stored, None for float32."""
    copied = ("strides", "paddings", "dilations", "groups", "data_format", "padding_algorithm")
    present = {name: chain.op.attr(name) for name in copied if name in chain.op.attrs}
    fused = conv_activation(chain.ops[-1]) or _NONE if chain.activation else _NONE
    if form is not None and form.unsigned and form.levels == SIGNED:  # uint8 has room above, where the simulation clips
        top = min(form.threshold, fused.beta) if fused.name == "relu6" else form.threshold
        fused = Eltwise("relu6", beta=top)
    return {
        **present,
        **_scales(chain, data, form),
        "Scale_in_eltwise": residual.scale if residual else 1.0,
        "fuse_residual_connection": bool(chain.residual),
        "force_fp32_output": form is None and not chain.residual,
        "fuse_activation": fused.name,
        "fuse_alpha": fused.alpha,
        "fuse_beta": fused.beta,
    }


def fc_attrs(chain: Chain, rows: int, data: Int8, form: Int8 | None) -> Attrs:
    """Of fc. `rows`: how many leading dimensions of the input number its rows."""
    fused = fc_activation(chain.ops[-1]) or _NONE if chain.activation else _NONE
    return {
        **_scales(chain, data, form),
        "force_fp32_output": form is None,
        "fuse_activation": fused.name,
        "fuse_alpha": fused.alpha,
        "fuse_beta": fused.beta,
        "in_num_col_dims": rows,
        "padding_weights": False,
        "activation_type": "",
    }


def _scales(chain: Chain, data: Int8, form: Int8 | None) -> Attrs:
    levels = chain.op.attr("weight_levels")
    # Without VNNI oneDNN halves a convolution's int8 weights when the input is signed (scale adjust 0.5), and a 7-bit
    # weight must still be whole after that. The 8-bit scale of an unsigned input would saturate instead.
    step = 2 if levels <= REDUCED and not data.unsigned and chain.op.type in CONVS else 1
    return {
        "Scale_in": data.scale,
        "Scale_weights": [step * levels / threshold for threshold in chain.op.attr("weight_thresholds")],
        "Scale_out": form.scale if form else 1.0,
    }


def product_attrs(op: Op, x: Int8, y: Int8, form: Int8 | None) -> Attrs:
    """Of fused_matmul, for a product of two activations."""
    return {
        "trans_x": False,
        "trans_y": bool(op.attr("trans_y", False) or op.attr("transpose_Y", False)),
        "matmul_alpha": float(op.attr("alpha", 1.0)),
        "Scale_x": x.scale,
        "Scale_y": y.scale,
        "Scale_out": form.scale if form else 1.0,
        "force_fp32_output": form is None,
    }


def recurrent_attrs(cell: Op, form: Int8 | None) -> Attrs:
    """Of fusion_gru or fusion_lstm, for a fake-quantized gru or lstm op."""
    gru, thresholds = cell.type == "gru", np.array(cell.attr("weight_thresholds"), np.float64)
    if not gru:  # Paddle's gates: candidate, input, forget, output; the kernel takes scales in oneDNN's order
        thresholds = thresholds.reshape(4, -1)[[1, 2, 0, 3]].reshape(-1)
    return {
        "is_reverse": bool(cell.attr("is_reverse", False)),
        "use_seq": True,
        "gate_activation": "sigmoid",
        **({"activation": "tanh"} if gru else {"cell_activation": "tanh", "candidate_activation": "tanh"}),
        **({"origin_mode": bool(cell.attr("origin_mode", False))} if gru else {"use_peepholes": False}),
        "Scale_data": SIGNED / STATE_THRESHOLD,
        "Shift_data": float(SHIFT),
        "Scale_weights": [float(cell.attr("weight_levels") / threshold) for threshold in thresholds],
        "force_fp32_output": form is None,
    }
