"""Text and sequence rows as a person uses them: their data files, from FP32 to INT8, and what a bad file is told."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from fixtures import ernie, handwriting_model, lac
from quant.datasets.columns import Ragged
from quant.datasets.formats import write_lac_bin
from quant.datasets.readers import open_data
from quant.ir.graph import load_dir, save_dir
from quant.ir.passes import lift_quantizers
from quant.quantization.observers import ALGORITHMS
from quant.suites.registry import find

ROOT = Path(__file__).parents[2]
LAC, PAIRS, RECORDS, WORDS = "test.tsv", "dev.bs1", "quant_lstm_input_data", "GRU_eval_data"
MODELS = {LAC: "lac", WORDS: "lac", PAIRS: "ernie", RECORDS: "handwriting"}
FORMATS = {WORDS: "lac_bin", RECORDS: "handwriting"}
SENTENCES, SAMPLES = 120, 24


def start(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quant", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


def quant(*args: object) -> str:
    done = start(*args)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The FP32 models, and good data in each format: LAC's with its dictionaries beside, pairs with their labels."""
    root = tmp_path_factory.mktemp("text")
    for name, export, row in (
        ("lac", lac.export, "gru"),
        ("handwriting", handwriting_model.export, "lstm"),
        ("ernie", ernie.export_small, "ernie"),
    ):
        (root / name).mkdir()
        export(row, root / name)
    (root / "data").mkdir()
    lac.write_sentences("calibration", 50, root / "data" / "calibration.tsv")
    lac.write_sentences("test", SENTENCES, root / "data" / LAC)
    sentences = open_data(root / "data" / LAC, {"words": ((), "int64")})
    words, tags = sentences.inputs["words"], sentences.labels
    assert isinstance(words, Ragged) and isinstance(tags, Ragged)
    write_lac_bin(root / "data" / WORDS, ((words.sequence(i), tags.sequence(i)) for i in range(SAMPLES)))
    handwriting_model.write_records("test", 60, root / "data" / RECORDS)
    ernie.write_pairs_of("test", SAMPLES, root / "data" / PAIRS)
    return root


def test_lac_from_fp32_to_proven_int8(place: Path, tmp_path: Path) -> None:
    fp32, simulated, int8 = place / "lac", tmp_path / "quant", tmp_path / "int8"
    calibration, test = place / "data" / "calibration.tsv", place / "data" / LAC
    assert "50 samples" in quant("ptq", "--model", fp32, "--data", calibration, "--output", simulated)
    assert "gru" in quant("convert", "--quant-model-path", simulated, "--int8-model-save-path", int8)

    scored = json.loads(quant("eval", "--model", int8, "--precision", "int8", "--data", test, "--json"))
    assert scored["samples"] == SENTENCES
    assert scored["metrics"].keys() == {"f1", "precision", "recall", "segmentation_f1", "tags"}
    assert scored["metrics"]["segmentation_f1"] > scored["metrics"]["f1"] > find("gru").floor
    assert all(0 < score < 1 for score in scored["metrics"].values())
    assert scored["int8_mac_share"] > 0.98
    assert scored["fp32_ops"] == 0

    dirs = ["--fp32-model", fp32, "--quant-model", simulated, "--int8-model", int8]
    compared = json.loads(quant("compare", *dirs, "--data", test, "--acc-diff-threshold", "0.01", "--json"))
    assert compared["metric"] == "f1"
    assert compared["on_point"] is True
    assert compared["drop"]["samples"] == SENTENCES
    assert compared["f1"]["int8"] == scored["metrics"]["f1"]
    assert compared["f1"]["fp32"] - compared["f1"]["int8"] == pytest.approx(compared["drop"]["drop"])
    assert abs(compared["engine_drop"]["drop"]) <= find("gru").max_engine_gap

    sizes = ["--batch-size", "1,10", "--samples", "20", "--by-length"]
    timing = ["--model", int8, "--precision", "int8", "--against", fp32, "--data", test]
    timed = json.loads(quant("bench", *timing, *sizes, "--json"))["results"]
    assert [(row["threads"], row["batch"]) for row in timed] == [(1, 1), (1, 10)]
    assert all(0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in timed)


@pytest.mark.parametrize(
    ("model", "data", "options", "chooses"),
    [
        ("lac", "calibration.tsv", [], False),  # the states' range is known, and that of the embeddings
        ("handwriting", RECORDS, ["--format", "handwriting"], True),
    ],
)
def test_best_tells_the_algorithms(
    model: str, data: str, options: list[str], chooses: bool, place: Path, tmp_path: Path
) -> None:
    given = ["--data", place / "data" / data, *options, "--output", tmp_path / "quant"]
    told = quant("ptq", "--model", place / model, *given, "--algo", "best")
    [tensors] = re.findall(r"(\d+) tensors quantized from \d+ samples", told)
    [line] = re.findall(r"^algorithms: (.+)$", told, re.MULTILINE)
    counts = {name: int(count) for name, count in (part.split() for part in line.split(", "))}
    assert sum(counts.values()) == int(tensors)
    assert lift_quantizers(load_dir(tmp_path / "quant")).op_counts()["fake_quant"] == int(tensors)
    assert counts.keys() <= {*ALGORITHMS, "known"} and counts["known"] > 0
    assert (counts.keys() != {"known"}) == chooses
    quant("convert", "--quant-model-path", tmp_path / "quant", "--int8-model-save-path", tmp_path / "int8")


