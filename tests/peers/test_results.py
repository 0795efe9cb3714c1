"""Results -> verdicts and tables; the tables of engines, contenders and goals."""

import ast
import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers import compare, contenders, models, results
from bench.peers.__main__ import _caps
from bench.peers.compare import Cell, Row
from bench.peers.contenders import CONTENDERS, ENGINES, GOALS, Contender, contenders_of, engine_of, ours
from quant import cpu
from quant.cli.shared import err
from quant.results.record import Machine
from quant.suites.registry import MODELS

ROOT = Path(__file__).parents[2]
PEERS = ("openvino", "nncf", "onnx", "onnxruntime", "paddle2onnx")
MACHINE = Machine(("avx2", "avx512_vnni"), "avx512_vnni", 2, "3.11", {})
TIMES = {"ours": 8.0, "ours-paddle": 9.0, "paddle": 16.0, "paddle-own": 16.0, "openvino": 10.0, "onnxruntime": 20.0}


def cell(milliseconds: float) -> Cell:
    return Cell(tuple(milliseconds / 1e3 * wobble for wobble in (1.0, 1.01, 0.99, 1.02, 0.98)))


def row(model: str, **milliseconds: float) -> Row:
    return Row(model, None, 1, 1, {f"{name}-int8": cell(value) for name, value in {**TIMES, **milliseconds}.items()})


def result(rows: list[Row], peer: str) -> results.Judged:
    return next(entry for entry in results.judged(rows) if entry.goal.peer == peer)


def test_a_goal_is_reached_by_every_row_and_by_the_mean() -> None:
    rows = [row("resnet50"), row("vgg16", ours=9.0)]
    assert [entry.result for entry in results.judged(rows)] == ["reached"] * len(GOALS)
    assert result(rows, "openvino").mean == pytest.approx(math.sqrt(0.8 * 0.9))


def test_one_row_above_misses_a_goal_whatever_the_mean() -> None:
    rows = [row("resnet50", ours=1.0), row("vgg16", ours=10.1)]
    missed = result(rows, "openvino")
    assert missed.mean < 0.5 and missed.above == ["vgg16"] and missed.result == "MISSED"


def test_the_mean_alone_misses_a_goal() -> None:
    missed = result([row("resnet50", ours=9.5)], "openvino")
    assert missed.above == [] and missed.result == "MISSED"


def test_what_was_not_compared_is_not_reached() -> None:
    broken = row("vgg16")
    broken = replace(broken, cells={**broken.cells, "openvino-int8": Cell(error="crashed (SIGSEGV)")})
    entry = result([row("resnet50"), broken], "openvino")
    assert entry.missing == ("vgg16",) and entry.result == "INCOMPLETE"
    nothing = result([broken], "openvino")
    assert nothing.ratios == {} and nothing.result == "MISSED"
    assert "crashed (SIGSEGV)" in results.markdown(MACHINE, [[row("resnet50"), broken]])


def test_a_run_is_complete_when_ours_and_another_were_timed_on_every_row() -> None:
    whole = row("resnet50")
    alone = replace(whole, cells={"ours-int8": cell(1), "openvino-int8": Cell(error="x"), "paddle-fp32": cell(3)})
    without = replace(whole, cells={**whole.cells, "ours-int8": Cell(error="x")})
    two_of_ours = replace(whole, cells={"ours-int8": cell(1), "ours-paddle-int8": cell(2)})
    assert results.complete([whole])
    assert not results.complete([two_of_ours])
    assert not results.complete([whole, alone])
    assert not results.complete([without, whole])


def test_ratios_pair_the_rounds_that_both_ran() -> None:
    mine, theirs = Cell((1.0, 2.0, 4.0)), Cell((2.0, 4.0, 8.0, 100.0))
    found = results.ratio_of(mine, theirs)
    assert found and found[0] == 0.5
    assert results.ratio_of(mine, Cell(error="x")) is None


