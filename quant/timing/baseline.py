"""The FP32 that INT8 is compared with: the fastest way that a user could run the model, found in one way everywhere.

Whatever tells a ratio (suite, bench, gate, tune, convert --optimize, the peers) times the runs that `fp32_variants`
gives for the user's own FP32 model. Where only a simulation is known, these are of what it is without its quantizers,
as it was given and after the passes that conversion runs: either may be the one that Paddle fuses better.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["fp32_variants", "variants", "worth_timing"]

_WAYS: tuple[dict[str, Any], ...] = (
    {"executor": "direct"},
    *({"onednn": onednn, "optimise": fused} for fused in (True, False) for onednn in (True, False)),
)


def variants(model: Path, precision: str, executor: str = "auto") -> list[dict[str, Any]]:
    """The ways to run a model by an executor, of which the fastest counts: several for FP32, one otherwise."""
    if precision != "fp32":
        return [{"model": str(model), "precision": precision, "executor": executor}]
    ways = [way for way in _WAYS if executor in ("auto", way.get("executor", "paddle"))]
    return [{"model": str(model), "precision": "fp32", **way} for way in ways]


def fp32_variants(*models: Path) -> list[dict[str, Any]]:
    """The ways to run an FP32 model, all forms of it that there are; the fastest of them is the baseline."""
    return [way for model in models for way in variants(model, "fp32")]


def worth_timing(runs: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Without graph fusion only recurrent layers are ever faster: other models' unfused runs are left out."""
    from quant.ir.fusion import RECURRENT  # these load Paddle, which commands that only list the runs don't need
    from quant.ir.graph import files_of, op_types

    for run in runs:
        if run.get("optimise", True) or op_types(files_of(Path(run["model"])).program) & set(RECURRENT):
            yield run
