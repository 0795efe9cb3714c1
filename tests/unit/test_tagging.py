"""Tags and the words that they spell: dictionaries of every scheme, worked examples of others, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.datasets.columns import Column, Ragged
from quant.datasets.readers import files_behind
from quant.datasets.tagging import TagSet, chunks, numbered_tags, read_tag_set
from quant.errors import DataError, OptionError, QuantError
from quant.metrics.scores import METRICS, WORDS, check_metrics, counted, fitting, metric_of
from quant.suites.manifest.schema import read

NAMES = ["B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "O"]


def listed(directory: Path, names: list[str]) -> Path:
    (directory / "tag.dic").write_text("".join(f"{number}\t{name}\n" for number, name in enumerate(names)))
    return directory / "tag.dic"


def f1(gold: Ragged, found: Column, data: Path, format: str = "npz") -> float:
    return float(METRICS["f1"].score(counted("f1", [found], gold, data, format).sum(0)))


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], [NAMES[8], *NAMES[:8]]], ids=["O last", "reversed", "O first"])
def test_a_tagger_that_finds_nothing_scores_nothing(tmp_path: Path, order: list[str]) -> None:
    """Whatever number O has: 20 words of 1,000 steps, none found; and all found, by the same tagger turned round."""
    listed(tmp_path, order)
    gold = np.full(1000, order.index("O"))
    gold[::50] = order.index("B-PER")
    silent = np.full((1000, 1), order.index("O"))
    assert f1(Ragged.of([gold]), Ragged.of([silent]), tmp_path / "data") == 0
    assert f1(Ragged.of([gold]), Ragged.of([gold[:, None]]), tmp_path / "data") == 1


def test_words_are_not_scored_without_names_of_tags(tmp_path: Path) -> None:
    tags = Ragged.of([np.array([0, 1, 8])])
    for name in WORDS:
        with pytest.raises(OptionError, match=r"tag\.dic: no such file; words are scored by the names of tags"):
            counted(name, [tags], tags, tmp_path / "data.npz", "npz")
        with pytest.raises(OptionError, match="names of tags"):
            check_metrics([name], tmp_path / "data.npz", "npz")
        with pytest.raises(OptionError, match="names of tags"):
            METRICS[name].counts([tags], tags)
    check_metrics(["tags", "top1"], tmp_path / "data.npz", "npz")


def test_a_dictionary_less_lac_binary_has_as_many_tags_as_the_model_has_emissions(tmp_path: Path) -> None:
    """By chunk_eval's numbering; 57 of them are LAC's, where 56 is O."""
    gold, data = Ragged.of([np.array([0, 1, 8, 8])]), tmp_path / "data.bin"
    emissions = [Ragged.of([np.zeros((4, width), np.float32)]) for width in (9, 57, 8)]
    right = Ragged.of([np.array([[0], [1], [8], [8]])])
    found = [counted("f1", [right, scores], gold, data, "lac_bin").tolist() for scores in emissions[:2]]
    assert found == [[[1, 1, 1]], [[3, 3, 3]]]
    with pytest.raises(OptionError, match="8 tags aren't B and I of each type and one O"):
        counted("f1", [right, emissions[2]], gold, data, "lac_bin")
    with pytest.raises(OptionError, match="names of tags"):
        counted("f1", [right], gold, data, "lac_bin")


def test_the_example_of_seqeval(tmp_path: Path) -> None:
    """Its README's: f1 0.50, one of two entities at its place."""
    listed(tmp_path, NAMES)
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    columns = [Ragged.of([np.array([NAMES.index(tag) for tag in one]) for one in tags]) for tags in (gold, found)]
    assert f1(*columns, tmp_path / "data") == 0.5


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("O I-PER I-PER", [(1, 3, "PER")]),  # IOB1, and damaged IOB2: what goes on without a beginning begins
        ("I-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("B-PER I-PER E-PER S-LOC", [(0, 3, "PER"), (3, 4, "LOC")]),
        ("E-PER E-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("S-PER I-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("O O", []),
        ("", []),
    ],
)
def test_words_of_tags(tmp_path: Path, tags: str, words: list[tuple[int, int, str]]) -> None:
    names = ["O", *(f"{place}-{kind}" for kind in ("PER", "LOC") for place in "BIES")]
    known = read_tag_set(listed(tmp_path, names))
    assert sorted(chunks([names.index(tag) for tag in tags.split()], known)) == words


def conlleval(tags: list[tuple[str, str]]) -> set[tuple[int, int, str]]:
    """As conlleval.pl tells beginnings and ends, rule by rule (its functions startOfChunk and endOfChunk)."""
    ends = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O"), ("E", "B")}
    ends |= {("B", "S"), ("I", "S"), ("E", "S"), *(("S", place) for place in "BIESO")}
    starts = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E"), ("E", "B")}
    starts |= {*(("S", place) for place in "BIE"), *((place, "S") for place in "BIESO")}
    found, begin, before = set(), 0, ("O", "")
    for step, tag in enumerate([*tags, ("O", "")]):
        pair = (before[0], tag[0])
        if pair in ends or (before[0] != "O" and before[1] != tag[1]):
            found.add((begin, step, before[1]))
        if pair in starts or (tag[0] != "O" and before[1] != tag[1]):
            begin = step
        before = tag
    return found


