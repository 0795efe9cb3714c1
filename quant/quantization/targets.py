"""What a CPU tier asks of an INT8 model."""

from typing import TypeVar

from quant import cpu
from quant.ir.numerics import REDUCED, SIGNED
from quant.process import isolate

__all__ = ["weight_levels"]

Progress = isolate.Progress
S = TypeVar("S")
T = TypeVar("T")


def weight_levels(target: str | None) -> int:
    """Levels of weights for a CPU tier: 7 bits where 16-bit sums could saturate. None: this CPU's tier."""
    return SIGNED if cpu.tier_of(target).vnni else REDUCED
