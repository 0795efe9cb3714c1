"""What was measured, raw: per-sample outcomes and timing samples. Everything else is derived on reading.

Schema history: 1 - first.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant import cpu

__all__ = ["SCHEMA", "Machine", "Record", "from_json", "to_json"]

SCHEMA = 1
_SHOWN_FLAGS = ("avx2", "avx512f", "avx512bw", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """Where a record was taken. Records of unlike machines are not compared in absolute terms."""

    flags: tuple[str, ...]
    tier: str
    cores: int
    python: str
    packages: Mapping[str, str]

    @staticmethod
    def here() -> "Machine":
        packages = {}
        for name in ("paddlepaddle", "numpy", "quant-onednn"):
            try:
                packages[name] = version(name)
            except PackageNotFoundError:
                continue
        found = cpu.flags()
        shown = tuple(flag for flag in _SHOWN_FLAGS if flag in found)
        return Machine(shown, cpu.detect().name, cpu.cores(), platform.python_version(), packages)


@dataclass(frozen=True)
class Record:
    """One model run at one precision on one ISA.

    `outcomes`: metric -> a string of 0 and 1, one a sample, in the dataset's order. `latency_s`: one value a round;
    in a paired measurement round i of both records ran back to back. `sqnr_db`: reference precision -> dB.
    `int8_share`: share of multiply-accumulates that INT8 kernels did, from oneDNN's log. Absent is None.
    """

    model: str
    precision: str
    isa: str
    threads: int
    batch: int
    samples: int = 0
    outcomes: Mapping[str, str] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    latency_s: tuple[float, ...] = ()
    int8_share: float | None = None
    kernel_isas: tuple[str, ...] = ()
    variant: str = ""
    overhead: float | None = None  # share of an evaluation's wall time outside predictor.run

    def hits(self, metric: str) -> NDArray[np.bool_]:
        hits: NDArray[np.bool_] = np.frombuffer(self.outcomes[metric].encode(), np.uint8) == ord("1")
        return hits

    def score(self, metric: str) -> float:
        return float(self.hits(metric).mean())


def to_json(machine: Machine, records: tuple[Record, ...]) -> str:
    content = {"schema": SCHEMA, "machine": asdict(machine), "records": [asdict(record) for record in records]}
    return json.dumps(content, indent=1, sort_keys=True)


def from_json(text: str) -> tuple[Machine, tuple[Record, ...]]:
    """The inverse of `to_json`. Raises ValueError for another schema."""
    content: dict[str, Any] = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema {content.get('schema')!r}, this version reads {SCHEMA}")
    machine = content["machine"]
    records = (
        Record(**{**entry, "latency_s": tuple(entry["latency_s"]), "kernel_isas": tuple(entry["kernel_isas"])})
        for entry in content["records"]
    )
    return Machine(**{**machine, "flags": tuple(machine["flags"])}), tuple(records)