def test_a_model_that_gives_tags_alone(place: Path, tmp_path: Path) -> None:
    """The seeds' GRU model fetches its decoded tags only: there are no scores to compare, and that is no error."""
    whole = load_dir(place / "lac")
    (tmp_path / "fp32").mkdir()
    save_dir(replace(whole, fetches=whole.fetches[:1]), tmp_path / "fp32")
    calibration = ["--data", place / "data" / "calibration.tsv", "--output", tmp_path / "quant"]
    quant("ptq", "--model", tmp_path / "fp32", *calibration)
    quant("convert", "--quant-model-path", tmp_path / "quant", "--int8-model-save-path", tmp_path / "int8")
    dirs = ["--fp32-model", tmp_path / "fp32", "--int8-model", tmp_path / "int8"]
    compared = json.loads(quant("compare", *dirs, "--data", place / "data" / LAC, "--json"))
    assert compared["sqnr_db"] == {}
    assert compared["int8_mac_share"] > 0.98


def test_the_seeds_lstm_binary(place: Path) -> None:
    """No suffix tells the format of `quant_lstm_input_data`, so it is named."""
    run = ["--model", place / "handwriting", "--data", place / "data" / RECORDS]
    scored = json.loads(quant("eval", *run, "--format", "handwriting", "--json"))
    assert scored["samples"] == 60
    assert scored["metrics"].keys() == {"hx", "ctc"}
    assert min(scored["metrics"].values()) > find("lstm").floor


def test_pairs_with_labels_of_ones_own(place: Path, tmp_path: Path) -> None:
    """The file that --labels names counts, and not the one beside the data."""
    data = place / "data" / PAIRS
    true = np.loadtxt(data.with_name(f"{PAIRS}.label"), np.int64)
    given = np.where(np.arange(SAMPLES) % 2, true, (true + 1) % 3)
    (tmp_path / "mine").write_text("".join(f"{label}\n" for label in given))
    run = ["--model", place / "ernie", "--data", data, "--labels", tmp_path / "mine"]
    scored = json.loads(quant("eval", *run, "--save-outputs", tmp_path / "outputs.npz", "--json"))
    assert scored["samples"] == SAMPLES
    assert scored["metrics"].keys() == {"top1"}
    with np.load(tmp_path / "outputs.npz") as stored:
        best = next(stored[name] for name in stored.files if stored[name].shape == (SAMPLES, 3)).argmax(1)
    assert (best == true).mean() > 0.6
    assert scored["metrics"]["top1"] == pytest.approx((best == given).mean())


def test_lac_bin(place: Path, tmp_path: Path) -> None:
    data = place / "data" / WORDS
    run = ["--model", place / "lac", "--data", data, "--format", "lac_bin", "--metric", "tags,f1"]
    scored = json.loads(quant("eval", *run, "--save-outputs", tmp_path / "outputs.npz", "--json"))
    assert scored["samples"] == SAMPLES
    assert list(scored["metrics"]) == ["tags", "f1"]
    assert scored["metrics"]["f1"] > find("gru").floor
    [name] = load_dir(place / "lac").fetches[:1]
    with np.load(tmp_path / "outputs.npz") as stored:
        found, offsets = stored[name].ravel(), stored[f"{name}.offsets"]
    golds = open_data(data, {"words": ((1,), "int64")}, "lac_bin").labels
    assert isinstance(golds, Ragged)
    assert np.array_equal(offsets, golds.offsets)
    assert scored["metrics"]["tags"] == pytest.approx((found == golds.values).mean())


# --- bad inputs

Spoil = Callable[[Path], None]


def line(number: int, pattern: bytes, new: bytes) -> Spoil:
    """In a line (counted from 1) the first match of the pattern becomes `new`."""

    def spoil(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines[number - 1], count = re.subn(pattern, new, lines[number - 1], count=1)
        assert count == 1
        path.write_bytes(b"\n".join(lines))

    return spoil


def shortened(size: int) -> Spoil:
    def spoil(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-size])

    return spoil


def with_an_empty_record(path: Path) -> None:
    """Between good records: one label, no steps."""
    content = path.read_bytes()
    path.write_bytes(content + struct.pack("<Ii", 1, 5) + content)


