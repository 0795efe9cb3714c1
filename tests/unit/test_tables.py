"""CPU tiers, profile parsing, records, registry, report: tables and their readings."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from quant import cpu
from quant.cli import shared
from quant.errors import DataError, OptionError
from quant.reports import tables as report
from quant.results import comparison
from quant.results.record import SCHEMA, Anatomy, Failure, KeptOp, Kernel, Layer, Load, Machine, Record, Run, columns
from quant.results.speed_ratio import pairs as pairs_of
from quant.results.target import Row
from quant.runtime.verbose_log import Declared, kernels, proof
from quant.suites import registry
from quant.suites.registry import BY_NAME
from quant.timing.instances import Instance, Throughput
from tests import runs

LOG = """onednn_verbose,v1,info,oneDNN v3.6.2 (commit 28d6967)
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core_vnni,forward_inference,src:u8:a:blocked:acdb::f0 wei:s8:a:blocked:AcdB16a4b::f1:s8m1 bia:f32::blocked:a::f0 dst:u8:a:blocked:acdb::f0,attr-scales:src0:0:f32+wei:1:f32,alg:convolution_direct,mb2_ic8oc16_ih8oh4kh3sh2dh0ph1_iw8ow4kw3sw2dw0pw1,0.0998535
onednn_verbose,v1,primitive,exec,cpu,convolution,brdgmm_dw:avx512_core,forward_inference,src:f32::blocked:acdb::f0 wei:f32:a:blocked:Abcde16a::f0 bia:f32::blocked:a::f0 dst:f32::blocked:acdb::f0,,alg:convolution_direct,g32mb1_ic32oc32_ih14oh14kh3sh1dh0ph1_iw14ow14kw3sw1dw0pw1,0.02
onednn_verbose,v1,primitive,exec,cpu,inner_product,brgemm:avx512_core_vnni,forward_inference,src:u8:a:blocked:ab::f0 wei:s8:a:blocked:BA16a64b4a::f0 bia:f32::blocked:a::f0 dst:f32:a:blocked:ab::f0,attr-scales:src0:0:f32+wei:1:f32,,mb1ic1024oc1000,0.036
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32::blocked:abcd::f0 dst:s8::blocked:abcd::f0,attr-scales:src0:0:f32,,1x3x224x224,0.032
some other line
"""  # noqa: E501


def test_kernels_and_their_macs() -> None:
    found = list(kernels(LOG.splitlines()))
    assert [kernel.op for kernel in found] == ["convolution", "convolution", "inner_product", "reorder"]
    assert [kernel.int8 for kernel in found] == [True, False, True, False]
    assert [kernel.macs for kernel in found] == [2 * 16 * 8 * 4 * 4 * 9, 32 * 14 * 14 * 9, 1024 * 1000, 0]
    assert found[0].isa == "avx512_core_vnni"
    assert found[0].ms == pytest.approx(0.0998535)


def test_proof_counts_what_the_log_cannot_show() -> None:
    found = list(kernels(LOG.splitlines()))
    int8 = 2 * 16 * 8 * 4 * 4 * 9 + 1024 * 1000
    shown = proof(found, Declared())
    assert shown.share == pytest.approx(int8 / (int8 + 32 * 14 * 14 * 9))
    assert shown.isas == ("avx512_core_vnni",)
    assert (shown.int8_kernels, shown.fp32_kernels) == (2, 1)
    assert proof(found, Declared(2 * int8)).share == pytest.approx(0.5)  # half of the work never reached oneDNN
    assert proof([], Declared(100)).share == 0.0
    assert proof([], Declared()).share == 0.0  # nothing that multiplies is no success


FLAGS = {
    "avx2": {"avx2"},
    "avx512_core": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_vnni": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "amx": {"avx2", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "amx_int8"},
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_make_tiers(name: str) -> None:
    assert cpu.detect(FLAGS[name]).name == name
    assert cpu.detect(FLAGS[name] | {"sse4_2"}).name == name


def test_a_cpu_without_avx2_and_one_with_gaps() -> None:
    with pytest.raises(OptionError, match="lacks AVX2"):
        cpu.detect({"sse4_2"})
    assert cpu.detect(FLAGS["amx"] - {"avx512bw"}).name == "avx2"


def test_isa_names() -> None:
    assert cpu.tier_of("avx512_core_vnni") is cpu.tier_of("AVX512_VNNI") is cpu.TIERS[2]
    with pytest.raises(OptionError, match="did you mean 'avx512_vnni'"):
        cpu.tier_of("avx512_vni")
    best = cpu.detect()
    assert cpu.reachable()[0] is best
    for tier in cpu.TIERS[cpu.TIERS.index(best) + 1 :]:
        with pytest.raises(OptionError, match="doesn't reach"):
            cpu.isa_environment(tier.name)


def test_near_misses_in_the_registry() -> None:
    with pytest.raises(OptionError, match="did you mean 'resnet50'"):
        registry.find("resnet-50")
    names = [spec.name for spec in registry.MODELS]
    assert len(set(names)) == len(names)
    for spec in registry.MODELS:
        assert spec.calibration[0] != spec.test[0]
        for case in spec.cases:
            assert case.due_on("avx2") == case.due_on("avx512_core") == 1.0
            assert 1.0 < case.due_on("avx512_vnni") <= case.due_on("amx")


pairs = partial(pairs_of, rows=registry.BY_NAME)
passed = partial(comparison.passed, rows=registry.BY_NAME)
misses = partial(comparison.misses, rows=registry.BY_NAME)
accuracy_table = partial(report.accuracy_table, known=registry.BY_NAME)
speed_table = partial(report.speed_table, known=registry.BY_NAME)
MACHINE = Machine(("avx2",), "avx2", 2, "3.11", {"paddlepaddle": "3.3.1"})


def record(precision: str, outcomes: str, **more: object) -> Record:
    values = {"model": "resnet50", "isa": "avx512_vnni", "threads": 1, "batch": 50, "samples": len(outcomes)}
    found = columns(np.array([[int(hit), 1] for hit in outcomes]))
    both = {"top1": found, "top5": found}
    return Record(precision=precision, outcomes=both, **{**values, **more})  # type: ignore[arg-type]


def accuracy(int8: str, share: float = 1.0) -> list[Record]:
    right = "1" * 1900 + "0" * 100
    return [
        record("fp32", right),
        record("quant", right),
        record(
            "int8", int8, int8_share=share, sqnr_db={"fp32": 30.0, "quant": 50.0}, cosine={"fp32": 0.99, "quant": 1.0}
        ),
    ]


def speed(fp32: float, int8: float, threads: int = 1) -> list[Record]:
    noise = 1 + 0.01 * np.sin(np.arange(20))
    common = {"model": "resnet50", "isa": "avx512_vnni", "threads": threads, "batch": 1}
    return [
        Record(precision=name, latency_s=tuple(ms * noise), **common)  # type: ignore[arg-type]
        for name, ms in (("fp32", fp32), ("int8", int8))
    ]


def test_records_round_trip() -> None:
    records = (*accuracy("1" * 2000), *speed(3.0, 1.0), record("int8", "0110" * 500, data="d1", processes=2))
    parts = (
        (KeptOp("y", "fc", "no scale"),),
        (Kernel("fc", "brgemm", "u8", 2, 0.5, 0.9),),
        (Layer("y", "fc", 30.1, None),),
    )
    own = {"resnet50": Row.of(registry.BY_NAME["resnet50"])}
    run = Run(
        MACHINE, own, records, "2026-01-02T03:04:05+00:00", 1.5, "abc", True, "quant suite", "gate", 7,
        Load(0.5, 0.01, 3), {"resnet50": Anatomy({"conv2d": 3}, *parts)}, ("one",), False,
        (Failure("Net", "crashed", ("one line", "and another")),),
    )  # fmt: skip
    assert replace(Run.from_json(run.to_json()), rows=own) == run
    content = json.loads(replace(run, failures=()).to_json())
    del content["failures"]  # as files were before there was the key
    assert replace(Run.from_json(json.dumps(content)), rows=own) == replace(run, failures=())
    rows = {spec.name: Row.of(spec) for spec in registry.MODELS}
    known = Run.from_json(replace(run, rows=rows).to_json()).rows
    assert {name: asdict(row) for name, row in known.items()} == {name: asdict(row) for name, row in rows.items()}
    endless = replace(rows["resnet50"], max_drop={"top1": math.inf})
    text = replace(run, rows={"resnet50": endless}).to_json()
    json.loads(text, parse_constant=pytest.fail)  # no parser but Python's reads a bare Infinity
    assert Run.from_json(text).rows["resnet50"].max_drop == {"top1": math.inf}
    with pytest.raises(ValueError, match="schema 0"):
        Run.from_json(run.to_json().replace(f'"schema": {SCHEMA}', '"schema": 0'))
    misspelt = run.to_json().replace('"latency_s"', '"latency"', 1)
    for text in ("[]", "{}", '{"schema": 4, "machine": 3}', "nonsense", misspelt):
        with pytest.raises(ValueError, match=r"not a run|schema|Expecting"):
            Run.from_json(text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda run: replace(run, rows={}), "a record of 'resnet50', fp32: no such row"),
        (
            lambda run: replace(run, records=run.records[1:]),
            "a record of 'resnet50', int8: no record of its FP32 model",
        ),
        (lambda run: replace(run, records=run.records[:-1]), "1 speed records: one was timed against no other"),
        (lambda run: _changed(run, 1, samples=7), "aren't one for each of its 7 samples"),
        (lambda run: _changed(run, 1, outcomes={"top1": ("1 x", "1 1")}, samples=2), "aren't numbers"),
        (lambda run: _changed(run, 1, outcomes={"top1": ("1 1",) * 2}, samples=2), "of other samples than another"),
        (lambda run: _changed(run, 1, outcomes={"f1": ("1",) * 2}, samples=1), "no outcomes of 'top1'"),
        (lambda run: _changed(run, -1, latency_s=(0.0,)), "a time isn't above 0"),
        (lambda run: _changed(run, -1, latency_s=(1.0,)), "as many rounds of FP32 aren't before it"),
    ],
)
def test_records_that_do_not_belong_together_are_no_run(change: Callable[[Run], Run], told: str) -> None:
    rows = {"resnet50": Row.of(registry.BY_NAME["resnet50"])}
    run = Run(MACHINE, rows, (record("fp32", "1011"), record("int8", "1001"), *speed(3.0, 1.0)))
    assert Run.from_json(run.to_json()).records == run.records
    with pytest.raises(ValueError, match="not a run: ") as error:
        Run.from_json(change(run).to_json())
    assert told in str(error.value)


def _changed(run: Run, place: int, **values: Any) -> Run:
    records = list(run.records)
    records[place] = replace(records[place], **values)
    return replace(run, records=tuple(records))


def test_thresholds_that_hold_and_that_fail() -> None:
    fine = accuracy("1" * 1899 + "0" * 101)
    assert passed(fine, speed(3.3, 1.0))
    assert misses(fine, speed(3.3, 1.0)) == []
    dropped = accuracy("1" * 1880 + "0" * 120)
    assert not passed(dropped, [])
    assert any("drop 1.00 points" in line for line in misses(dropped, []))
    assert any("INT8 against simulation" in line for line in misses(dropped, []))
    assert not passed(accuracy("1" * 1900 + "0" * 100, share=0.5), [])


def test_speed_that_comes_close_and_that_does_not() -> None:
    results = [pairs(speed(ratio, 1.0))[0].result for ratio in (3.1, 2.9, 2.0)]
    assert results == ["reached", "MISSED", "FAILED"]
    assert passed([], speed(2.9, 1.0))
    assert not passed([], speed(2.0, 1.0))
    assert pairs(speed(1.2, 1.0, threads=2))[0].result == "reached"


@pytest.mark.parametrize(
    ("ratio", "count", "isa", "told"),
    [
        (3.78, 1, "avx512_vnni", "3.78 reached"),
        (3.7, 1, "avx512_vnni", "3.78 missed"),  # though it is due 3.0, and reached
        (3.7, 2, "avx512_vnni", "-"),
        (3.7, 1, "amx", "-"),
    ],
)
def test_the_seeds_ratios_are_goals_where_they_were_measured(ratio: float, count: int, isa: str, told: str) -> None:
    timed = [replace(record, isa=isa) for record in speed(ratio, 1.0, count)]
    table = speed_table(timed)
    [row] = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (row["Seeds"], row["Result"]) == (told, "reached")


def test_throughput_in_a_table_and_as_json() -> None:
    own = Instance(3, (0.010,) * 99 + (0.020,) * 1, (50.0, 51.0))
    found = Throughput(1.0, (own, replace(own, cpu=5)), (60.0, 61.0), (0.008,) * 19)
    table = report.throughput_table("title", found)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["CPU"], row["Samples/s"]) for row in rows[:3]] == [("3 5", "101.0"), ("3", "50.5"), ("5", "50.5")]
    assert [(row["p50 ms"], row["p90 ms"], row["p99 ms"]) for row in rows] == [("10.00", "10.00", "-")] * 3 + [
        ("-",) * 3
    ]
    assert "1.67 times one alone" in table.note
    told = report.throughput_json(found)
    assert told["latency_ms"] == {"p50": pytest.approx(10), "p90": pytest.approx(10), "p99": None}
    assert told["instances"][1]["cpu"] == 5 and told["samples_per_s"] == 101.0
    assert json.loads(json.dumps(told)) is not None


def test_tables_say_the_same_in_markdown() -> None:
    records, timed = accuracy("1" * 1899 + "0" * 101), speed(2.9, 1.0)
    tables = [accuracy_table(records), speed_table(timed)]
    text = report.markdown(MACHINE, tables, misses(records, timed))
    assert "| ResNet-50 | top1 | avx512_vnni | 8bit | 95.00 | 95.00 | 94.95 | +0.05 [" in text
    assert "Missed: ResNet-50 on avx512_vnni, batch 1, 1 thread(s): FP32 / INT8 2.90, due 3.0: MISSED." in text
    assert "amx: not measured, this CPU lacks amx_int8" in text
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def printed(table: report.Table, width: int = 100) -> list[str]:
    """The lines that a terminal shows, where a log's width is 200."""
    console = Console(file=io.StringIO(), width=200, **shared.LITERAL)
    console.print(report.rich_table(table, width), crop=False)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