def test_every_engine_has_its_column_and_every_row_its_line() -> None:
    rows = [replace(row(spec.name), reference={"top1": ("1 1 0 1", "1 1 1 1")}) for spec in MODELS]
    tables = results.tables(rows)
    speed, floats, accuracy, share, goals = tables
    assert len(speed.rows) == len(MODELS) + 1 and len(floats.rows) == len(MODELS)
    assert [line[1] for line in speed.rows[:-1]] == ["8.00"] * len(MODELS)
    assert speed.rows[-1][0] == "geometric mean" and "0.80" in speed.rows[-1] and "0.40" in speed.rows[-1]
    assert all(line[2] == "75.00" for line in accuracy.rows)
    assert len(goals.rows) == len(GOALS) * len(ours())
    for table in tables:
        assert {len(line) for line in table.rows} == {len(table.columns)}, table.title
    assert len(share.columns) == 1 + len(contenders_of("int8"))


def test_each_table_of_times_has_an_engine_beside_itself() -> None:
    full = row("resnet50")
    twins = {"ours-again-int8": cell(8.0), "openvino-again-int8": cell(10.2), "paddle-again-fp32": cell(30.3)}
    rows = [replace(full, cells={**full.cells, "paddle-fp32": cell(30.0), **twins}), row("vgg16")]
    speed, floats = results.tables(rows)[:2]
    first, second, mean = (dict(zip(speed.columns, line, strict=True)) for line in speed.rows)
    assert first["ours / itself"] == "1.00 [1.00, 1.00]" and first["OpenVINO / itself"] == "0.98 [0.98, 0.98]"
    assert second["ours / itself"] == second["OpenVINO / itself"] == "-"
    assert mean["ours / itself"] == "1.00" and mean["OpenVINO / itself"] == "0.98"
    assert dict(zip(floats.columns, floats.rows[0], strict=True))["FP32, ours and Paddle / itself"].startswith("0.99 [")
    for table in (speed, floats):
        assert "the same model in two processes" in table.note
        assert not any("again" in column for column in table.columns)


def test_accuracy_is_paired_with_our_fp32() -> None:
    fp32, worse = ("1 1 1 1 1 1 1 0 1 1", " ".join(["1"] * 10)), ("1 1 1 1 1 1 0 0 1 0", " ".join(["1"] * 10))
    full = row("resnet50")
    cells = {
        **full.cells,
        "ours-int8": replace(full.cells["ours-int8"], outcomes={"top1": fp32}),
        "openvino-int8": replace(full.cells["openvino-int8"], outcomes={"top1": worse}),
        "paddle-int8": replace(full.cells["paddle-int8"], outcomes_error="crashed (SIGFPE)"),
    }
    table = results.tables([replace(full, cells=cells, reference={"top1": fp32})])[2]
    line = dict(zip(table.columns, table.rows[0], strict=True))
    assert line["FP32 %"] == "90.00" and line["ours"].startswith("+0.00 [")
    assert line["OpenVINO"].startswith("+20.00 [") and line["ONNX Runtime"] == "-"
    assert line["Paddle on our simulation"] == "(crashed (SIGFPE))"


def test_json_holds_every_round_and_no_nan() -> None:
    broken = Row("vgg16", "avx512_core_vnni", 1, 1, {"ours-int8": cell(1)})
    content = json.loads(results.to_json(MACHINE, [[row("resnet50")], [broken]]), parse_constant=lambda name: 1 / 0)
    assert len(content["rows"][0]["cells"]["ours-int8"]["seconds"]) == 5
    assert {goal["isa"] for goal in content["goals"]} == {None, "avx512_core_vnni"}
    assert {goal["result"] for goal in content["goals"] if goal["isa"]} == {"MISSED"}


def test_the_report_says_how_each_engine_was_capped() -> None:
    capped = results.markdown(MACHINE, [[replace(row("resnet50"), isa="avx2")]])
    assert "OpenVINO: openvino" in capped and "capped by ONEDNN_MAX_CPU_ISA" in capped and "capped to avx2" in capped
    assert "ONNX Runtime: onnxruntime" in capped and "runs uncapped" in capped
    assert "runs uncapped" not in results.markdown(MACHINE, [[row("resnet50")]])


