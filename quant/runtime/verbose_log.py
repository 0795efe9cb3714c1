"""oneDNN's verbose log -> kernels: the proof of what ran, at which data types, on which ISA.

Log format: https://oneapi-src.github.io/oneDNN/dev_guide_verbose.html (v1 lines of `profile_exec`).
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Declared", "Kernel", "Proof", "kernels", "proof"]

_INT8_SOURCES = {"src:s8", "src:u8", "src_layer:u8", "src_layer:s8"}
_INT8_WEIGHTS = {"wei:s8", "wei_layer:s8"}
_GATES = {"vanilla_gru": 3, "lbr_gru": 3, "vanilla_lstm": 4, "vanilla_rnn": 1}
_WIDTHS = {"f64": 8, "f32": 4, "s32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1}  # bytes
_WEIGHTED = ("convolution", "deconvolution", "inner_product", "matmul", "rnn")


@dataclass(frozen=True)
class Kernel:
    """One executed primitive. `macs` is 0 for those that don't multiply and accumulate."""

    op: str
    implementation: str
    types: tuple[str, ...]  # e.g. ("src:u8", "wei:s8", "dst:u8"); of an rnn "src_layer:u8", "wei_layer:s8", ...
    problem: str
    ms: float
    macs: int

    @property
    def int8(self) -> bool:
        return bool(_INT8_SOURCES.intersection(self.types)) and bool(_INT8_WEIGHTS.intersection(self.types))

    @property
    def weighted(self) -> bool:
        """Whether it multiplies and accumulates."""
        return self.op in _WEIGHTED

    @property
    def moved(self) -> int:
        """Bytes that a reorder reads and writes; 0 of other primitives."""
        if self.op != "reorder":
            return 0
        count = math.prod(int(dim) for dim in self.problem.split(":")[0].split("x"))
        return count * sum(_WIDTHS[entry.partition(":")[2]] for entry in self.types)

    @property
    def isa(self) -> str:
        return self.implementation.rpartition(":")[2]


def kernels(lines: Iterable[str]) -> Iterator[Kernel]:
    """The executed primitives of a log, in order; other lines are passed over."""
    for line in lines:
        parts = line.strip().split(",")
        if len(parts) < 12 or parts[0] != "onednn_verbose" or "exec" not in parts[:5]:
            continue
        at = parts.index("exec")
        op, implementation, types, problem, ms = parts[at + 2], parts[at + 3], parts[at + 5], parts[-2], parts[-1]
        short = tuple(":".join(entry.split(":")[:2]) for entry in types.split())
        algorithm = re.search(r"\balg:(\w+)", line)
        macs = _macs(op, problem) * (_GATES.get(algorithm[1], 1) if op == "rnn" and algorithm else 1)
        yield Kernel(op, implementation, short, problem, float(ms), macs)


def _macs(op: str, problem: str) -> int:
    """Multiply-accumulates from oneDNN's problem description, e.g. mb1_ic64oc256_ih56oh56kh1..._iw56ow56kw1...

    >>> _macs("inner_product", "mb2ic1024oc32")
    65536
    >>> _macs("deconvolution", "mb1_ic8oc4_ih5oh10kh2sh2dh0ph0_iw5ow10kw2sw2dw0pw0")
    3200
    >>> _macs("matmul", "8x16x64:8x64x32")
    262144
    >>> _macs("rnn", "l1t18mb3sic128slc256dhc128dic128")
    2654208
    """
    if op == "matmul":
        left, right = (side.split("x") for side in problem.split(":")[:2])
        return math.prod(int(dim) for dim in left) * int(right[-1])
    if op not in _WEIGHTED:
        return 0
    size = {name: int(value) for name, value in re.findall(r"([a-z]+)(\d+)", problem)}
    if op == "rnn":  # per gate: layers, steps, batch, (input + state) x output channels
        return size["l"] * size["t"] * size["mb"] * (size["slc"] + size["sic"]) * size["dhc"]
    if op == "inner_product":
        return math.prod(size.get(name, 1) for name in ("mb", "ic", "oc", "id", "ih", "iw"))
    # A transposed convolution spreads each pixel of its input, any other gathers each pixel of its output.
    pixels = ("id", "ih", "iw") if op == "deconvolution" else ("od", "oh", "ow")
    spread = math.prod(size.get(name, 1) for name in ("mb", "oc", *pixels, "kd", "kh", "kw"))
    return spread * size["ic"] // size.get("g", 1)


@dataclass(frozen=True)
class Proof:
    """What one run of a model did: the share of multiply-accumulates in INT8 kernels, and those kernels' ISAs.

    `uncounted`: op types that multiply, or may, beside those that the share is of.
    """

    share: float
    isas: tuple[str, ...]
    int8_kernels: int
    fp32_kernels: int
    uncounted: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As a sentence."""
        left_out = f" (not counted: {', '.join(self.uncounted)})" if self.uncounted else ""
        isas = "".join(f" {isa}" for isa in self.isas)
        return f"INT8 kernels did {100 * self.share:.1f}% of the multiply-accumulates{isas}{left_out}"


@dataclass(frozen=True)
class Declared:
    """What a program's shapes say of a run: all multiply-accumulates, and those of ops that a conversion left float32.

    `uncounted`: as quant.ir.ops.arithmetic.Arithmetic has it.
    """

    macs: int = 0
    float_macs: int = 0
    uncounted: tuple[str, ...] = ()


def proof(run: Iterable[Kernel], declared: Declared) -> Proof:
    """Sum up one run.

    The log lacks what Paddle runs on kernels of its own. So the total is the largest of what the log shows, what the
    program declares, and INT8 by the log with float32 by the program.
    """
    weighted = [kernel for kernel in run if kernel.weighted]
    in_int8 = [kernel for kernel in weighted if kernel.int8]
    int8 = sum(kernel.macs for kernel in in_int8)
    total = max(sum(kernel.macs for kernel in weighted), declared.macs, int8 + declared.float_macs)
    isas = tuple(sorted({kernel.isa for kernel in in_int8}))
    share = int8 / total if total else 0.0
    return Proof(share, isas, len(in_int8), len(weighted) - len(in_int8), tuple(declared.uncounted))
