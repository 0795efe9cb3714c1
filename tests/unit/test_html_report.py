"""The HTML report without a browser: what it shows, that users' text stays text, that it is one file and readable."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from quant.reports import drift, tables, tuning
from quant.reports.page import charts, render
from quant.reports.page.charts import Bar, Spot, Trend
from quant.reports.page.values import Part, page_of
from quant.reports.sheet import Section
from quant.results import comparison
from quant.results.record import Anatomy, Between, Failure, KeptOp, Kernel, Layer, Run
from quant.results.target import Case, Row
from tests import found, runs

CSS = (Path(render.__file__).parent / "templates" / "report.css").read_text()
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "${{7*7}} {{ 7*7 }} {% raw %}",
    "'`$(reboot)`\0\ud800",
)


class Reader(HTMLParser):
    """Elements with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Mapping[str, str]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def hostile_run() -> Run:
    """Every text that a user or a file can bring is hostile."""
    rows = {name: Row(name, name, (Case(1, {"avx512_vnni": 3.0}),), max_drop={"top1": 0.005}) for name in HOSTILE}
    exact = [record for name in HOSTILE for record in runs.accuracy(name, 40, metrics=["top1"])]
    timed = [record for name in HOSTILE for record in runs.speed(name, 2.0, variant=name)]
    anatomy = {
        name: Anatomy(
            {name: 1},
            (KeptOp(name, name, name),),
            (Kernel(name, name, name, 1, 1.0, 1.0),),
            (Layer(name, name, 1.0, None),),
            1.0,
            (name,),
            1.0,
            0.0,
            1,
            1,
            (Between(name, name, 1, name), Between(name, name, 1, f"{name}: {name}")),
        )
        for name in HOSTILE
    }
    run = runs.run(exact, timed, rows=rows, anatomy=anatomy, machine=runs.machine(cpu=HOSTILE[0]), commit=HOSTILE[1])
    missed = tuple(comparison.misses(run.exact, run.timed, run.rows))
    failures = tuple(Failure(name, name, HOSTILE) for name in HOSTILE)
    command = f"quant suite --manifest {HOSTILE[0]}"
    return replace(run, command=command, kind=HOSTILE[2], missed=missed, passed=False, failures=failures)


def sections(name: str = "", title: str = "ResNet-50") -> list[Section]:
    """An analysis and a tuning, with `name` in all of their texts."""
    return [
        drift.section(drift.from_json(found.analysis_json(title, name))),
        tuning.section(tuning.from_json(found.tuning_json(title, name))),
    ]


def hostile_sections() -> list[Section]:
    return [section for name in HOSTILE[:3] for section in sections(name, name)]  # no JSON holds the fourth


def past(count: int = 8) -> list[Run]:
    return [
        runs.suite_run(["resnet50", "gru"], slower=1 + day % 3 / 20, started=f"2026-11-{day + 1:02d}T10:00:00+00:00")
        for day in range(count)
    ]


def some_run() -> Run:
    return runs.suite_run(["resnet50", "gru", "lstm"])


@cache
def page(kind: str = "suite") -> str:
    pages = {
        "suite": lambda: render.render(some_run(), past()),
        "hostile": lambda: render.render(hostile_run(), (), hostile_sections()),
        "sections": lambda: render.render(some_run(), (), sections()),
    }
    return pages[kind]()


def parts_of(run: Run, history: tuple[Run, ...] = ()) -> dict[str, Part]:
    return {part.name: part for part in page_of(run, history).parts}


# --- what it says


