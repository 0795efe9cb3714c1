"""Runs cases: `python -m tests.fuzz KIND SEED [SEED...]` or `python -m tests.fuzz KIND FIRST-LAST`.

With `--serve DIR` it answers lines of JSON, {"kind", "seed"}, with lines of JSON, until its input ends.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything loads OpenMP

from tests.fuzz.cases import case_of, faults
from tests.fuzz.harness import Harness

_INT8_RAN = re.compile(r'"int8_mac_share": ?(?:0\.[0-9]*[1-9]|1)')  # by oneDNN's own log


def result_of(harness: Harness, kind: str, seed: int) -> dict[str, Any]:
    """One case: what was done, how it ended, and what is wrong with that."""
    case = case_of(kind, seed)
    told: list[str] = []
    ending = harness.run(lambda place: told.extend(case.damage(place)), case.argv)
    return {
        "kind": kind,
        "seed": seed,
        "file": told[0],
        "how": told[1],
        "argv": case.argv,
        "code": ending.code,
        "seconds": round(ending.seconds, 3),
        "crashed": "Paddle crashed" in ending.err,
        "in_int8": ending.code == 0 and bool(_INT8_RAN.search(ending.out)),
        "err": ending.err[-2000:],
        "out": ending.out[-2000:],
        "faults": faults(case, told[0], ending),
        "again": case.again,
    }


def _serve(root: Path) -> None:
    harness = Harness(root)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(result_of(harness, **json.loads(line))), flush=True)


def _seeds(words: list[str]) -> list[int]:
    seeds: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def _main() -> int:
    if sys.argv[1] == "--serve":
        _serve(Path(sys.argv[2]))
        return 0
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="quant-fuzz-") as root:
        harness = Harness(Path(root) / "fuzz")
        for seed in _seeds(sys.argv[2:]):
            result = result_of(harness, sys.argv[1], seed)
            wrong += bool(result["faults"])
            print(json.dumps(result), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(_main())
