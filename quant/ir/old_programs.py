"""Ops of programs of any age as today's Paddle writes them: one table, applied when a model is loaded.

A program keeps the names and attributes of the Paddle that wrote it. What they mean today, taken from Paddle's source
(2.6 to 3.3) and its kernels' results:
- An attribute that isn't there has the default that Paddle describes.
- "AnyLayout", the default layout of Paddle 1.x's convolutions, is channels first (conv_op.cc).
- A predictor runs batch norm and dropout as at inference whatever `is_test` says (is_test_pass.cc), but for a batch
  norm with `trainable_statistics`.
- With `padding_algorithm` VALID paddings count as 0, with SAME dilations as 1 (conv_util.h, UpdatePaddingAndDilation).
- Kernels ignore constants that some activations once had (activation_functor.h: Relu6, HardSwish, Swish).
- reshape, transpose, squeeze, unsqueeze and flatten are the ops of today without the output XShape.
Nothing here keeps state: any thread may call it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from quant.ir.ops.schema import attribute_kinds, defaults_of

__all__ = ["FUSED", "STALE", "Today", "today"]

Attributes = Mapping[str, tuple[int, Any]]  # name -> (AttrType, value)

FUSED = ("fused_", "fusion_", "multi_gru")  # how ops begin that have kernels of oneDNN alone

# Which library an op was once to run on, and in which type. Predictors decide that anew.
STALE = ("use_cudnn", "use_mkldnn", "use_onednn", "use_quantizer", "mkldnn_data_type", "onednn_data_type")

_RENAMED = {
    "reshape": "reshape2",
    "transpose": "transpose2",
    "squeeze": "squeeze2",
    "unsqueeze": "unsqueeze2",
    "flatten": "flatten2",
}
# Op type -> an output that Paddle writes to unasked. (The others of these do without.)
_SCRATCH = {"flatten2": "XShape"}
_LAYOUTS = ("data_format", "data_layout")
_IGNORED: Mapping[str, Mapping[str, float]] = {
    "relu6": {"threshold": 6.0},
    "hard_swish": {"threshold": 6.0, "scale": 6.0, "offset": 3.0},
    "swish": {"beta": 1.0},
}


class Today(NamedTuple):
    """An op as it is written today; `scratch`: the output that it must have beside its own, or ""."""

    type: str
    attrs: Attributes
    scratch: str


def today(type: str, attrs: Attributes) -> Today:
    """What an op of an inference program is today. `attrs` are of the types that Paddle describes."""
    type = _RENAMED.get(type, type)
    lacking = {name: given for name, given in defaults_of(type).items() if name not in (*attrs, *STALE)}
    changed = {**lacking, **attrs}
    for name in _LAYOUTS:
        if name in attrs and str(attrs[name][1]).upper() == "ANYLAYOUT":
            changed[name] = defaults_of(type).get(name, (attrs[name][0], "NCHW"))
    for name, value in _IGNORED.get(type, {}).items():
        if name in attrs:
            changed[name] = (attrs[name][0], value)
    for rule in (_padding, _as_at_inference):
        changed.update(rule(type, changed))
    return Today(type, changed, _SCRATCH.get(type, ""))


def _padding(type: str, attrs: Attributes) -> Attributes:
    """A padding algorithm, as far as it doesn't depend on the input's size, in paddings and dilations."""
    algorithm = attrs.get("padding_algorithm", (0, ""))[1]
    found = {}
    if algorithm == "VALID":
        found["padding_algorithm"] = (attrs["padding_algorithm"][0], "EXPLICIT")
        if "paddings" in attrs:
            found["paddings"] = _filled(attrs["paddings"], 0)
    elif algorithm == "SAME" and "dilations" in attrs:
        found["dilations"] = _filled(attrs["dilations"], 1)
    return found


def _filled(given: tuple[int, Any], value: int) -> tuple[int, Any]:
    return given[0], [value] * len(given[1])


def _as_at_inference(type: str, attrs: Attributes) -> Attributes:
    kinds = attribute_kinds(type) or {}
    trains = attrs.get("trainable_statistics", (0, False))[1] and not attrs.get("use_global_stats", (0, False))[1]
    if type not in ("batch_norm", "dropout") or "is_test" not in kinds:
        return {}
    if trains:
        return {"is_test": (kinds["is_test"][0], False)}
    always = {"is_test": (kinds["is_test"][0], True)}
    return {**always, "trainable_statistics": (kinds["is_test"][0], False)} if type == "batch_norm" else always