def test_the_verdict_comes_first_and_in_words() -> None:
    text = Reader(page()).text
    assert text.index("PASSED") < text.index("Largest drop") < text.index("How much of its score")
    run = runs.run(runs.accuracy("resnet50", 40), runs.speed("resnet50", 2.0))
    missed = tuple(comparison.misses(run.exact, run.timed, run.rows))
    failed = page_of(replace(run, missed=missed, passed=False)).headline
    assert failed.sentence == "2 limits or figures were missed:"
    assert failed.missed[0] == "ResNet-50 top1 on avx512_vnni: drop 1.90 points, limit 0.50"
    assert "FP32 / INT8 2.0" in failed.missed[1] and failed.missed[1].endswith("due 3.0: FAILED")
    short = page_of(replace(run, missed=missed[1:], passed=True)).headline
    assert short.sentence == "Nothing failed, but 1 figure is short of what is due:"
    assert (
        page_of(replace(run, missed=(), passed=False)).headline.sentence == "The run failed; it doesn't tell by what."
    )
    assert "amx: not measured, this CPU lacks amx_int8" in short.notes


def test_figures_are_those_of_the_tables() -> None:
    """The same as `quant suite` prints."""
    run = some_run()
    shown = page_of(run)
    assert shown.accuracy is not None and shown.speed is not None
    for sheet, table in (
        (shown.accuracy, tables.accuracy_table(run.exact, run.rows)),
        (shown.speed, tables.speed_table(run.timed, run.rows)),
    ):
        assert len(sheet.lines) == len(table.rows)
        titles = [column.title for column in sheet.columns]
        for line, row in zip(sheet.lines, table.rows, strict=True):
            ours = dict(zip(titles, (cell.text for cell in line.cells), strict=True))
            theirs = dict(zip(table.columns, row, strict=True))
            if sheet is shown.accuracy:
                assert f"{ours['Drop']} {ours['95% interval']}" == theirs["Drop [95%]"]
                assert (ours["FP32 %"], ours["INT8 %"]) == (theirs["FP32"], theirs["INT8"])
                seeds = "-" if ours["Seeds FP32 %"] == "-" else f"{ours['Seeds FP32 %']} {ours['Seeds drop']}"
                assert seeds == theirs["Seeds: FP32, drop"]
                assert (ours["Result"] == "missed") == theirs["Verdict"].startswith("MISSED")
            else:
                assert f"{ours['FP32 / INT8']} {ours['95% interval']}" == theirs["FP32 / INT8 [95%]"]
                assert (ours["FP32, ms"], ours["INT8, ms"]) == (theirs["FP32 ms"], theirs["INT8 ms"])
                assert ours["Result"] == theirs["Result"].lower()


def test_a_part_for_each_model() -> None:
    part = parts_of(runs.suite_run(["resnet50", "gru"]))["resnet50"]
    assert part.int8.startswith("55 ops in INT8 (53 conv2d, 1 pool2d, 1 fc); 2 ops could be and stay float32. INT8 ")
    assert part.between is not None and part.between.lines[0].cells[1].text == "softmax"
    assert part.kept and part.kept.lines[0].cells[2].text == "has no INT8 kernel"
    assert part.kernels and part.kernels.lines[0].cells[4].text == "5.210"
    assert part.layers and [line.cells[2].text for line in part.layers.lines][:2] == ["24.3", "25.9"]
    assert part.layers.lines[2].cells[3].text == "-"  # no counterpart
    assert part.accuracy and len(part.accuracy.lines) == 3
    assert part.speed and len(part.speed.lines) == 4
    assert (part.status, part.command) == ("ok", "quant suite --model resnet50")
    assert part.next_steps == () and "how to mend it" not in Reader(page()).text


def test_where_a_limit_is_missed_stands_what_to_run_next() -> None:
    run = replace(runs.run(runs.accuracy("resnet50", lost=100)), command="quant suite --manifest quant.toml")
    [part] = page_of(run).parts
    assert part.next_steps == (
        "quant analyze resnet50 --manifest quant.toml",
        "quant tune --manifest quant.toml --model resnet50 --output resnet50-tuned",
    )
    assert f"Why, and how to mend it {' '.join(part.next_steps)}" in Reader(render.render(run, ())).text