SHOWN = {
    "accuracy": ("Model", "ISA", "Metric", "FP32", "INT8", "Drop [95%]", "INT8 share", "Verdict"),
    "speed": ("Model", "ISA", "Threads", "Batch", "FP32 ms", "INT8 ms", "Ratio [95%]", "Due", "Result"),
}


@pytest.mark.parametrize("width", [100, 80])
@pytest.mark.parametrize("kind", SHOWN)
def test_a_terminal_shows_what_fits_and_breaks_no_word(kind: str, width: int) -> None:
    run = runs.suite_run()
    table = accuracy_table(run.exact) if kind == "accuracy" else speed_table(run.timed)
    lines = printed(table, width)
    assert all(len(line) <= width for line in lines)
    told = {word for line in lines for word in line.split()}
    shown = [table.columns.index(title) for title in table.terminal or ()]
    assert len(shown) == len(SHOWN[kind]) < len(table.columns)
    assert {word for title in SHOWN[kind] for word in title.split()} <= told
    for row in table.rows:
        assert {word for place in shown for word in row[place].split()} <= told
    if width == 100:
        titles = next(line for line in lines if line.startswith("Model"))
        assert titles.split() == " ".join(SHOWN[kind]).split()
        for row in table.rows:  # only verdicts take several lines
            assert any(" ".join(row[place] for place in shown[:-1]) in " ".join(line.split()) for line in lines)
    text = report.section(table)
    assert all(title in text.splitlines()[2] for title in table.columns) and table.note in text


