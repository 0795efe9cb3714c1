"""Models in Paddle 3's own format (PIR: inference.json, inference.pdiparams), read as graphs of legacy ops.

Paddle has INT8 kernels for legacy programs only, and no way back from PIR. Each PIR op has a legacy form that computes
the same bits: most are renamings (`table`), some take a function (`special`).
"""

from quant.ir.pir.reader import read_program
from quant.ir.pir.translate import translated

__all__ = ["read_program", "translated"]
