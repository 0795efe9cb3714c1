"""INT8 for PaddlePaddle models on x86 CPUs: convert, prove that it is accurate, prove that it is fast."""

import importlib
import os
from typing import Any

os.environ.setdefault("FLAGS_enable_pir_api", "0")  # before Paddle loads: the INT8 tooling is legacy-format only

# Public name -> its module. Loaded on first use, because Paddle takes two seconds to import and the command line
# leaves it to child processes.
_HOMES = {
    "Coverage": "quant.quantization.conversion",
    "Graph": "quant.ir.graph",
    "Predictor": "quant.runtime.predictor",
    "QuantError": "quant.errors",
    "Settings": "quant.runtime.predictor",
    "apply_table": "quant.quantization.calibration_table",
    "calibrate": "quant.quantization.calibration",
    "convert": "quant.quantization.conversion",
    "lift_quantizers": "quant.ir.passes",
    "load_dir": "quant.ir.graph",
    "lower_quantizers": "quant.ir.passes",
    "paired": "quant.metrics.scores",
    "read_table": "quant.quantization.calibration_table",
    "save_dir": "quant.ir.graph",
    "sqnr": "quant.metrics.scores",
    "table_of": "quant.quantization.calibration_table",
    "verdict": "quant.metrics.scores",
    "write_table": "quant.quantization.calibration_table",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
