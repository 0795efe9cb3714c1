"""INT8 for PaddlePaddle models on x86 CPUs: convert, prove that it is accurate, prove that it is fast."""

import importlib
import os
from typing import Any

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before Paddle loads: the INT8 tooling is legacy-format only

# Public name -> its module. Loaded on first use, because Paddle takes two seconds to import and the command line
# leaves it to child processes.
_HOMES = {
    "Coverage": "quant.conversion",
    "Graph": "quant.graph",
    "Predictor": "quant.predictor",
    "QuantError": "quant.errors",
    "Settings": "quant.predictor",
    "apply_table": "quant.calibration_table",
    "calibrate": "quant.calibration",
    "convert": "quant.conversion",
    "lift_quantizers": "quant.passes",
    "load_dir": "quant.graph",
    "lower_quantizers": "quant.passes",
    "paired": "quant.metrics",
    "read_table": "quant.calibration_table",
    "save_dir": "quant.graph",
    "sqnr": "quant.metrics",
    "table_of": "quant.calibration_table",
    "verdict": "quant.metrics",
    "write_table": "quant.calibration_table",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
