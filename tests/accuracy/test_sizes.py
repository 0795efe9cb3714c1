"""What the rows' models take on disk."""

import pytest

from quant.ir.graph import model_size
from quant.suites import embedded
from quant.suites.registry import ModelSpec

_SMALL = 0.01  # a compact network's program, with scales and steps, is a larger share of it than a full-size one's


@pytest.mark.parametrize("suffix", ["", "-7bit"], ids=["8bit", "7bit"])
def test_int8_takes_little_room(spec: ModelSpec, suffix: str) -> None:
    """The trained models; where others are timed, `bench` looks at those."""
    built = embedded.small_of(spec)
    share = model_size(built / f"int8{suffix}") / model_size(built / "fp32")
    assert share <= spec.max_size + (_SMALL if spec.full else 0)