def test_names_too_long_for_a_terminal_stay_whole() -> None:
    name = "a_model_of_which_somebody_chose_the_name_without_a_thought_for_tables_or_for_terminals_" * 2
    table = report.Table("T", ("Name", "Two", "Hidden"), ((name, "x y", "hidden"),), "", {"Name": "Name", "Two": "2"})
    lines = printed(table)
    assert any(name in line for line in lines)
    assert "hidden" not in " ".join(lines)


def test_what_could_not_be_measured_is_in_the_markdown_with_its_log() -> None:
    failure = Failure("A <net>", "Paddle crashed `on` it", ("| not a table", "# no heading"))
    text = report.markdown(MACHINE, [], [], [failure])
    assert "All thresholds reached." not in text
    assert "## Could not be measured\n\nA &lt;net>: Paddle crashed \\`on\\` it\n\n" in text
    assert text.endswith("\n\n    | not a table\n    # no heading\n")
    assert list(report.failed_lines([failure])) == [
        "failed: A <net>: could not be measured: Paddle crashed `on` it",
        "    | not a table",
        "    # no heading",
    ]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("quant suite", {"resnet50": ["analyze resnet50"], "vgg16": ["profile vgg16"], "gru": ["analyze gru"]}),
        (
            "quant gate --manifest 'my models/quant.toml'",
            {
                "resnet50": [
                    "analyze resnet50 --manifest 'my models/quant.toml'",
                    "tune --manifest 'my models/quant.toml' --model resnet50 --output resnet50-tuned",
                ],
                "vgg16": ["profile vgg16 --manifest 'my models/quant.toml'"],
                "gru": [
                    "analyze gru --manifest 'my models/quant.toml'",
                    "tune --manifest 'my models/quant.toml' --model gru --output gru-tuned",
                ],
            },
        ),
        ("quant suite --zoo zoo", {}),
        ("pytest --manifest quant.toml", {}),
        ("quant suite --manifest 'open", {}),
        ("", {}),
    ],
)
def test_what_to_run_next_where_limits_are_missed(command: str, expected: dict[str, list[str]]) -> None:
    """ResNet-50 loses too much, VGG16 is too slow, GRU regressed within its limits, MobileNet-V1 does what is due."""
    exact = [*runs.accuracy("resnet50", lost=50, won=0), *runs.accuracy("gru"), *runs.accuracy("mobilenet_v1")]
    timed = [*runs.speed("vgg16", 2.0), *runs.speed("mobilenet_v1", 4.0)]
    found = report.next_steps(
        command, comparison.comparisons(exact, BY_NAME), pairs_of(timed, BY_NAME), inexact=["gru"], slower=["vgg16"]
    )
    steps = {name: [line.removeprefix("quant ") for line in lines] for name, lines in found.items()}
    assert steps == expected


