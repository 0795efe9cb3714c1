"""A job that tells which modules an evaluation loads. It imports nothing else of this package."""

import sys
from typing import Any

from quant.evaluation.worker import evaluate


def loaded_by(runs: list[dict[str, Any]], data: str, outputs: str) -> list[str]:
    """In a child: an evaluation, and the modules of this package that are loaded after it."""
    evaluate(runs, data, outputs, batch_size=500, batch_num=1)
    return sorted(name for name, module in sys.modules.items() if name.partition(".")[0] == "quant" and module)