def test_commands_are_quoted_for_a_shell() -> None:
    commands = [part.command for part in page_of(hostile_run()).parts]
    assert commands[0].endswith(" --model '<script>alert(1)</script>'")
    assert commands[3].endswith(""" --model ''"'"'`$(reboot)`\0\ud800'""")


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (runs.run(), "Nothing was measured."),
        (runs.run(runs.accuracy("resnet50")), "Speed was not measured in this run."),
        (runs.run([], runs.speed("resnet50", 3.3)), "Accuracy was not measured in this run."),
        (runs.run(runs.accuracy("resnet50")), "What is INT8, and what is not Not measured."),
        (runs.run(runs.accuracy("resnet50")), "Worst layers Not measured."),
        (runs.run(runs.accuracy("resnet50")), "No earlier run on this CPU is known."),
        (runs.run(runs.accuracy("resnet50")[:1]), "Accuracy was not measured in this run."),  # FP32 alone
    ],
)
def test_what_was_not_measured_is_said(run: Run, told: str) -> None:
    assert told in Reader(render.render(run)).text


def test_figures_that_are_no_numbers() -> None:
    exact = [
        replace(record, sqnr_db={"fp32": math.inf, "quant": math.nan}, int8_share=math.nan)
        for record in runs.accuracy("resnet50")
    ]
    fp32, int8 = runs.speed("resnet50", 3.3)
    timed = [
        fp32,
        replace(int8, latency_s=(math.nan,) * len(int8.latency_s)),
        fp32,
        replace(int8, latency_s=fp32.latency_s),
    ]
    text = render.render(runs.run(exact, timed))
    read = Reader(text)
    assert "∞" in read.text and "not a number" in read.text
    values = read.of("data-value")
    assert "Infinity" in values and "" in values
    assert not {"nan", "inf", "NaN"} & set(values)
    for shape in read.of("d"):
        assert "nan" not in shape and "inf" not in shape


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (runs.speed("resnet50", 2.0)[:1], "nothing was timed against"),
        ([runs.speed("resnet50", 2.0)[0], runs.speed("vgg16", 2.0)[1]], "weren't taken against each other"),
        ([runs.speed("gru", 2.0)[0], runs.speed("gru", 2.0, rounds=3)[1]], "weren't taken against each other"),
    ],
)
def test_records_that_do_not_belong_together(records: list[object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        render.render(runs.run([], records))  # type: ignore[arg-type]


def test_a_model_without_a_row() -> None:
    with pytest.raises(ValueError, match="no row for the model 'resnet50'"):
        render.render(replace(runs.run([], runs.speed("resnet50", 2.0)), rows={}))


def test_rows_without_limits_are_not_judged() -> None:
    row = Row("own", "Own", (), max_drop={"top1": math.inf}, max_engine_gap=math.inf, floor=0, min_int8_share=0)
    shown = page_of(runs.run(runs.accuracy("own", 400), rows={"own": row}))
    assert shown.accuracy and [cell.text for cell in shown.accuracy.lines[0].cells][1] == "not judged"
    assert shown.drops[0].bars[0].mark is None and not shown.drops[0].bars[0].beyond


# --- models that could not be measured


def test_models_that_could_not_be_measured() -> None:
    log = ("oneDNN v3", "", "FatalError: <Segmentation fault>")
    lost = Failure("Own", "own/int8: died of SIGSEGV", log), Failure("Other", "other: no such model directory")
    text = render.render(replace(some_run(), failures=lost, passed=False))
    read = Reader(text)
    told = "2 models could not be measured; the others keep all limits."
    assert told in read.text and "3 45 scores" not in read.text
    assert read.text.index(told) < read.text.index("own/int8: died of SIGSEGV") < read.text.index("How much of its")
    assert "<pre" in text and "\noneDNN v3\n\nFatalError: &lt;Segmentation fault&gt;\n</pre>" in text
    assert read.text.count("What its process printed last (3 lines)") == 1  # the other printed nothing
    assert "could not be measured" not in Reader(page()).text


def test_a_run_in_which_nothing_could_be_measured() -> None:
    run = replace(runs.run(), failures=(Failure("Own", "own: not a program"),), passed=False)
    assert "✗ FAILED No model could be measured." in Reader(render.render(run)).text


# --- what analyze and tune found


def test_why_accuracy_drops() -> None:
    why, _ = sections()
    assert (why.topic, why.model) == ("Why accuracy drops", "ResNet-50")
    assert why.sentences[1] == (
        "2 findings: 1 of the engine, 1 of calibration. Worst: conv_3.tmp_0 doesn't do what the simulation does."
    )
    findings, ops = (sheet for sheet, _ in why.sheets)
    assert [line.cells[0].text for line in findings.lines] == ["conv_3.tmp_0", "conv_4.tmp_0"]
    shown = [[cell.text for cell in line.cells] for line in ops.lines]
    assert len(shown) == 20 and shown[0][:2] == ["conv_3.tmp_0", "3"]
    own = [column.title for column in ops.columns].index("Own error dB")
    [unmeasured] = [line.cells[own] for line in ops.lines if line.cells[0].text == "conv_20.tmp_0"]
    assert (unmeasured.text, unmeasured.value) == ("not asked for", None)
    text = Reader(page("sections")).text
    assert text.index("No earlier figure") < text.index(why.sentences[0]) < text.index("Environment CPU")


def test_an_analysis_without_a_simulation_says_nothing_of_the_engine() -> None:
    known = found.analysis(ops=2)
    sound = drift.section(known)
    assert "The engine does what the simulation says." in sound.sentences[1]
    assert len(sound.sheets) == 1  # no table of findings
    alone = replace(known, ops=tuple(replace(op, local_db=None) for op in known.ops))
    assert "engine" not in drift.section(alone).sentences[1]


def test_accuracy_and_latency() -> None:
    _, tuned = sections()
    assert (tuned.topic, tuned.model) == ("Accuracy and latency", "ResNet-50")
    assert tuned.sentences[0] == "INT8 by mse, 1 tensor otherwise, 1 op in FP32: conv2d(12) conv_12.tmp_0."
    [(points, _)] = tuned.sheets
    shown = [[cell.text for cell in line.cells] for line in points.lines]
    assert [row[0] for row in shown] == ["FP32", "INT8 1", "INT8 2", "INT8 3", "INT8 4", "INT8 5"]
    assert shown[4][4] == "+0.18 [+0.00, +0.38]" and shown[4][-1] == "chosen, pareto"
    assert [line.cells[4].value for line in points.lines][:3] == [None, 0.0241, 0.0110]  # sorted by the drop alone
    drawn = tuned.drawings[0].draw("one")
    assert (
        "Drop over speed of 4 INT8 models; the limit is 0.30 points. Chosen: model 4, 1 op in FP32, loses +0.18 points "
        "at 2.95 times FP32's speed. No other is as good in drop and time, and better in one: 1, 2, 4." in drawn
    )
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"1", "2", "4", "5", "chosen", "limit", "others"} <= set(labels) and "3" not in labels  # it wasn't timed


def test_a_tuning_of_which_nothing_was_timed_has_no_chart() -> None:
    content = json.loads(found.tuning_json())
    for point in content["points"]:
        point["speedup"] = point["median_ms"] = None
    tuned = tuning.section(tuning.from_json(json.dumps(content)))
    assert tuned.drawings == () and tuning.chart(content) is None


def test_marks_differ_in_shape() -> None:
    place = (1.0, 0.9, 1.1)
    alone = {}
    for kind in ("chosen", "pareto", "other"):
        drawn = charts.spots([Spot("1", place, place, kind)], "one", "told", limit=0.5, axes=("x", "y"))
        alone[kind] = max(re.findall(r'<path id="one-m[^"]*" d="([^"]*)"', drawn), key=len)
    assert len(set(alone.values())) == 3


def test_drops_that_hardly_differ_do_not_look_as_if_they_did() -> None:
    drawn = charts.spots([Spot("1", (2, 2, 2), (0, 0, 0), "chosen")], "one", "told", limit=0.0, axes=("x", "y"))
    labels = [text.replace("\N{MINUS SIGN}", "-") for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn)]
    assert {"-0.100", "0.100"} <= set(labels)  # the ends of the y axis


