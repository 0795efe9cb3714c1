"""Pure scores over a whole set, and statistics of paired outcomes.

FP32, simulated and INT8 runs see the same samples, so a drop is a paired difference: only the samples on which two
runs disagree carry information, and the interval comes from them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from quant.datasets import user_functions
from quant.datasets.columns import Column, Ragged, values_of
from quant.datasets.tagging import TagSet, check_tags, chunks, tag_set_of
from quant.errors import ModelError, OptionError, check_choice

__all__ = [
    "METRICS",
    "USUAL",
    "WORDS",
    "Metric",
    "Paired",
    "Verdict",
    "agreement",
    "check_metrics",
    "cosine",
    "counted",
    "fitting",
    "metric_of",
    "paired",
    "ratio_interval",
    "same_rows",
    "sqnr",
    "usual",
    "verdict",
]

Counts = NDArray[Any]  # int64; float64 of a user's own metric
_RESAMPLES, _BLOCK = 4000, 100
_ROUNDING = 1e-6  # by which float32 may take a share beyond 1
_BEYOND = 10  # resamples beyond an end of an interval, below which the percentile is too coarse


@dataclass(frozen=True)
class Metric:
    """A score in 0..1; higher is better.

    `counts`: a model's outputs in their order, and labels -> what each sample adds, [N, k]; `score` makes the score of
    their sums [..., k]. So a set can be scored again, resampled or split without running the model again.
    """

    unit: str
    counts: Callable[[Sequence[Column], Column], Counts]
    score: Callable[[NDArray[Any]], NDArray[np.float64]]


def _share(sums: NDArray[Any]) -> NDArray[np.float64]:
    """(right, of) -> right / of."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def _scores(column: Column) -> NDArray[Any]:
    """A column of scores [N, classes]. Raises ValueError for any other."""
    if isinstance(column, Ragged) or column.ndim != 2 or column.dtype.kind != "f":
        raise ValueError("not scores [N, classes]")
    return column


def _top(count: int) -> Callable[[Sequence[Column], Column], Counts]:
    def counts(outputs: Sequence[Column], labels: Column) -> Counts:
        """scores [N, classes], labels [N] -> (hit, 1). Ties go to the lower class, as argmax does."""
        scores = _scores(outputs[0])
        if scores.shape[1] <= count:
            raise ValueError(f"of {scores.shape[1]} classes the best {count} hold the right one in any case")
        if isinstance(labels, Ragged) or labels.size != len(labels) or labels.dtype.kind not in "iu":
            raise ValueError("labels aren't one class a sample")
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        hits = (order == labels.reshape(-1, 1)).any(1)
        return np.stack([hits, np.ones(len(hits))], 1).astype(np.int64)

    return counts


def _sequences(column: Column) -> Iterator[NDArray[Any]]:
    """The sequences of a column of one integer a step. Raises ValueError for any other."""
    if not isinstance(column, Ragged) or column.values.dtype.kind not in "iu" or column.values[0].size != 1:
        raise ValueError("not sequences of one integer a step")
    return (column.sequence(place).reshape(-1) for place in range(len(column)))


def _decided(column: Column) -> Iterator[NDArray[Any]]:
    """One integer a step of each sample: sequences or [N, steps] of these; of scores [N, steps, tags] the largest's."""
    if not isinstance(column, Ragged):
        if column.dtype.kind == "f" and column.ndim == 3 and column.shape[2] > 1:
            return iter(column.argmax(-1))
        if column.dtype.kind in "iu" and (column.ndim == 2 or (column.ndim == 3 and column.shape[2] == 1)):
            return iter(column.reshape(column.shape[:2]))
    return _sequences(column)


