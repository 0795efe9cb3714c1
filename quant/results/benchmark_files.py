"""pytest-benchmark's files: what timed cases store in them, and the run that they are read as.

A case that times FP32 and INT8 against each other keeps the two records under "quant" in its `extra_info`, and the
machine is under "quant" in `machine_info`. All else in the file is pytest-benchmark's own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from quant.results import comparison
from quant.results.record import SCHEMA, Load, Machine, Record, Run
from quant.results.target import Row

__all__ = ["extra_info", "from_benchmark", "is_benchmark", "machine_info"]

_KEY = "quant"


def extra_info(row: Row, records: Sequence[Record], command: str) -> dict[str, Any]:
    """What a case adds to its `extra_info`; `command`: what measures it again, see Run."""
    told = {"schema": SCHEMA, "command": command, "row": asdict(Row.of(row)), "records": list(map(asdict, records))}
    return {_KEY: told}


def machine_info() -> dict[str, Any]:
    """What a session adds to its `machine_info`."""
    return {_KEY: asdict(Machine.here())}


def is_benchmark(content: Any) -> bool:
    """Whether a parsed JSON file is pytest-benchmark's."""
    return isinstance(content, Mapping) and isinstance(content.get("benchmarks"), list)


def from_benchmark(content: Mapping[str, Any]) -> Run:
    """The run that a parsed file of pytest-benchmark holds. Raises ValueError where it holds none."""
    try:
        told = [bench["extra_info"][_KEY] for bench in content["benchmarks"] if _KEY in bench["extra_info"]]
        if not told:
            raise ValueError("a file of pytest-benchmark without a case that timed FP32 and INT8 against each other")
        commit = content["commit_info"]
        parts = {
            "schema": told[0]["schema"],
            "machine": content["machine_info"][_KEY],
            "rows": {entry["row"]["name"]: entry["row"] for entry in told},
            "records": [record for entry in told for record in entry["records"]],
            "started": datetime.fromisoformat(content["datetime"]).astimezone(UTC).isoformat(timespec="seconds"),
            "commit": "" if commit["id"] == "unversioned" else commit["id"],
            "dirty": commit["dirty"],
            "command": told[0]["command"],
            "kind": "pytest",
            "load": asdict(Load()),
            "anatomy": {},
            "missed": [],
        }
        run = Run.from_json(json.dumps(parts))
        missed = tuple(comparison.misses((), run.timed, run.rows))
        return replace(run, missed=missed, passed=comparison.passed((), run.timed, run.rows))
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a whole file of pytest-benchmark: {type(error).__name__} {error}") from error