def test_points_that_are_no_numbers_are_left_out() -> None:
    spots = [
        Spot("1", (math.nan, 1.0, 1.0), (1.0, 1.0, 1.0), "other"),
        Spot("2", (2.0, 1.9, 2.1), (0.1, 0, 1), "chosen"),
    ]
    drawn = charts.spots(spots, "one", "told", limit=0.5, axes=("x", "y"))
    assert "others" not in drawn and "chosen" in drawn and "nan" not in drawn


# --- earlier runs


def test_lines_over_earlier_runs_of_the_same_cpu() -> None:
    run = runs.suite_run(["resnet50", "gru"])
    elsewhere = replace(past(1)[0], machine=runs.machine(cpu="AMD EPYC 9354"), started="2026-11-20T00:00:00+00:00")
    later = replace(run, started="2026-12-01T00:00:00+00:00")
    shown = page_of(run, [*reversed(past()), elsewhere, later, run])
    assert shown.past == "8 earlier runs on this CPU, from 2026-11-01 on. 1 run on other CPUs left out."
    part = shown.parts[0]
    assert part.past and len(part.past.lines) == 9
    drop, speed = part.charts
    assert [trend.label for trend in drop.trends] == ["top1"]
    assert [trend.label for trend in speed.trends] == ["batch 1, 1 thread", "batch 1, 2 threads"]
    ratios = [value for value in speed.trends[0].values if value is not None]
    assert ratios[0] / ratios[1] == pytest.approx(1.05) and ratios[0] == pytest.approx(ratios[-1])
    assert "3.12 at first, 3.12 now" in speed.message