def _both(outputs: Sequence[Column], labels: Column) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The tags that a model gave the steps of each sample, and the gold ones; steps of negative gold are left out."""
    for found, gold in zip(_decided(outputs[0]), _decided(labels), strict=True):
        if len(found) != len(gold):
            raise ValueError("as many tags as labels are needed")
        yield found[gold >= 0], gold[gold >= 0]


def _tags(outputs: Sequence[Column], labels: Column) -> Counts:
    """tags of each step, and the gold ones -> (right, steps)."""
    return np.array([[(found == gold).sum(), gold.size] for found, gold in _both(outputs, labels)], np.int64)


def _words(outputs: Sequence[Column], labels: Column, known: TagSet, typed: bool) -> Counts:
    """tags of each step, and the gold ones -> (words right, words found, words there)."""

    def words(tags: NDArray[Any]) -> set[tuple[Any, ...]]:
        found = chunks(tags.tolist(), known)
        return set(found) if typed else {(begin, end) for begin, end, _ in found}

    both = [(words(found), words(gold)) for found, gold in _both(outputs, labels)]
    return np.array([[len(found & gold), len(found), len(gold)] for found, gold in both], np.int64)


def _nameless(outputs: Sequence[Column], labels: Column) -> Counts:
    """What counts words before it is told the tags: `metric_of`."""
    raise OptionError("words can't be counted without the names of tags")


def _f1(sums: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))


def _recall(sums: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 2], 1))


def _single(outputs: Sequence[Column], labels: Column) -> Counts:
    """scores [N, classes] as first output, label sequences -> (hit, 1) for labels of one class, (0, 0) for others."""
    golds = list(_sequences(labels))
    best = _scores(outputs[0]).argmax(1)
    return np.array([[int(gold[0] == y), 1] if gold.size == 1 else [0, 0] for y, gold in zip(best, golds, strict=True)])


def _whole(outputs: Sequence[Column], labels: Column) -> Counts:
    """decoded sequences as second output, label sequences -> (equal as a whole, 1).

    `ctc_align` writes -1 when it finds nothing. Paddle's quant2_int8_lstm_model.py compares `a.all() == b.all()`, two
    booleans that nearly always agree; here every symbol has to.
    """
    both = zip(_sequences(outputs[1]), _sequences(labels), strict=True)
    return np.array([[int(np.array_equal(found[found >= 0], gold)), 1] for found, gold in both], np.int64)


METRICS: dict[str, Metric] = {
    "top1": Metric("share of samples", _top(1), _share),
    "top5": Metric("share of samples", _top(5), _share),
    "tags": Metric("share of steps", _tags, _share),
    "precision": Metric("share of words found", _nameless, _share),
    "recall": Metric("share of words there", _nameless, _recall),
    "f1": Metric("of words, boundaries and types", _nameless, _f1),
    "segmentation_f1": Metric("of words, boundaries alone", _nameless, _f1),
    "hx": Metric("share of single symbols", _single, _share),
    "ctc": Metric("share of whole sequences", _whole, _share),
}
# Metric of words -> whether their types count too. Only a tag set says what is a word: `metric_of`.
WORDS = {"precision": True, "recall": True, "f1": True, "segmentation_f1": False}


def _own(name: str) -> Metric:
    """A user's function "module:function" as a metric. It is imported when it first counts.

    f(outputs, labels) -> what each sample scores, [N], in 0..1; or [N, 2], whose sums are the score's numerator and
    denominator. The sums alone make the score, so what was counted is scored without the function.
    """

    def counts(outputs: Sequence[Column], labels: Column) -> Counts:
        function = user_functions.function_of(name)
        with user_functions.calling(name):
            found = np.asarray(function(list(outputs), labels))
        if found.dtype.kind not in "biuf" or found.shape not in ((len(labels),), (len(labels), 2)):
            raise OptionError(
                f"{name} gave {found.dtype}{list(found.shape)} for {len(labels)} samples; a metric gives numbers "
                f"[{len(labels)}], or [{len(labels)}, 2] of (numerator, denominator)"
            )
        pairs = found if found.ndim == 2 else np.stack([found, np.ones(len(found), found.dtype)], 1)
        pairs = pairs.astype(np.float64 if found.dtype.kind == "f" else np.int64)
        outside = ~((pairs[:, 0] >= 0) & (pairs[:, 0] <= pairs[:, 1] * (1 + _ROUNDING)) & np.isfinite(pairs[:, 1]))
        if outside.any():
            sample = int(np.argmax(outside))
            told = found[sample].tolist()
            raise OptionError(f"{name} gave {told} for sample {sample}; what a sample scores lies in 0..1")
        return pairs

    def score(sums: NDArray[Any]) -> NDArray[np.float64]:
        rest = sums[..., 1]
        return np.asarray(sums[..., 0] / np.where(rest > 0, rest, 1))

    return Metric(f"by {name}", counts, score)


def metric_of(name: str, tags: TagSet | None = None) -> Metric:
    """The metric of that name, a key of METRICS or a user's "module:function". Raises OptionError with the nearest.

    Those in WORDS count only with `tags`; sums are scored without.
    """
    if ":" in name:
        user_functions.check_name(name)
        return _own(name)
    check_choice("metric", name, METRICS)
    if name in WORDS and tags is not None:
        return replace(METRICS[name], counts=partial(_words, known=tags, typed=WORDS[name]))
    return METRICS[name]


def check_metrics(names: Sequence[str], data: Path, format: str) -> None:
    """Raise OptionError, before anything is run, for a name that is no metric, and for one that `data` can't feed."""
    for name in names:
        metric_of(name)
        if name in WORDS:
            check_tags(data, format)


