"""Numerics, observers, metrics: properties, and worked examples from elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.datasets.columns import Ragged
from quant.datasets.tagging import numbered_tags
from quant.errors import ModelError
from quant.ir.numerics import (
    REDUCED,
    SIGNED,
    UNSIGNED,
    bits_of,
    channel_thresholds,
    dequantise,
    levels_of,
    quantise,
    usable,
)
from quant.metrics.scores import METRICS, WORDS, agreement, cosine, metric_of, paired, ratio_interval, sqnr, verdict
from quant.quantization.observers import ALGORITHMS, Sample, choose

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3), elements=st.floats(-1e3, 1e3, width=32))


@given(FLOATS)
def test_quantising_errs_by_at_most_half_a_step(x: np.ndarray) -> None:
    threshold = float(usable(np.abs(x).max())[0])
    for levels in (SIGNED, REDUCED):
        error = np.abs(dequantise(quantise(x, threshold, levels), threshold, levels) - x)
        assert error.max() <= threshold / levels * 0.5001 + 1e-6


@given(FLOATS)
def test_a_grid_is_kept_by_a_second_rounding(x: np.ndarray) -> None:
    threshold = channel_thresholds(x, 0)
    once = dequantise(quantise(x, threshold, SIGNED), threshold, SIGNED)
    assert np.array_equal(quantise(once, threshold, SIGNED), quantise(x, threshold, SIGNED))


def test_rounding_and_clipping() -> None:
    assert quantise(np.array([0.5, 1.5, -0.5, -9, 9]), 4.0, 4).tolist() == [0, 2, 0, -5, 4]
    assert [levels_of(bits_of(levels)) for levels in (REDUCED, SIGNED, UNSIGNED)] == [63, 127, 255]
    with pytest.raises(ValueError, match="not finite"):
        usable(np.array([1.0, np.nan]))


def test_reduced_weights_cannot_saturate_pairs_of_products() -> None:
    assert UNSIGNED * REDUCED * 2 < 2**15 <= UNSIGNED * SIGNED * 2


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_observers_see_batches_as_one_set(algo: str) -> None:
    random = np.random.default_rng(0)
    values = np.abs(random.standard_normal((64, 500))).astype(np.float32)
    values[::9] *= 7  # so that ranges grow on the way
    values[5, 0] = 4.0  # on a border of the histogram's range
    whole = ALGORITHMS[algo](SIGNED)
    whole.update(values)
    assert 0 < whole.threshold() <= values.max()
    for size in (1, 7, 40):
        parts = ALGORITHMS[algo](SIGNED)
        for start in range(0, 64, size):
            parts.update(values[start : start + size])
        assert parts.threshold() == pytest.approx(whole.threshold(), rel=1e-12)


@pytest.mark.parametrize("channels", [1, 8])
def test_samples_see_batches_as_one_set(channels: int) -> None:
    values = np.random.default_rng(0).standard_normal((64, 5000, channels)).astype(np.float32)
    whole = Sample(np.ones(channels))
    whole.update(values)
    for size in (1, 7, 40):
        parts = Sample(np.ones(channels))
        for start in range(0, 64, size):
            parts.update(values[start : start + size])
        assert parts.cost(2.0, SIGNED) == whole.cost(2.0, SIGNED)
    assert whole.cost(2.0, SIGNED) != whole.cost(3.0, SIGNED)


def test_observers_on_a_worked_example() -> None:
    batch = np.array([[1.0, -3.0], [2.0, 5.0]], np.float32)
    seen = {}
    for algo in ("abs_max", "min_max", "avg"):
        observer = ALGORITHMS[algo](SIGNED)
        observer.update(batch)
        seen[algo] = observer.threshold()
    assert seen == {"abs_max": 5.0, "min_max": 5.0, "avg": 4.0}


def test_an_outlier_moves_abs_max_and_not_the_others() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((32, 20000)).astype(np.float32)
    values[3, 7] = 100.0
    found = {}
    for algo in ("abs_max", "mse", "KL", "hist", "avg"):
        observer = ALGORITHMS[algo](SIGNED)
        observer.update(values)
        found[algo] = observer.threshold()
    assert found["abs_max"] == 100
    assert max(found["mse"], found["KL"], found["hist"], found["avg"]) < 60


def test_all_zero_activations_have_a_threshold() -> None:
    for algo, make in ALGORITHMS.items():
        observer = make(SIGNED)
        observer.update(np.zeros((2, 3), np.float32))
        assert observer.threshold() == 0.0, algo


def test_top_k_counts_right_and_wrong_predictions() -> None:
    scores = np.array([[0.1, 0.9, 0, 0, 0, 0], [0.9, 0.1, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1]])
    labels = np.array([1, 1, 5])
    assert METRICS["top1"].counts([scores], labels).tolist() == [[1, 1], [0, 1], [0, 1]]
    assert METRICS["top5"].counts([scores], labels).tolist() == [[1, 1], [1, 1], [0, 1]]


def test_the_best_of_few_classes_say_nothing() -> None:
    """The right one of 5 classes is always among the best 5, and of 1 always the best."""
    for width, metric in ((5, "top5"), (3, "top5"), (1, "top1")):
        with pytest.raises(ValueError, match="in any case"):
            METRICS[metric].counts([np.zeros((4, width))], np.zeros(4, np.int64))
    for labels in (np.array([0, 1]), np.array([[0], [1]])):
        assert METRICS["top1"].counts([np.eye(2)], labels).tolist() == [[1, 1], [1, 1]]


def test_tags_and_words() -> None:
    """Two sentences; words by B (even) and I (odd) tags, 56 is outside."""
    gold = Ragged.of([np.array([0, 1, 4, 56]), np.array([2, 3, 3])])
    found = Ragged.of([np.array([[0], [1], [6], [56]]), np.array([[2], [3], [2]])])
    known = numbered_tags(57, "")
    sums = {name: metric_of(name, known).counts([found], gold).sum(0) for name in ("tags", *WORDS)}
    assert sums["tags"].tolist() == [5, 7]
    assert sums["f1"].tolist() == [1, 4, 3]
    assert sums["segmentation_f1"].tolist() == [2, 4, 3]
    assert float(METRICS["precision"].score(sums["precision"])) == pytest.approx(1 / 4)
    assert float(METRICS["recall"].score(sums["recall"])) == pytest.approx(1 / 3)
    assert float(METRICS["f1"].score(sums["f1"])) == pytest.approx(2 / 7)


def test_single_symbols_and_whole_sequences() -> None:
    """A sequence counts as a whole: one wrong symbol, or one too many, is wrong; the upstream script passes these."""
    labels = Ragged.of([np.array([3]), np.array([1, 2, 3]), np.array([1, 2, 3])])
    scores = np.eye(10)[[3, 5, 5]]
    decoded = Ragged.of([np.array([[3]]), np.array([[1], [2], [3]]), np.array([[1], [2], [4]])])
    assert METRICS["hx"].counts([scores, decoded], labels).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert METRICS["ctc"].counts([scores, decoded], labels).tolist() == [[1, 1], [1, 1], [0, 1]]
    nothing = Ragged.of([np.array([[-1]])])  # what ctc_align writes when there are only blanks
    assert METRICS["ctc"].counts([scores[:1], nothing], labels[:1]).tolist() == [[0, 1]]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_refuses_outputs_that_it_does_not_fit(name: str) -> None:
    """Emissions where tags are wanted, tags where scores are wanted."""
    emissions = Ragged.of([np.zeros((2, 5), np.float32)])
    labels = Ragged.of([np.zeros(2, np.int64)])
    with pytest.raises(ValueError, match="not s"):
        metric_of(name, numbered_tags(5, "")).counts([emissions, emissions], labels)


def test_scores_of_words_are_compared_over_sentences() -> None:
    random = np.random.default_rng(0)
    gold = random.integers(5, 20, 400)
    right = gold - random.integers(0, 3, 400)
    before = np.stack([right, gold, gold], 1)
    assert paired(before, before, "f1").p_value == 1.0
    worse = before - np.array([1, 0, 0]) * (random.random(400) < 0.2)[:, None]
    found = paired(before, worse, "f1")
    assert found.low > 0
    assert found.p_value < 0.01
    assert found.low < found.drop < found.high


def test_cosine_and_agreement() -> None:
    assert cosine(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [3.0, 0.0]])) == pytest.approx(0.5)
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


def hits(right: np.ndarray) -> np.ndarray:
    """Per-sample outcomes as counts."""
    return np.stack([right, np.ones(len(right))], 1).astype(np.int64)


def test_paired_matches_newcombes_published_example() -> None:
    """Newcombe 1998 (Stat. Med. 17:2635), table III, method 10: 36, 12, 2, 0 gives -0.2 shown as 0.0569 to 0.3404."""
    before = np.array([True] * 36 + [True] * 12 + [False] * 2)
    after = np.array([True] * 36 + [False] * 12 + [True] * 2)
    found = paired(hits(before), hits(after))
    assert (found.drop, found.lost, found.won) == (pytest.approx(0.2), 12, 2)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=2e-3), pytest.approx(0.3404, abs=2e-3))
    assert found.p_value == pytest.approx(2 * (1 + 14 + 91) / 2**14)


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_paired_intervals_hold_the_estimate_and_mirror(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    before, after = random.random(n) < 0.8, random.random(n) < 0.7
    one, other = paired(hits(before), hits(after)), paired(hits(after), hits(before))
    assert one.low <= one.drop <= one.high
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        before = random.random(500) < 0.9
        flips = random.random(500)
        after = np.where(before, flips > 0.03, flips < 0.1)
        found = paired(hits(before), hits(after))
        covered += found.low <= 0.9 * 0.03 - 0.1 * 0.1 <= found.high
    assert 0.92 <= covered / 400 <= 0.99


def outcome(n: int, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.ones(n, bool)
    before[:won] = False
    after = np.ones(n, bool)
    after[won : won + lost] = False
    return hits(before), hits(after)


def test_verdicts() -> None:
    assert verdict(paired(*outcome(50_000, 40, 40)), 0.005).result == "PASS"
    assert verdict(paired(*outcome(2000, 80, 2)), 0.005).result == "FAIL"
    unsure = verdict(paired(*outcome(2000, 12, 4)), 0.005)
    assert (unsure.result, unsure.on_point) == ("INCONCLUSIVE", True)
    assert unsure.needed is not None
    assert unsure.needed > 2000
    assert "pass on the point" in str(unsure)
    assert not verdict(paired(*outcome(2000, 14, 2)), 0.005).on_point


def test_sqnr() -> None:
    assert sqnr(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == np.inf
    assert sqnr(np.array([10.0]), np.array([9.0])) == pytest.approx(20.0)


def test_a_ratio_of_paired_rounds_ignores_a_drifting_machine() -> None:
    drift = np.linspace(1, 3, 40)
    ratio, low, high = ratio_interval(2 * drift, drift)
    assert (ratio, low, high) == (2.0, 2.0, 2.0)


def test_the_best_algorithm_is_the_one_whose_readers_err_least() -> None:
    """A channel with outliers that small weights make up for: least squares of the tensor itself keeps the outliers."""
    random = np.random.default_rng(0)
    values = random.standard_normal((4000, 16)).astype(np.float32)
    values[:, 0] *= 100
    sample = Sample(np.array([1e-8, *[1.0] * 15]))
    sample.update(values)
    candidates = {"wide": float(np.abs(values).max()), "narrow": 4.0}
    assert choose(candidates, [sample], SIGNED).algorithm == "narrow"
    important = Sample(np.ones(16))
    important.update(values)
    assert choose(candidates, [important], SIGNED).algorithm == "wide"


def test_outputs_of_unlike_shapes_are_no_pair() -> None:
    with pytest.raises(ModelError, match=r"shapes \[4, 3\] and \[4, 5\]"):
        sqnr(np.ones((4, 3)), np.ones((4, 5)))
