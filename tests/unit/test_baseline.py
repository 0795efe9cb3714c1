"""The FP32 that INT8 is compared with is found in one way, by all that tell a ratio."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quant.ir.graph import Graph, load_dir, save_dir
from quant.ir.passes import lower_quantizers
from quant.quantization.calibration import calibrate
from quant.results.target import Case
from quant.search import for_speed
from quant.timing import rounds, side_by_side
from quant.timing.baseline import fp32_variants, worth_timing
from tests.nets import Net, residual_net

ROOT = Path(__file__).parents[2]


class _Enough(Exception):  # noqa: N818 - no error
    pass


def saved(graph: Graph, place: Path) -> Path:
    place.mkdir()
    save_dir(graph, place)
    return place


def test_no_other_module_lists_ways_to_run_a_model() -> None:
    """A list of settings elsewhere would be another baseline."""
    found = set()
    for path in [*(ROOT / "quant").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if {"onednn", "optimise"} <= keys:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"quant/timing/baseline.py"}


@pytest.mark.parametrize("how", ["in_pairs", "in_processes"])
def test_suite_gate_and_bench_take_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def timed(contenders: Sequence[Any], **more: Any) -> Any:
        seen.extend(contenders)
        raise _Enough

    monkeypatch.setattr(side_by_side, "bench", timed)
    monkeypatch.setattr(rounds, "in_fresh_processes", timed)
    with pytest.raises(_Enough):
        getattr(side_by_side, how)("name", Path("fp32"), Path("int8"), {}, Case())
    assert seen[0] == fp32_variants(Path("fp32"))


def runs_of(monkeypatch: pytest.MonkeyPatch, own: Path | None) -> list[Mapping[str, Any]]:
    """What optimise times as FP32, and the op types of each."""
    seen: list[Mapping[str, Any]] = []

    def fastest(runs: Sequence[Mapping[str, Any]], *more: Any) -> Any:
        seen.extend({**run, "types": set(load_dir(Path(run["model"])).op_counts())} for run in runs)
        raise _Enough

    monkeypatch.setattr(for_speed, "search", lambda propose, race, limits: (frozenset(), []))
    monkeypatch.setattr(for_speed, "_fastest", fastest)
    batches = Net().batches(1)
    with pytest.raises(_Enough):
        for_speed.optimise(lower_quantizers(calibrate(residual_net(), batches)), batches[0], budget_s=1.0, own=own)
    return seen


def test_convert_times_the_users_own_model_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = saved(residual_net(), tmp_path / "own")
    found = runs_of(monkeypatch, own)
    assert [{key: value for key, value in run.items() if key != "types"} for run in found] == list(
        worth_timing(fp32_variants(own))
    )
    assert "batch_norm" in found[0]["types"]


def test_else_the_simulation_without_quantizers_as_given_and_as_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runs_of(monkeypatch, None)
    ways = len(list(fp32_variants(Path("x"))))
    assert len({run["model"] for run in found}) == 2 and len(found) == 2 * (ways - 2)  # unfused ones are left out
    assert not any("quantize" in type for run in found for type in run["types"])


def test_unfused_runs_are_timed_of_recurrent_models_only(tmp_path: Path) -> None:
    place = saved(residual_net(), tmp_path / "fp32")
    assert all(run.get("optimise", True) for run in worth_timing(fp32_variants(place)))
    [int8] = [{"model": "nowhere", "precision": "int8"}]
    assert list(worth_timing([int8])) == [int8]