def usual(format: str) -> tuple[str, ...]:
    """The metrics that data of a format is scored by, the one that is compared first. OptionError for a user's own."""
    if format not in USUAL:
        raise OptionError(f"--format {format}: data of a reader's own has no usual metric; name one with --metric")
    return USUAL[format]


def fitting(names: Sequence[str], outputs: Sequence[Column]) -> list[str]:
    """Those of the usual metrics that say something: the right one is always among the best 5 of 5 classes or fewer."""
    values = values_of(outputs[0])
    few = values.ndim == 2 and values.shape[1] <= 5
    return [name for name in names if not (few and name == "top5")]


def counted(name: str, outputs: Sequence[Column], labels: Column, data: Path, format: str) -> Counts:
    """What each sample of `data` adds to a metric, [N, k]; see `tagging.tag_set_of` for metrics of words.

    Raises ValueError or IndexError when outputs and labels aren't what it takes, OptionError where tags have no names.
    """
    tags = tag_set_of(data, format, outputs) if name in WORDS else None
    return metric_of(name, tags).counts(outputs, labels)


# Data format -> the metrics that it is scored by, unless others are named; the first is the one that is compared.
USUAL: dict[str, tuple[str, ...]] = {
    "images": ("top1", "top5"),
    "npz": ("top1", "top5"),
    "pairs": ("top1",),
    "lac": ("f1", "precision", "recall", "segmentation_f1", "tags"),
    "lac_bin": ("f1", "precision", "recall", "segmentation_f1", "tags"),
    "handwriting": ("hx", "ctc"),
}


def sqnr(reference: Column, other: Column) -> float:
    """Signal to quantization noise ratio in dB, 10 log10(|r|^2 / |r - o|^2); higher is better, inf when equal.

    Raises ModelError when these aren't outputs of one shape.
    """
    before, after = _alike(reference, other)
    noise = float(np.sum((before - after) ** 2))
    return math.inf if noise == 0 else 10 * math.log10(max(float(np.sum(before**2)), 1e-300) / noise)


def _alike(reference: Column, other: Column) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    before, after = values_of(reference).astype(np.float64), values_of(other).astype(np.float64)
    if before.shape != after.shape:
        shapes = f"{list(before.shape)} and {list(after.shape)}"
        raise ModelError(f"two models that are compared put out values of shapes {shapes}: of unlike models?")
    return before, after


def same_rows(reference: Column, other: Column) -> bool:
    """Whether two outputs are of one shape: not so of what models found, each another number of things."""
    return values_of(reference).shape == values_of(other).shape


def cosine(reference: Column, other: Column) -> float:
    """Mean over rows of the cosine between two outputs [N, features]. Raises as `sqnr` does."""
    before, after = _alike(reference, other)
    norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
    return float(((before * after).sum(-1) / np.maximum(norms, 1e-300)).mean())


def agreement(reference: Column, other: Column) -> float:
    """Share of equal values of two outputs of integers."""
    return float((values_of(reference) == values_of(other)).mean())


@dataclass(frozen=True)
class Paired:
    """A drop (before - after, as a share of the samples) with its interval and McNemar's exact p-value."""

    samples: int
    lost: int  # right before, wrong after
    won: int  # wrong before, right after
    drop: float
    low: float
    high: float
    p_value: float
    confidence: float = 0.95  # of the interval


def paired(before: Counts, after: Counts, metric: str = "top1", confidence: float = 0.95) -> Paired:
    """Compare two runs over the same samples by what each sample adds, [N, k].

    One outcome a sample: Newcombe's hybrid score interval for paired proportions (Statistics in Medicine 17, 1998,
    method 10), and the exact binomial test on the discordant pairs (McNemar). Other scores: a bootstrap over samples,
    which keeps a sample's counts together, and a permutation test that swaps the two runs' samples at random. The
    bootstrap's interval is that of its percentiles; at a confidence that leaves fewer than 10 resamples beyond an end,
    it is the normal one with the bootstrap's standard error (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapters 12 and 13).
    """
    if before.shape != after.shape or not before.size:
        raise ValueError(f"paired outcomes of different or no samples: {before.shape} and {after.shape}")
    if before.shape[1] == 2 and np.array_equal(before[:, 1], after[:, 1]) and _only_hits(before) and _only_hits(after):
        counted = before[:, 1] == 1
        return _paired_hits(before[counted, 0] == 1, after[counted, 0] == 1, confidence)
    return _paired_counts(before, after, metric_of(metric).score, confidence)


