"""What was measured, raw: per-sample outcomes and timing samples. Everything else is derived on reading.

Schema history: 1 - first; 2 - outcomes are columns of counts, agreement, cosine, repeat, by_length; 3 - origin.
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
from quant.metrics import METRICS

__all__ = ["SCHEMA", "Machine", "Record", "columns", "from_json", "to_json"]

SCHEMA = 3
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

    `outcomes`: metric -> the columns of its counts (see quant.metrics.Metric), each a string of one number a sample,
    in the dataset's order. `latency_s`: one value a round, seconds a batch; in a paired measurement round i of both
    records ran back to back. `repeat`: how often each batch ran in a row; `by_length`: samples sorted by length.
    `sqnr_db`, `cosine`, `agreement`: reference precision -> dB, mean cosine, share of equal integers.
    `int8_share`: share of multiply-accumulates that INT8 kernels did, from oneDNN's log. Absent is None. `origin`: of
    the model, "" for an embedded one.
    """

    model: str
    precision: str
    isa: str
    threads: int
    batch: int
    samples: int = 0
    outcomes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    cosine: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    latency_s: tuple[float, ...] = ()
    int8_share: float | None = None
    kernel_isas: tuple[str, ...] = ()
    variant: str = ""
    repeat: int = 1
    by_length: bool = False
    origin: str = ""
    overhead: float | None = None  # share of an evaluation's wall time outside predictor.run

    def counts(self, metric: str) -> NDArray[np.int64]:
        """What each sample adds to a metric, [N, k]."""
        return np.stack([np.array(column.split(), np.int64) for column in self.outcomes[metric]], axis=1)

    def score(self, metric: str) -> float:
        return float(METRICS[metric].score(self.counts(metric).sum(0)))


def columns(counts: NDArray[np.int64]) -> tuple[str, ...]:
    """The inverse of `Record.counts`."""
    return tuple(" ".join(map(str, column.tolist())) for column in counts.T)


def to_json(machine: Machine, records: tuple[Record, ...]) -> str:
    content = {"schema": SCHEMA, "machine": asdict(machine), "records": [asdict(record) for record in records]}
    return json.dumps(content, indent=1, sort_keys=True)


def from_json(text: str) -> tuple[Machine, tuple[Record, ...]]:
    """The inverse of `to_json`. Raises ValueError for another schema."""
    content: dict[str, Any] = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise ValueError(f"schema {content.get('schema')!r}, this version reads {SCHEMA}")
    machine = content["machine"]

    def record(entry: dict[str, Any]) -> Record:
        lists = {"latency_s": tuple(entry["latency_s"]), "kernel_isas": tuple(entry["kernel_isas"])}
        outcomes = {metric: tuple(found) for metric, found in entry["outcomes"].items()}
        return Record(**{**entry, **lists, "outcomes": outcomes})

    records = map(record, content["records"])
    return Machine(**{**machine, "flags": tuple(machine["flags"])}), tuple(records)
