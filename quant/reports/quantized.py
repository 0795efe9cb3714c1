"""What became of a model when it was quantized, as a terminal's lines."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["arithmetic", "on_disk", "summary"]

_SHOWN = 5  # reasons for FP32


def on_disk(sizes: Mapping[str, int]) -> str:
    """A line on what models take on disk, given as precision -> bytes; the last one's share of the first one's."""
    before, *_, after = sizes.values()
    told = ", ".join(f"{size:,} bytes {precision}" for precision, size in sizes.items())
    return f"on disk: {told} ({100 * after / before:.1f}%)"


def arithmetic(result: Mapping[str, Any]) -> str:
    """How much of the arithmetic is INT8, of the result of `suites.commands.convert_model`."""
    share, uncounted = result["int8_mac_share"], result["uncounted"]
    told = "no multiply-accumulate is counted" if share is None else f"{100 * share:.1f}% of multiply-accumulates"
    return told + (f" (not counted: {', '.join(uncounted)})" if uncounted else "")


def summary(model: str, output: str, algo: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Lines on an FP32 model, and the simulation and INT8 model made of it; `result`: of `suites.commands.quantize`."""
    chosen = ", ".join(f"{name} {count}" for name, count in sorted(result["algorithms"].items()))
    how = f"{algo}: {chosen}" if len(result["algorithms"]) > 1 else algo
    yield f"{model}: calibrated on {result['samples']} samples ({how})"
    yield f"INT8: {_ops(result['int8'])}; {arithmetic(result)}"
    yield f"FP32: {_ops(result['fp32'])}"
    reasons = Counter((kept["op_type"], kept["reason"]) for kept in result["kept"]).most_common()
    for (kind, reason), count in reasons[:_SHOWN]:
        yield f"  {kind} {count}: {reason}"
    if reasons[_SHOWN:]:
        yield f"  {sum(count for _, count in reasons[_SHOWN:])} for other reasons, which --json lists"
    yield on_disk(result["bytes"])
    simulation, int8 = f"{output}/quant", f"{output}/int8"
    yield f"written: {simulation} (simulation), {int8} (INT8)"
    models = ["--fp32-model", model, "--quant-model", simulation, "--int8-model", int8]
    yield f"next: {shlex.join(['quant', 'compare', *models])} --data TEST_DATA"
    yield f"next: {shlex.join(['quant', 'bench', '--model', int8, '--against', model])}"


def _ops(counts: Mapping[str, int]) -> str:
    """conv2d 3, mul 1 -> 4 ops (conv2d 3, mul 1)"""
    total = sum(counts.values())
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()) if count)
    return f"{total} {'op' if total == 1 else 'ops'}" + (f" ({kinds})" if kinds else "")
