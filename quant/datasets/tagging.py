"""Which tags begin a word, go on with one, end one or stand outside, and the words that a sequence of tags spells.

Ids of tags say none of that. A dictionary does, `tag.dic` beside the data, a line `id <TAB> name` a tag: `B-PER` or
`PER-B`, of B I E S (or L for E, U for S, M for I), and `O`. So IOB1, IOB2, IOE, IOBES and BILOU are read alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quant.datasets.columns import Column, Ragged, values_of
from quant.datasets.formats import read_ids
from quant.errors import DataError, OptionError

__all__ = [
    "DICTIONARY",
    "TagSet",
    "check_tags",
    "chunks",
    "dictionary_beside",
    "numbered_tags",
    "read_tag_set",
    "tag_set_of",
]

DICTIONARY = "tag.dic"
_OTHER = ("O", "")
_PREFIXED, _SUFFIXED = re.compile(r"([BIESLUM])[-_](.+)"), re.compile(r"(.+)[-_]([BIESLUM])")
_SAME = {"L": "E", "U": "S", "M": "I"}


@dataclass(frozen=True)
class TagSet:
    """`tags`: id -> (B, I, E, S or O; type, "" for O). `source`: where that is said."""

    tags: Mapping[int, tuple[str, str]]
    source: str


def dictionary_beside(data: Path) -> Path:
    """Where the tags of a data file, or of a directory of data, are listed; there need be none."""
    return (data if data.is_dir() else data.parent) / DICTIONARY


def read_tag_set(path: Path) -> TagSet:
    """A dictionary of tags. Names that share an id are one tag, and their types one type.

    Raises DataError naming the file for a name that is no tag of words, and for an id that would be two of B I E S O.
    """
    ids = read_ids(path, unique=False)
    others = [name for name in ids if name != "O"]
    before, behind = (sum(bool(form.fullmatch(name)) for name in others) for form in (_PREFIXED, _SUFFIXED))
    first = before >= behind
    parsed = {name: _parsed(path, name, first) for name in others} | {"O": _OTHER}
    same: dict[str, str] = {}  # type -> the type that it is one with

    def root(kind: str) -> str:
        while kind in same:
            kind = same[kind]
        return kind

    names: dict[int, str] = {}
    for name, number in ids.items():
        other = names.setdefault(number, name)
        (place, kind), (there, known) = parsed[name], parsed[other]
        if place != there:
            raise DataError(f"{path}: id {number} is {other!r} and {name!r}: two tags of unlike kinds")
        if root(kind) != root(known):
            same[root(kind)] = root(known)
    return TagSet({number: (parsed[name][0], root(parsed[name][1])) for number, name in names.items()}, str(path))


def _parsed(path: Path, name: str, first: bool) -> tuple[str, str]:
    found = (_PREFIXED if first else _SUFFIXED).fullmatch(name)
    if found is None:
        raise DataError(f"{path}: {name!r} is no tag of words: B-TYPE, I-TYPE (or TYPE-B, TYPE-I, in all) and O")
    place, kind = found.groups() if first else reversed(found.groups())
    return _SAME.get(place, place), kind


def numbered_tags(count: int, source: str) -> TagSet:
    """The tags that Paddle's op chunk_eval counts in its scheme IOB: 2 t begins type t, 2 t + 1 goes on, the last is O.

    Source: paddle/phi/kernels/cpu/chunk_eval_kernel.cc. Raises OptionError for an even number, which has no O.
    """
    if count < 3 or count % 2 == 0:
        raise OptionError(f"{source}: {count} tags aren't B and I of each type and one O: list them in {DICTIONARY}")
    tags = {tag: ("BI"[tag % 2], str(tag // 2)) for tag in range(count - 1)}
    return TagSet({**tags, count - 1: _OTHER}, source)


def tag_set_of(data: Path, format: str, outputs: Sequence[Column]) -> TagSet:
    """The tags of labelled data: those of the dictionary beside it.

    Without one, data of the format `lac_bin` has the tags of LAC's programs, `numbered_tags`, as many as the model
    gives emissions for: the width of its first output of real numbers. Raises OptionError where nothing tells them.
    """
    if (found := check_tags(data, format)) is not None:
        return found
    for column in outputs:
        values = values_of(column)
        if isinstance(column, Ragged) and values.ndim == 2 and values.dtype.kind == "f":
            return numbered_tags(values.shape[1], f"the width of the model's emissions ({data} has no {DICTIONARY})")
    raise _untold(data)


def check_tags(data: Path, format: str) -> TagSet | None:
    """The tags of the dictionary beside labelled data; None where only the model can tell.

    Raises DataError for a damaged dictionary, OptionError where nothing will tell the tags.
    """
    dictionary = dictionary_beside(data)
    if dictionary.is_file():
        return read_tag_set(dictionary)
    if format != "lac_bin":
        raise _untold(data)
    return None


def _untold(data: Path) -> OptionError:
    return OptionError(
        f"{dictionary_beside(data)}: no such file; words are scored by the names of tags: a line `id<TAB>name` each, "
        f"such as B-PER, I-PER and O"
    )


def chunks(tags: Sequence[int], known: TagSet) -> set[tuple[int, int, str]]:
    """Tags of one sentence -> its words, (first step, last step + 1, type).

    As the CoNLL shared tasks' conlleval counts, and seqeval (its default mode) and Paddle's chunk_eval: what goes on
    without a beginning, or behind another type, begins a word too. Raises DataError for an id that is no tag.

    >>> iob = TagSet({0: ("B", "PER"), 1: ("I", "PER"), 2: ("B", "LOC"), 3: ("I", "LOC"), 4: ("O", "")}, "")
    >>> sorted(chunks([0, 1, 1, 2, 4, 3, 1], iob))
    [(0, 3, 'PER'), (3, 4, 'LOC'), (5, 6, 'LOC'), (6, 7, 'PER')]
    """
    found = set()
    begin, kind, ended = -1, "", False
    for step, tag in enumerate(tags):
        if tag not in known.tags:
            raise DataError(f"tag {tag} isn't one of the {len(known.tags)} of {known.source}")
        place, new = known.tags[tag]
        if begin >= 0 and (ended or place in "BSO" or new != kind):
            found.add((begin, step, kind))
            begin = -1
        if begin < 0 and place != "O":
            begin, kind = step, new
        ended = place in "ES"
    if begin >= 0:
        found.add((begin, len(tags), kind))
    return found