def _only_hits(counts: Counts) -> bool:
    """Whether each sample adds (0 or 1, 0 or 1)."""
    return bool(np.isin(counts, (0, 1)).all())


def _paired_counts(
    before: Counts, after: Counts, score: Callable[[NDArray[Any]], NDArray[np.float64]], confidence: float
) -> Paired:
    n, random = len(before), np.random.default_rng(0)
    drop = float(score(before.sum(0)) - score(after.sum(0)))
    drops, swapped = [], []
    for _ in range(_RESAMPLES // _BLOCK):  # in blocks: [resamples, samples] at once would not fit for large sets
        drawn = random.multinomial(n, np.full(n, 1 / n), _BLOCK).astype(np.float64)
        drops.append(score(drawn @ before) - score(drawn @ after))
        stay = random.integers(0, 2, (_BLOCK, n)).astype(np.float64)
        swapped.append(score(stay @ before + (1 - stay) @ after) - score(stay @ after + (1 - stay) @ before))
    low, high = _bootstrap_interval(drop, np.concatenate(drops), confidence)
    extreme = np.abs(np.concatenate(swapped)) >= abs(drop) - 1e-12
    p_value = float((1 + extreme.sum()) / (1 + extreme.size))
    lost, won = int((before[:, 0] > after[:, 0]).sum()), int((before[:, 0] < after[:, 0]).sum())
    return Paired(n, lost, won, drop, low, high, p_value, confidence)


def _bootstrap_interval(drop: float, resampled: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    if tail * resampled.size < _BEYOND:
        reach = float(scipy.stats.norm.isf(tail) * resampled.std(ddof=1))
        return drop - reach, drop + reach
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def _paired_hits(before: NDArray[np.bool_], after: NDArray[np.bool_], confidence: float) -> Paired:
    n = before.size
    both, lost = int((before & after).sum()), int((before & ~after).sum())
    won, neither = int((~before & after).sum()), int((~before & ~after).sum())
    p1, p2 = (both + lost) / n, (both + won) / n
    (l1, u1), (l2, u2) = _wilson(both + lost, n, confidence), _wilson(both + won, n, confidence)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    cross = float(both * neither - lost * won)
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0
    drop = p1 - p2
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    p_value = float(scipy.stats.binomtest(lost, lost + won).pvalue) if lost + won else 1.0
    low, high = drop - math.sqrt(max(below, 0)), drop + math.sqrt(max(above, 0))
    return Paired(n, lost, won, drop, low, high, p_value, confidence)


def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    interval = scipy.stats.binomtest(successes, n).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or INCONCLUSIVE by the interval; `on_point` is the answer of the point estimate alone.

    `needed` is about how many samples would decide an inconclusive case if the drop stayed what it is.
    """

    result: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    on_point: bool
    needed: int | None = None

    def __str__(self) -> str:
        if self.result != "INCONCLUSIVE":
            return self.result
        needs = f"needs about {self.needed:,}" if self.needed else "at the limit exactly"
        return f"{'pass' if self.on_point else 'fail'} on the point, INCONCLUSIVE ({needs})"


def verdict(drop: Paired, limit: float) -> Verdict:
    """PASS: the interval's upper bound is within `limit`; FAIL: its lower bound is beyond it."""
    if drop.high <= limit:
        return Verdict("PASS", True)
    if drop.low > limit:
        return Verdict("FAIL", False)
    distance = abs(limit - drop.drop)
    reach = drop.high - drop.drop if drop.drop <= limit else drop.drop - drop.low
    needed = math.ceil(drop.samples * (reach / distance) ** 2) if distance > 1e-9 else None
    return Verdict("INCONCLUSIVE", drop.drop <= limit, needed)


def ratio_interval(slow: NDArray[Any], fast: NDArray[Any], seed: int = 0) -> tuple[float, float, float]:
    """Median of the per-round ratios slow / fast and its bootstrap 95% interval: (ratio, low, high).

    Round i of both ran one after the other, so a change of the machine's speed meets both.
    """
    ratios = np.asarray(slow, np.float64) / np.asarray(fast, np.float64)
    random = np.random.default_rng(seed)
    medians = np.median(ratios[random.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)