def with_a_foreign_word(path: Path) -> None:
    """The first word of the third sentence."""
    content = np.fromfile(path, "<i8")
    content[2 + content[0] + content[2:4].sum()] = 1 << 40
    content.tofile(path)


def fewer_labels(name: str) -> Spoil:
    def spoil(path: Path) -> None:
        lines = path.with_name(f"{PAIRS}.label").read_bytes().splitlines(keepends=True)
        path.with_name(name).write_bytes(b"".join(lines[:-1]))

    return spoil


def as_it_is(path: Path) -> None:
    pass


class Bad(NamedTuple):
    """A good data file (copied with what lies beside it) and how it goes bad; `told` must be in the one line.

    The line must name `blamed`, a file beside the data; "": the data file itself.
    """

    data: str
    spoil: Spoil
    told: tuple[str, ...]
    blamed: str = ""
    command: str = "ptq"
    options: tuple[str, ...] = ()


CASES = {
    "ids outside the vocabulary": Bad(
        PAIRS, line(3, rb" 1:\d+", b" 1:99999"), ("record 3", "id 99999", "'src_ids'", "vocabulary")
    ),
    "ids outside the vocabulary of lac_bin": Bad(
        WORDS, with_a_foreign_word, ("record 3", f"id {1 << 40}", "'words'", "vocabulary")
    ),
    "an empty sentence": Bad(LAC, line(4, rb"^[^\t]+", b""), ("record 3 (line 4)", "empty sentence")),
    "a sequence of length 0": Bad(RECORDS, with_an_empty_record, ("record 61", "length 0")),
    "a label too few beside": Bad(
        PAIRS, fewer_labels(f"{PAIRS}.label"), ("23 labels", f"{PAIRS} has 24"), f"{PAIRS}.label", "eval"
    ),
    "a label too few in --labels": Bad(
        PAIRS, fewer_labels("mine"), ("23 labels", f"{PAIRS} has 24"), "mine", "eval", ("--labels", "mine")
    ),
    "broken UTF-8": Bad(LAC, line(5, rb"\x02", b"\xe5\x02"), ("line 5", "not UTF-8")),
    "truncated handwriting": Bad(RECORDS, shortened(6), ("record 60", "truncated")),
    "truncated lac_bin": Bad(WORDS, shortened(8), ("truncated", "24 sentences")),
    "pairs with a field missing": Bad(PAIRS, line(2, rb";[^;]+$", b""), ("line 2", "3 fields")),
    "lac with a field missing": Bad(LAC, line(2, rb"\t.*", b""), ("record 1 (line 2)", "1 fields")),
    "no dictionary": Bad(LAC, lambda path: path.with_name("word.dic").unlink(), ("no such file",), "word.dic"),
    "an unknown format": Bad(LAC, as_it_is, ("'nonsense'", "--format"), options=("--format", "nonsense")),
    "metric hx of tags": Bad(LAC, as_it_is, ("metric 'hx'",), command="eval", options=("--metric", "hx")),
    "metric top1 of tags": Bad(LAC, as_it_is, ("metric 'top1'",), command="eval", options=("--metric", "top1")),
    "metric ctc of tags": Bad(LAC, as_it_is, ("metric 'ctc'",), command="eval", options=("--metric", "ctc")),
    "labels for data that has its own": Bad(
        LAC, as_it_is, ("its labels itself", "--labels"), command="eval", options=("--labels", f"{PAIRS}.label")
    ),
}


class Outcome(NamedTuple):
    done: subprocess.CompletedProcess[str]
    blamed: Path
    before: set[str]
    after: set[str]


@pytest.fixture(scope="module")
def outcomes(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """All cases, two at a time: most of each is the start of an interpreter and of Paddle."""
    root = tmp_path_factory.mktemp("bad")

    def run(number: int, case: Bad) -> Outcome:
        here = root / str(number)
        shutil.copytree(place / "data", here)
        case.spoil(here / case.data)
        form = ("--format", FORMATS[case.data]) if case.data in FORMATS else ()
        output = ("--output", here / "out" / "model") if case.command == "ptq" else ("--save-outputs", here / "out.npz")
        options = [here / option if (here / option).exists() else option for option in case.options]
        (here / "out").mkdir()
        before = listing(here)
        model = place / MODELS[case.data]
        done = start(case.command, "--model", model, "--data", here / case.data, *form, *output, *options)
        return Outcome(done, here / (case.blamed or case.data), before, listing(here))

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, number, case) for number, (name, case) in enumerate(CASES.items())}


def listing(root: Path) -> set[str]:
    return {os.path.relpath(path, root) for path in root.rglob("*")}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(outcomes: dict[str, Future[Outcome]], name: str) -> None:
    done, blamed, before, after = outcomes[name].result()
    assert done.returncode == 2, done.stderr or done.stdout
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: tier")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("quant: ")
    for told in CASES[name].told:
        assert told in lines[0]
    assert str(blamed) in lines[0]
    assert after == before
