"""The embedded text and sequence data: splits share nothing, records never change, lengths and labels are as said."""

import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures import digits, handwriting, lac, pairs
from fixtures.topologies import WEIGHTS
from quant.datasets.formats import half_width
from quant.suites.registry import find

ROOT = Path(__file__).parents[2]
SPLITS: tuple[digits.Split, ...] = ("train", "calibration", "test")
COUNT = 300


# --- pairs


@pytest.fixture(scope="module")
def drawn() -> dict[pairs.Split, list[pairs.Pair]]:
    return {split: list(pairs.pairs(split, COUNT)) for split in SPLITS}


def test_a_pair_belongs_to_the_split_that_it_is_in(drawn: dict[pairs.Split, list[pairs.Pair]]) -> None:
    for split, found in drawn.items():
        assert {pairs.split_of(pair.source) for pair in found} == {split}
        assert pairs.split_of(list(found[0].source)) == split  # whatever the ids come in
    for one, other in combinations(drawn.values(), 2):
        assert not {pair.source for pair in one} & {pair.source for pair in other}


@pytest.mark.parametrize("split", SPLITS)
def test_pair_i_is_the_same_for_every_count_and_start(
    split: pairs.Split, drawn: dict[pairs.Split, list[pairs.Pair]]
) -> None:
    assert list(pairs.pairs(split, 5, 250)) == drawn[split][250:255]
    assert list(pairs.pairs(split, 1)) == drawn[split][:1]
    assert [next(pairs.pairs(split, 1, index)) for index in (7, 3)] == [drawn[split][7], drawn[split][3]]
    assert list(pairs.pairs(split, 0, 9)) == []


def test_pairs_do_not_depend_on_the_hashes_of_a_process(drawn: dict[pairs.Split, list[pairs.Pair]]) -> None:
    script = "from fixtures import pairs; print([*pairs.pairs('test', 50)])"
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.stdout.strip() == str(drawn["test"][:50]), done.stderr


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_differ_in_length_and_label(split: pairs.Split, drawn: dict[pairs.Split, list[pairs.Pair]]) -> None:
    lengths = [len(pair.source) for pair in drawn[split]]
    assert min(lengths) < 16
    assert 48 < max(lengths) <= pairs.MAX_LENGTH
    shares = Counter(pair.label for pair in drawn[split])
    assert sorted(shares) == list(range(len(pairs.LABELS)))
    assert all(0.25 < count / COUNT < 0.42 for count in shares.values())
    assert all(len(pair.sentence) == len(pair.source) and {*pair.sentence} == {0, 1} for pair in drawn[split])
    assert all(0 <= index < len(pairs.VOCABULARY) for pair in drawn[split] for index in pair.source)


# --- sentences


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[tuple[list[str], list[str]]]]:
    """File -> its sentences as (characters, tags)."""
    found = {}
    for path in sorted(lac.SENTENCES.glob("*.tsv")):
        header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        assert header == "text_a\tlabel"
        fields = [line.split("\t") for line in lines]
        found[path.stem] = [(words.split("\x02"), tags.split("\x02")) for words, tags in fields]
    return found


def texts(sentences: list[tuple[list[str], list[str]]]) -> list[str]:
    return ["".join(characters) for characters, _ in sentences]


def test_no_sentence_twice(sentences: dict[str, list[tuple[list[str], list[str]]]]) -> None:
    assert sentences.keys() == {"calibration", "test"}
    assert not {*texts(sentences["calibration"])} & {*texts(sentences["test"])}
    for split in sentences.values():
        assert [text for text, count in Counter(texts(split)).items() if count > 1] == []


def test_no_sentence_twice_as_the_model_sees_it(sentences: dict[str, list[tuple[list[str], list[str]]]]) -> None:
    """LAC's q2b.dic makes full-width characters ASCII before it looks them up."""
    every = ["".join(map(half_width, text)) for split in sentences.values() for text in texts(split)]
    assert [text for text, count in Counter(every).items() if count > 1] == []