@given(st.lists(st.tuples(st.sampled_from("BIESO"), st.sampled_from(["PER", "LOC"])), max_size=12))
def test_words_are_those_of_conlleval(tags: list[tuple[str, str]]) -> None:
    tags = [(place, "" if place == "O" else kind) for place, kind in tags]
    assert chunks(list(range(len(tags))), TagSet(dict(enumerate(tags)), "")) == conlleval(tags)


@given(st.lists(st.integers(0, 56), max_size=30))
def test_words_cover_their_steps_once(tags: list[int]) -> None:
    found = sorted(chunks(tags, numbered_tags(57, "")))
    covered = [place for begin, end, _ in found for place in range(begin, end)]
    assert covered == [place for place, tag in enumerate(tags) if tag < 56]
    assert all(tags[begin] // 2 == int(kind) for begin, _, kind in found)


def test_names_of_one_id_are_one_tag(tmp_path: Path) -> None:
    """Baidu's dictionary: ns-B and LOC-B are tag 18, and a word that begins as one goes on as the other."""
    (tmp_path / "tag.dic").write_text("18\tns-B\n18\tLOC-B\n19\tLOC-I\n19\tns-I\n48\tO\n")
    assert [(begin, end) for begin, end, _ in chunks([18, 19, 19, 48], read_tag_set(tmp_path / "tag.dic"))] == [(0, 3)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("0\tB-PER\n1\tI-PER\n2\tnoun\n", "'noun' is no tag of words"),
        ("0\tB-PER\n1\tLOC-I\n2\tO\n", "'LOC-I' is no tag of words|'B-PER' is no tag of words"),
        ("0\tB-PER\n0\tI-PER\n", "id 0 is 'B-PER' and 'I-PER': two tags of unlike kinds"),
        ("0\tB-PER\n0\tO\n", "two tags of unlike kinds"),
        ("B-PER\nO\n", "line 1: one field"),
        ("", "empty"),
    ],
)
def test_bad_dictionaries(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "tag.dic").write_text(text)
    with pytest.raises(DataError, match=fault) as raised:
        read_tag_set(tmp_path / "tag.dic")
    assert str(raised.value).startswith(str(tmp_path / "tag.dic")) and "\n" not in str(raised.value)


def test_a_tag_that_the_dictionary_lacks_is_told(tmp_path: Path) -> None:
    listed(tmp_path, NAMES)
    gold = Ragged.of([np.array([0, 1])])
    with pytest.raises(DataError, match=r"tag 9 isn't one of the 9 of .*tag\.dic"):
        counted("f1", [Ragged.of([np.array([[0], [9]])])], gold, tmp_path / "data", "npz")


def test_padded_sentences_and_scores_of_tags(tmp_path: Path) -> None:
    """[N, steps] of tags, and [N, steps, tags] of scores; what is padded has a negative label and doesn't count."""
    known = read_tag_set(listed(tmp_path, NAMES))
    gold = np.array([[0, 1, 8, -100], [8, 4, -100, -100]])
    found = np.array([[0, 1, 8, 0], [8, 2, 4, 4]])
    for column in (found, found[..., None], np.eye(9, dtype=np.float32)[found]):
        assert metric_of("f1", known).counts([column], gold).tolist() == [[1, 1, 1], [0, 1, 1]]
        assert METRICS["tags"].counts([column], gold).tolist() == [[3, 3], [1, 2]]
    with pytest.raises(ValueError, match="as many tags"):
        METRICS["tags"].counts([found[:, :3]], gold)


def test_the_dictionary_is_one_of_the_files_behind_the_data(tmp_path: Path) -> None:
    (tmp_path / "data.npz").touch()
    assert files_behind(tmp_path / "data.npz").keys() == {"data"}
    listed(tmp_path, NAMES)
    assert files_behind(tmp_path / "data.npz").keys() == {"data", "tag.dic"}


def test_a_manifest_that_scores_words_needs_the_dictionary(tmp_path: Path) -> None:
    for name in ("fp32", "int8"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.npz").touch()
    manifest = tmp_path / "quant.toml"
    manifest.write_text('[[model]]\nname = "ner"\nfp32 = "fp32"\nint8 = "int8"\ndata = "data.npz"\nmetric = "f1"\n')
    with pytest.raises(QuantError, match=r"quant.toml:6: model 'ner', key metric: 'f1' scores words, and .*tag\.dic"):
        read(manifest)
    listed(tmp_path, NAMES)
    assert read(manifest).models[0].metrics == ("f1",)


def test_five_classes_have_no_usual_top5() -> None:
    assert fitting(["top1", "top5"], [np.zeros((2, 5))]) == ["top1"]
    assert fitting(["top1", "top5"], [np.zeros((2, 6))]) == ["top1", "top5"]
