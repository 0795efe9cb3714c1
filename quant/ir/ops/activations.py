"""Which activations the INT8 kernels of convolutions and products take over, and what they are told of each.

A kernel applies them to real values, before it scales and rounds its output. The names are those of Paddle's table of
oneDNN activations (paddle/phi/backends/onednn/onednn_reuse.h), alpha and beta those of oneDNN's eltwise primitive.
"""

from collections.abc import Callable
from typing import NamedTuple

from quant.ir.graph import Op

__all__ = ["KNOWN", "UNSIGNED_ACTIVATIONS", "Eltwise", "conv_activation", "fc_activation"]


class Eltwise(NamedTuple):
    """An activation in a kernel's words."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


# Behind these a convolution stores uint8, and only behind these: by their names in Paddle's kernel, not their range.
UNSIGNED_ACTIVATIONS = ("relu", "relu6")


def _clip(low: float, high: float) -> Eltwise:
    return Eltwise("relu6", beta=high) if low == 0 else Eltwise("clip", low, high)


# Op type -> what oneDNN computes instead, or None for attributes that it has no formula for. relu6, hard_swish and
# swish may carry other constants, which Paddle's own kernels ignore (quant.ir.old_programs).
KNOWN: dict[str, Callable[[Op], Eltwise | None]] = {
    "relu": lambda op: Eltwise("relu"),
    "relu6": lambda op: Eltwise("relu6", beta=6.0),
    "leaky_relu": lambda op: Eltwise("leaky_relu", op.attr("alpha", 0.02)),
    "hard_swish": lambda op: Eltwise("hard_swish", 1 / 6, 3 / 6),  # x * clip(alpha x + beta, 0, 1)
    "hard_sigmoid": lambda op: Eltwise("hard_sigmoid", op.attr("slope", 0.2), op.attr("offset", 0.5)),
    "swish": lambda op: Eltwise("swish", 1.0),
    "silu": lambda op: Eltwise("swish", 1.0),
    "sigmoid": lambda op: Eltwise("sigmoid"),
    "tanh": lambda op: Eltwise("tanh"),
    "gelu": lambda op: Eltwise("gelu_tanh" if op.attr("approximate", False) else "gelu_erf"),
    "mish": lambda op: Eltwise("mish") if op.attr("threshold", 20.0) == 20.0 else None,
    "brelu": lambda op: _clip(op.attr("t_min", 0.0), op.attr("t_max", 24.0)),
    "clip": lambda op: None if op.input("Min") or op.input("Max") else _clip(op.attr("min"), op.attr("max")),
}


def conv_activation(op: Op) -> Eltwise | None:
    """What fused_conv2d calls an activation, or None when its kernel doesn't have it."""
    return KNOWN[op.type](op) if op.type in KNOWN else None


def fc_activation(op: Op) -> Eltwise | None:
    """What fc calls an activation, or None when its kernel doesn't have it."""
    found = conv_activation(op)
    return found._replace(name="clip") if found is not None and found.name == "relu6" else found