def test_sentences_are_many_and_of_every_kind(sentences: dict[str, list[tuple[list[str], list[str]]]]) -> None:
    assert len(sentences["test"]) >= 500
    every = [text for split in sentences.values() for text in texts(split)]
    for least, kind in ((60, "[0-9]"), (40, "[A-Za-z]"), (40, "[０-９Ａ-Ｚａ-ｚ]")):
        assert sum(re.search(kind, text) is not None for text in every) >= least, kind


def test_tags_are_those_of_lac(sentences: dict[str, list[tuple[list[str], list[str]]]], tmp_path: Path) -> None:
    lac.write_sentences("test", 1, tmp_path / "test.tsv")
    known = {line.split("\t")[1] for line in (tmp_path / "tag.dic").read_text(encoding="utf-8").splitlines()}
    for split in sentences.values():
        for characters, tags in split:
            assert len(characters) == len(tags)
            assert all(len(character) == 1 for character in characters)
            assert {*tags} <= known
            before = ["O", *tags[:-1]]
            broken = [tag for last, tag in zip(before, tags, strict=True) if tag[-2:] == "-I" and last[:-2] != tag[:-2]]
            assert broken == [], "".join(characters)  # a word goes on that never began


# --- handwriting


def test_a_digit_is_in_one_split() -> None:
    total = sum(len(digits.digits_of(split)[1]) for split in SPLITS)
    assert {*digits.SPLITS} == {*SPLITS}
    taken = [index for part in digits.SPLITS.values() for index in range(total)[part]]
    assert sorted(taken) == list(range(total))
    images = {split: {pixels.tobytes() for pixels in digits.digits_of(split)[0]} for split in SPLITS}
    for one, other in combinations(images.values(), 2):
        assert not one & other


@pytest.mark.parametrize("split", SPLITS)
def test_records_are_made_of_their_own_digits(split: digits.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def digits_of(name: digits.Split) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        asked.append(name)
        return digits.digits_of(name)

    monkeypatch.setattr(handwriting, "digits_of", digits_of)
    assert len(list(handwriting.sequences(split, 12))) == 12
    assert {*asked} == {split}


@pytest.mark.parametrize("split", SPLITS)
def test_record_i_is_the_same_for_every_count_and_start(split: digits.Split) -> None:
    def plain(count: int, start: int = 0) -> list[tuple[bytes, tuple[int, ...], tuple[int, ...]]]:
        found = handwriting.sequences(split, count, start)
        return [(features.tobytes(), features.shape, label) for features, label in found]

    whole = plain(40)
    assert len({features for features, _, _ in whole}) == 40
    assert plain(7, 20) == whole[20:27]
    assert plain(1) == whole[:1]
    assert [plain(1, index)[0] for index in (9, 4)] == [whole[9], whole[4]]
    assert plain(0, 5) == []


@pytest.mark.parametrize("split", SPLITS)
def test_records_differ_in_length_and_label(split: digits.Split) -> None:
    found = list(handwriting.sequences(split, COUNT))
    lengths = [len(features) for features, _ in found]
    assert min(lengths) < 16
    assert 60 < max(lengths) <= handwriting.MAX_STEPS
    assert all(len(label) == 1 if index % 3 == 0 else 3 <= len(label) <= 8 for index, (_, label) in enumerate(found))
    assert {symbol for _, label in found for symbol in label} == set(range(handwriting.CLASSES))
    for features, _ in found:
        assert features.dtype == np.float32 and features.shape[1] == handwriting.FEATURES
        assert features.min() >= 0 and features.max() <= 1


# --- what the rows take from them


@pytest.mark.parametrize(("name", "budget"), [("lstm", 2_000_000), ("ernie", 6_000_000)])
def test_weights_keep_to_their_budget(name: str, budget: int) -> None:
    assert (WEIGHTS / f"{name}.npz").stat().st_size <= budget


@pytest.mark.parametrize("name", ["ernie", "gru", "lstm"])
def test_rows_calibrate_on_other_data_than_they_test_on(name: str) -> None:
    spec = find(name)
    assert spec.calibration[0] != spec.test[0]
    assert {spec.calibration[0], spec.test[0]} <= {"calibration", "test"}
