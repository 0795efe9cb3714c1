"""What `quant analyze` and `quant tune` might have found, invented: for tests of what shows it."""

import json
from pathlib import Path
from typing import Any

from quant.diagnosis.drift import Analysis, OpError, Scale
from quant.reports.drift import as_json

__all__ = ["analysis", "analysis_json", "tuning_json"]


def _op(number: int, name: str, **more: Any) -> OpError:
    values: dict[str, Any] = {
        "output": name or f"conv_{number}.tmp_0",
        "variable": f"{name or 'conv'}_{number}.int8",
        "types": ("fused_conv2d",),
        "int8": True,
        "sources": (name or "conv2d", "elementwise_add", "relu"),
        "op_ids": (number - 1,),
        "inputs": (f"{name or 'conv'}_{number - 1}.int8",) if number > 1 else (),
        "stored": "uint8",
        "shift": 0,
        "scale": 12.0,
        "grid": (6.0, 255),
        "scales": (Scale(name or "Scale_out", 42.5, 42.5),),
        "fp32_db": 40.0 - number,
        "fp32_cosine": 0.999,
        "quant_db": 60.0 - number,
        "quant_cosine": 1.0,
        "local_db": 150.0 - number,
        "local_cosine": 1.0,
        "local_fp32_db": 38.5,
        "low": 0.0,
        "high": 5.5,
        "saturated": 0.002,
        "clipped": 1e-6,
        "ends": 0.01,
        "outlier": (3, 2.0),
        "finite": True,
        "error": "",
        "unmeasured": "",
    }
    return OpError(**{**values, **more})


def analysis(title: str = "ResNet-50", name: str = "", ops: int = 24) -> Analysis:
    """An engine's fault in the third op, a threshold that is too wide in the fourth; `name`: in every text of an op."""
    faults: dict[int, dict[str, Any]] = {
        3: {"local_db": 21.5, "error": f"all values are 1.5 times what they should be{name}"},
        4: {"grid": (60.0, 255), "fp32_db": 28.0},
        20: {"local_db": None, "unmeasured": f"not asked for{name}"},
    }
    return Analysis(
        model=Path(name or "resnet50/int8"),
        title=title,
        executor=name or "direct",
        isa=name or "avx512_vnni",
        threads=1,
        samples=64,
        as_read_db=150.0,
        unseen=((name or "fc_0.tmp_0", name or "fc"),),
        ops=tuple(_op(number, name, **faults.get(number, {})) for number in range(1, ops + 1)),
    )


def analysis_json(title: str = "ResNet-50", name: str = "") -> str:
    return json.dumps(as_json(analysis(title, name)))


def _point(algo: str, ids: list[int], drop: float, ratio: float | None, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "algo": algo,
        "op_ids": ids,
        "tensors": {},
        "ops": [{"op_ids": [number], "op_type": "conv2d", "output": f"conv_{number}.tmp_0"} for number in ids],
        "score": 0.9445 - drop,
        "drop": drop,
        "low": drop - 0.0018,
        "high": drop + 0.002,
        "lost": 9,
        "won": 2,
        "p_value": 0.1,
        "verdict": "INCONCLUSIVE",
        "met": drop <= 0.003,
        "median_ms": None if ratio is None else 30.0 / ratio,
        "speedup": None if ratio is None else {"ratio": ratio, "low": ratio - 0.03, "high": ratio + 0.02},
        "chosen": False,
        "pareto": False,
    }
    return {**values, **more}


def tuning_json(title: str = "ResNet-50", name: str = "") -> str:
    """Five models, one of which wasn't timed; the fourth is chosen. `name`: in every text."""
    op = {"op_ids": [12], "op_type": name or "conv2d", "output": name or "conv_12.tmp_0"}
    points = [
        _point("abs_max", [], 0.0241, 3.31, pareto=True),
        _point("mse", [], 0.0110, 3.28, pareto=True),
        _point("kl", [], 0.05, None),
        _point(name or "mse", [12], 0.0018, 2.95, chosen=True, pareto=True, ops=[op], tensors={name or "conv_1": "kl"}),
        _point("mse", [12, 31], 0.0019, 2.70),
    ]
    content = {
        "schema": 3,
        "title": title,
        "metric": name or "top1",
        "max_drop": 0.003,
        "samples": 2000,
        "fp32": {"score": 0.9445, "median_ms": 30.0},
        "met": True,
        "verdict": name or "INCONCLUSIVE",
        "finished": True,
        "points": points,
        "trials": [{"kind": "guess", "failed": None}, {"kind": "guess", "failed": f"SIGSEGV{name}"}],
        "cpu": {"tier": "avx512_vnni", "isa": None, "threads": 1, "batch": 1},
        "budget_s": 600.0,
        "spent_s": 141.0,
    }
    return json.dumps(content)