@pytest.mark.parametrize("name", ["mym:one", ":smile:", "[red]net[/red]", "[link=x]", "a [b] \\[c]", "[/]"])
def test_names_are_printed_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines, in tables (title, column, cell, note) and in progress bars."""
    assert (shared.err._markup, shared.err._emoji, shared.out._markup, shared.out._emoji) == (False,) * 4
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, color_system=None, width=120, **shared.LITERAL)
    console.print(f"saved: {name}")
    console.print(report.rich_table(report.Table(f"T {name}", (f"C {name}",), ((f"B {name}",),), f"N {name}")))
    text = printed.getvalue()
    assert all(f"{where} {name}" in text for where in ("saved:", "T", "C", "B", "N")), text
    monkeypatch.setattr(shared, "err", console)
    monkeypatch.setattr("sys.stderr", console.file)
    monkeypatch.setattr(printed, "isatty", lambda: True)
    with shared.bar() as progress:
        progress(f"calibrate {name}", 1, 2)
    assert f"calibrate {name}" in printed.getvalue()


@pytest.mark.parametrize("precision", ["fp32", "quant", "int8"])
def test_a_side_that_is_missing_is_told_and_ends_nothing_in_a_trace(precision: str) -> None:
    records = [record for record in runs.accuracy("resnet50") if record.precision != precision]
    if precision == "fp32":
        with pytest.raises(DataError, match="INT8 has no record of its FP32 model"):
            comparison.comparisons(records, BY_NAME)
    else:
        found = comparison.comparisons(records, BY_NAME)
        assert [one.quant for one in found] == ([None] if precision == "quant" else [])


def test_a_speed_record_that_was_timed_against_no_other_is_told() -> None:
    fp32, int8 = runs.speed("resnet50", 2.0)
    other = runs.speed("vgg16", 2.0)
    assert len(pairs_of([fp32, int8, *other], BY_NAME)) == 2
    for records in ([fp32], [int8], [fp32, other[1]], [fp32, int8, other[0]], [fp32, replace(int8, latency_s=(1.0,))]):
        with pytest.raises(DataError, match="has no other that it was timed against"):
            pairs_of(records, BY_NAME)