def test_a_further_variant_of_ours_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    further = Contender("ours", "int8", "ours, few kept", {"cache_capacity": 1}, judged=True, variant="few")
    assert further.key == "ours-few-int8"
    monkeypatch.setattr(contenders, "CONTENDERS", (*CONTENDERS, further))
    full = row("resnet50")
    rows = [replace(full, cells={**full.cells, further.key: cell(5)})]
    assert len(results.judged(rows)) == 2 * len(GOALS)
    assert "ours, few kept / OpenVINO" in results.tables(rows)[0].columns
    assert "0.50" in results.tables(rows)[0].rows[-1]


# --- the tables


def test_contenders_are_told_apart_and_goals_have_peers() -> None:
    keys = [contender.key for contender in CONTENDERS]
    assert len(set(keys)) == len(keys) and len({engine.name for engine in ENGINES}) == len(ENGINES)
    assert len(ours()) >= 1 and all(contender.precision == "int8" for contender in ours())
    for goal in GOALS:
        assert [c.judged for c in contenders_of("int8") if c.engine == goal.peer] == [False]
        assert 0 < goal.mean <= goal.each


def test_every_engine_can_be_built_and_has_a_worker() -> None:
    for contender in CONTENDERS:
        engine = engine_of(contender)
        assert engine.form in models._FORMS and models._FLOAT_FORMS[engine.form] in models._FORMS
        source = importlib.util.find_spec(engine.module)
        assert source and source.origin
        names = [node.name for node in ast.parse(Path(source.origin).read_text()).body if hasattr(node, "name")]
        assert "load" in names, engine.module


def test_every_row_has_a_case() -> None:
    for spec in MODELS:
        assert models.case_of(spec).batch == (1 if spec.full else 50)


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(ENGINES[2], packages=("openvino-of-another-world",))
    assert absent.missing() == ["openvino-of-another-world"]
    assert absent.versions() == {"openvino-of-another-world": "not installed"}


def test_an_engine_is_capped_by_its_own_setting() -> None:
    named = {engine.name: engine for engine in ENGINES}
    assert named["ours"].environment("avx2") == cpu.isa_environment("avx2") == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert named["ours"].environment(None) == named["onnxruntime"].environment("avx2") == {}


def test_bf16_is_left_out_where_the_cpu_or_the_cap_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    [bf16, *_], [int8, *_] = contenders_of("bf16"), contenders_of("int8")
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx512_bf16"}))
    assert compare._lacks(bf16, None) == compare._lacks(int8, "avx2") == ""
    assert compare._lacks(bf16, "avx512_core_vnni") == "avx512_core_vnni has no BF16"
    assert compare._lacks(bf16, "amx") == ""
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2"}))
    assert compare._lacks(bf16, None) == "this CPU has no BF16"


def test_a_cpu_with_amx_stands_for_vnni_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "detect", lambda: cpu.TIERS[-1])
    assert _caps(None) == [None, "avx512_core_vnni"] and _caps("avx2") == ["avx2"]
    monkeypatch.setattr(cpu, "detect", lambda: cpu.TIERS[-2])
    assert _caps(None) == [None]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--model", "resnet5"], "resnet50"), (["--threads", "999"], "cores"), (["--isa", "avx3"], "ISA")],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from bench.peers.__main__ import main

    command = typer.Typer(add_completion=False)
    command.command()(main)
    with pytest.raises(SystemExit) as ended:
        command([*arguments, "--output-dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]
    assert err is not None and not (tmp_path / "out" / "peers.md").exists()


@pytest.mark.parametrize("package", ["quant", "fixtures"])
def test_nothing_else_imports_a_peer(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {*PEERS}, path


def test_the_parent_loads_neither_paddle_nor_a_peer() -> None:
    import subprocess
    import sys

    script = f"import sys, bench.peers.__main__; sys.exit(any(name in sys.modules for name in ('paddle', *{PEERS!r})))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