def test_earlier_runs_on_other_data_have_no_drop() -> None:
    run = runs.run(runs.accuracy("resnet50", data="new"))
    before = [
        replace(runs.run(runs.accuracy("resnet50", data=name)), started=f"2026-01-0{day}")
        for day, name in enumerate(("old", "new"))
    ]
    [chart] = parts_of(run, tuple(before))["resnet50"].charts
    assert [value is None for value in chart.trends[0].values] == [True, False, False]


def test_a_model_that_is_new_has_no_lines() -> None:
    part = parts_of(runs.suite_run(["vgg16"]), tuple(past(2)))["vgg16"]
    assert part.charts == () and part.past is None


# --- the page itself


def test_hostile_text_stays_text() -> None:
    read = Reader(page("hostile"))
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 1 and "img" not in tags
    assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
    for name in HOSTILE[:3]:
        assert " ".join(name.split()) in read.text
    assert not [value for value in read.of("id") if not re.fullmatch(r"[a-z0-9-]+", value, re.I)]
    page("hostile").encode("utf-8")


@pytest.mark.parametrize("kind", ["suite", "hostile", "sections"])
def test_ids_are_unique_and_references_resolve(kind: str) -> None:
    read = Reader(page(kind))
    ids = read.of("id")
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for value in read.of("href") if value.startswith("#")}
    wanted |= {part for value in (*read.of("aria-labelledby"), *read.of("data-table")) for part in value.split()}
    wanted |= {
        name for _, attributes in read.elements for v in attributes.values() for name in re.findall(r"url\(#(.+?)\)", v)
    }
    assert wanted <= set(ids)


