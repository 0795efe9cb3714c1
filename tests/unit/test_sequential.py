"""Looks at a comparison: their boundaries, and that all of them together decide wrongly in at most 5 of 100 runs."""

import numpy as np
import pytest
from scipy import stats

from quant.metrics import scores
from quant.metrics.scores import Verdict, paired, verdict
from quant.metrics.sequential import ALPHA, MOST, boundaries, looks

LIMIT = 0.01


def test_boundaries_spend_the_error_and_no_more() -> None:
    """Three looks by another way, the trivariate normal distribution: alpha t^3 is spent at each."""
    times = np.array([0.2, 0.5, 1.0])
    bounds = boundaries(times)
    covariance = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    for count in (1, 2, 3):
        stays = stats.multivariate_normal.cdf(
            bounds[:count], cov=covariance[:count, :count], lower_limit=-bounds[:count], abseps=1e-8, releps=1e-8
        )
        assert 1 - stays == pytest.approx(ALPHA * times[count - 1] ** 3, rel=2e-3)


def test_one_look_is_the_usual_interval() -> None:
    assert [(look.number, look.samples, round(look.confidence, 9)) for look in looks((700,))] == [(1, 700, 0.95)]


def test_fifty_looks_end_near_the_usual_interval() -> None:
    bounds = boundaries(np.arange(1, 51) / 50)
    assert (np.diff(bounds) < 0).all()
    assert bounds[0] == pytest.approx(5.07, abs=0.01)
    assert bounds[-1] == pytest.approx(2.17, abs=0.01)


def test_looks_are_at_most_fifty_and_the_last_is_at_the_end() -> None:
    many = looks((*range(1000, 137_001, 1000), 137_010))
    assert len(many) <= MOST
    assert many[-1].samples == 137_010
    assert many[-2].samples <= 0.99 * 137_010
    assert [look.number for look in many] == list(range(1, len(many) + 1))
    assert [look.samples for look in looks((1000, 2000, 2005))] == [1000, 2005]
    with pytest.raises(ValueError, match="must ascend"):
        boundaries(np.array([0.5, 0.5, 1.0]))


def test_a_brownian_motion_leaves_the_boundaries_in_5_of_100_runs_and_the_usual_interval_in_31() -> None:
    times = np.arange(1, 51) / 50
    steps = np.random.default_rng(0).standard_normal((40_000, 50)) * np.sqrt(1 / 50)
    errors = np.abs(steps.cumsum(1)) / np.sqrt(times)
    assert (errors > boundaries(times)).any(1).mean() == pytest.approx(ALPHA, abs=0.004)
    assert (errors > stats.norm.isf(ALPHA / 2)).any(1).mean() > 0.25


def first_verdict(before: np.ndarray, after: np.ndarray, at: list[tuple[int, float]], metric: str) -> Verdict:
    """The verdict of the first look that decides, or of the last."""
    found = Verdict("INCONCLUSIVE", True)
    for samples, confidence in at:
        found = verdict(paired(before[:samples], after[:samples], metric, confidence), LIMIT)
        if found.result != "INCONCLUSIVE":
            break
    return found


def shares(random: np.random.Generator, count: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two runs, right in 80% of the samples before: 2% + drop lost, 2% won."""
    kind = random.choice(4, count, p=[0.78 - drop, 0.02 + drop, 0.02, 0.18])
    ones = np.ones(count)
    return np.stack([kind <= 1, ones], 1).astype(np.int64), np.stack([kind % 2 == 0, ones], 1).astype(np.int64)


def words(random: np.random.Generator, count: int, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 10 words a sentence, as many found as there are, of which 80% right before; F1 drops by `drop`."""
    right = random.binomial(8, 0.9, count)
    moved = random.choice([-1, 0, 1], count, p=[0.15 + 5 * drop, 0.7, 0.15 - 5 * drop])
    size = np.full(count, 10)
    return np.stack([right, size, size], 1), np.stack([right + moved, size, size], 1)


def wrong(outcomes: object, metric: str, trials: int, ends: list[int], usual: bool) -> float:
    """How often a drop that lies on the threshold is decided, by the looks or by the usual interval at each of them."""
    random = np.random.default_rng(5)
    at = [(look.samples, 0.95 if usual else look.confidence) for look in looks(tuple(ends))]
    decided = [first_verdict(*outcomes(random, ends[-1], LIMIT), at, metric) for _ in range(trials)]
    return sum(found.result != "INCONCLUSIVE" for found in decided) / trials


@pytest.mark.parametrize(
    ("outcomes", "metric", "trials", "ends"),
    [(shares, "top1", 150, [1000, 2000, 3000, 4000, 5000]), (words, "f1", 150, [60, 120, 180, 240, 300])],
)
def test_a_drop_on_the_threshold_is_decided_in_5_of_100_runs(
    outcomes: object, metric: str, trials: int, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three standard errors above 5% are allowed, and the usual interval at every look is beyond that."""
    monkeypatch.setattr(scores, "_RESAMPLES", 400)  # a tenth, for the time it takes
    allowed = ALPHA + 3 * np.sqrt(ALPHA * (1 - ALPHA) / trials)
    assert wrong(outcomes, metric, trials, ends, usual=False) <= allowed
    assert wrong(outcomes, metric, trials, ends, usual=True) > allowed


def test_clear_cases_stop_early_on_the_right_side() -> None:
    random = np.random.default_rng(2)
    ends = list(range(1000, 20_001, 1000))
    at = [(look.samples, look.confidence) for look in looks(tuple(ends))]
    assert first_verdict(*shares(random, 20_000, 0.0), at[:10], "top1").result == "PASS"
    assert first_verdict(*shares(random, 20_000, 0.05), at[:4], "top1").result == "FAIL"


def test_intervals_grow_with_their_confidence() -> None:
    for outcomes, metric in ((shares, "top1"), (words, "f1")):
        before, after = outcomes(np.random.default_rng(3), 400, 0.01)
        found = [paired(before, after, metric, confidence) for confidence in (0.8, 0.95, 0.994, 0.999, 0.9999996)]
        reaches = [drop.high - drop.low for drop in found]
        assert reaches == sorted(reaches) and len(set(reaches)) == 5, metric
        assert [drop.confidence for drop in found] == [0.8, 0.95, 0.994, 0.999, 0.9999996]
        assert len({drop.p_value for drop in found}) == 1