def test_it_is_one_file() -> None:
    read = Reader(page())
    assert not read.of("src") and not re.search(r"@import|url\((?!#)", page())
    assert {value for value in read.of("href") if not value.startswith("#")} == {"data:,"}
    policy = next(a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    script = page().partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and f"script-src 'sha256-{digest}'" in policy


def test_ten_models_with_their_past_are_less_than_two_megabytes() -> None:
    history = [replace(runs.suite_run(), started=f"2026-10-{day + 1:02d}") for day in range(30)]
    assert len(render.render(runs.suite_run(), history).encode()) < 2_000_000


def test_the_same_runs_give_the_same_text() -> None:
    assert render.render(some_run(), past()[::-1]) == page()


@pytest.mark.parametrize("kind", ["suite", "hostile", "sections"])
def test_tables_are_tables(kind: str) -> None:
    read = Reader(page(kind))
    tags = [tag for tag, _ in read.elements]
    assert tags.count("table") == tags.count("caption") == tags.count("thead")
    assert all("scope" in attributes for tag, attributes in read.elements if tag == "th")
    regions = [a for tag, a in read.elements if a.get("role") == "region"]
    assert len(regions) == tags.count("table") + tags.count("pre") and all(a["tabindex"] == "0" for a in regions)


def test_charts_say_what_they_show() -> None:
    run = runs.run(runs.accuracy("resnet50", 40), [*runs.speed("resnet50", 2.9), *runs.speed("vgg16", 3.0)])
    shown = page_of(run)
    assert shown.drops[0].message == (
        "Drop from FP32 to INT8 on avx512_vnni of 1 score, +1.90 ✗ points (ResNet-50); 1 beyond their limit: ResNet-50."
    )
    assert "from 2.9" in shown.ratios[0].message and "1 below what is due: ResNet-50." in shown.ratios[0].message
    drawn = charts.bars(shown.drops[0].bars, "one", shown.drops[0].message, axis="points")
    assert 'role="img"' in drawn and f'<title id="one-title">{shown.drops[0].message}</title>' in drawn


# --- charts


def drawings() -> Iterator[str]:
    bars = [
        Bar("$a_b$ <&>", 1.0, 0.9, 1.1, "1.00", 0.5, 0.7, True),
        Bar("x" * 90, -0.5, -0.6, -0.4, "-0.50", 0.5, detail="d" * 90),
    ]
    yield charts.bars(bars, "first", "told", axis="points", base=1.0)
    trends = [Trend("_hidden?", [1.0, None, 2.0]), Trend("b", [math.nan, 1.0, math.inf])]
    yield charts.trends(trends, ["a", "b", "c"], "second", "told", axis="ratio")
    yield charts.bars([Bar("n", math.nan, math.nan, math.nan, "none")], "third", "told", axis="points")
    for section in sections():
        yield section.drawings[0].draw("fourth")


def test_colours_are_the_pages_own() -> None:
    for drawn in drawings():
        assert not re.search(r"#[0-9a-f]{6}\b", drawn.replace("href=", "")), drawn
        assert set(re.findall(r"var\((--[a-z-]+)\)", drawn)) <= set(re.findall(r"(--[a-z-]+):", CSS))
        assert "<style" not in drawn and "metadata" not in drawn
        texts = re.findall(r"<text[^>]*>", drawn)
        assert texts and all("fill: var(" in text and "font-family" not in text for text in texts)


def test_labels_are_text_as_it_is_given() -> None:
    first, second, *_ = drawings()
    assert "$a_b$ &lt;&amp;&gt;" in first and "…" in first
    assert "_hidden?" in second  # matplotlib leaves out what begins so, unless it is told
    assert first.count("<pattern") == 1  # the bar beyond its mark is hatched, the other isn't


@pytest.mark.filterwarnings("error")
def test_names_in_any_script() -> None:
    """The page's fonts draw them; matplotlib's lack them, and would warn."""
    assert "汉字" in charts.bars([Bar("汉字", 1.0, 0.9, 1.1, "1.00")], "one", "told", axis="points")


# --- colours


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def schemes() -> dict[str, dict[str, str]]:
    """The palettes of the style sheet, in their order: light, dark, print."""
    blocks = re.findall(r":root \{([^}]*)\}", CSS)
    found = [dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    return dict(zip(("light", "dark", "print"), found, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_contrast(scheme: str) -> None:
    colours = schemes()[scheme]
    assert set(colours) == set(schemes()["light"])
    for ground in ("--ground", "--panel"):
        for text in ("--ink", "--muted", "--accent", "--good", "--bad", "--warn"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for soft, full in (("--accent-soft", "--accent"), ("--bad-soft", "--bad")):  # bars and their edges
        assert contrast(colours[full], colours["--panel"]) >= 3 and contrast(colours["--ink"], colours[soft]) >= 4.5
