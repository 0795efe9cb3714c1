"""quant.search.for_accuracy: the search over a bench of which everything is known, worst samples, and what is
chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.datasets.columns import Ragged
from quant.metrics.scores import METRICS, Paired
from quant.search.for_accuracy import (
    Guess,
    Kernel,
    Move,
    Point,
    Setup,
    chosen_point,
    predicted_drop,
    sample_errors,
    search,
    worst_samples,
    worth,
)

TARGET = 0.003
PLAIN = Setup("abs_max")


def point(setup: Setup, drop: float) -> Point:
    return Point(setup, 0.9 - drop, Paired(1000, 0, 0, drop, drop - 0.01, drop + 0.01, 1.0))


class Known:
    """Ops and algorithms that cost an accuracy which adds up; `wrong`: guesses that are too good by so much."""

    def __init__(
        self,
        drops: Mapping[int, float],
        algorithms: Mapping[str, float],
        *,
        costs: Mapping[int, float] | None = None,
        tensors: Mapping[tuple[str, str], float] | None = None,
        trials: int = 1000,
        failing: Sequence[Setup] = (),
        wrong: float = 0.0,
    ) -> None:
        self.drops, self.algorithms, self.costs = drops, algorithms, costs or {}
        self.own, self.left, self.failing, self.wrong = tensors or {}, trials, {s.key for s in failing}, wrong
        self.guessed: list[str] = []
        self.confirmed: list[str] = []
        self.focused: list[str] = []

    def drop(self, setup: Setup) -> float:
        ops = sum(drop for number, drop in self.drops.items() if number not in setup.op_ids)
        return ops + self.algorithms[setup.algo] - sum(self.own.get(pair, 0.0) for pair in setup.tensors)

    def confirm(self, setup: Setup) -> Point | None:
        self.confirmed.append(setup.key)
        return None if setup.key in self.failing else point(setup, self.drop(setup))

    def focus(self, point: Point) -> None:
        self.focused.append(point.setup.key)
        if len(self.focused) > 1:
            self.wrong = 0.0

    def guess(self, setup: Setup) -> Guess | None:
        self.guessed.append(setup.key)
        self.left -= 1
        if setup.key in self.failing:
            return None
        return Guess(max(self.drop(setup), 0.0), self.drop(setup) - self.wrong)

    def kernels(self) -> Sequence[Kernel]:
        return [Kernel((n,), "conv2d", f"t{n}", self.costs.get(n, 0.0), (f"x{n}",), {}) for n in self.drops]

    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        return {name: {"abs_max": 2.0, algo: 1.0} for name, algo in self.own}

    def searching(self) -> bool:
        return self.left > 0

    def phase(self, what: str, trials: int) -> None:
        assert what and trials >= 0


def found(bench: Known, algorithms: Sequence[str] = ()) -> Point:
    """What is chosen when nothing was timed."""
    return chosen_point(search(bench, PLAIN, TARGET, algorithms), {}, TARGET)


def test_a_setup_that_meets_the_target_leaves_no_op_in_fp32() -> None:
    bench = Known({0: 0.001, 1: 0.001}, {"abs_max": 0.0})
    assert found(bench).setup == PLAIN
    assert bench.confirmed == [PLAIN.key]


def test_another_algorithm_that_meets_it_leaves_none_either() -> None:
    bench = Known({0: 0.001}, {"abs_max": 0.02, "KL": 0.0, "mse": 0.001})
    assert found(bench, ("abs_max", "mse", "KL")).setup == Setup("KL")
    assert bench.confirmed == [PLAIN.key, "KL []"]


def test_the_ops_that_lose_most_are_kept_in_fp32_and_no_others() -> None:
    bench = Known({0: 0.0005, 1: 0.02, 2: 0.0005, 3: 0.03, 4: 0.01, 5: 0.0005}, {"abs_max": 0.0})
    assert sorted(found(bench).setup.op_ids) == [1, 3, 4]


def test_what_costs_less_time_comes_first() -> None:
    bench = Known({0: 0.02, 1: 0.021}, {"abs_max": -0.019}, costs={1: 0.5})
    assert found(bench).setup.op_ids == (0,)


def test_a_tensor_s_own_algorithm_is_taken_when_it_is_enough() -> None:
    bench = Known({0: 0.02, 1: 0.02, 2: 0.005}, {"abs_max": -0.03}, tensors={("x0", "KL"): 0.0195})
    assert found(bench).setup == Setup("abs_max", (), (("x0", "KL"),))


def test_an_op_that_became_needless_is_taken_back() -> None:
    class Overlapping(Known):
        """0 and 1 together, or 2 alone, do it; 2 is measured as worth less than 0 at first."""

        def drop(self, setup: Setup) -> float:
            left = set(setup.op_ids)
            return 0.03 - 0.012 * (0 in left) - (0.0275 if {1, 2} <= left else 0.008 * bool(left & {1, 2}))

    bench = Overlapping({0: 0.0, 1: 0.0, 2: 0.0}, {"abs_max": 0.0})
    assert set(found(bench).setup.op_ids) == {1, 2}


def test_a_guess_that_the_whole_set_does_not_confirm_moves_the_focus_and_the_search_goes_on() -> None:
    bench = Known(dict.fromkeys(range(5), 0.01), {"abs_max": 0.0}, wrong=0.015)
    assert len(found(bench).setup.op_ids) == 5
    first, second = bench.focused
    assert first == PLAIN.key and second != first
    assert bench.confirmed[1] == second, "the guess was good enough, the whole set wasn't"


def test_failed_trials_are_passed_over() -> None:
    bench = Known(
        {0: 0.03, 1: 0.02, 2: 0.02}, {"abs_max": -0.02, "KL": 0.0}, failing=[Setup("abs_max", (0,)), Setup("KL")]
    )
    assert found(bench, ("KL",)).meets(TARGET)
    assert search(Known({0: 0.1}, {"abs_max": 0.0}, failing=[PLAIN]), PLAIN, TARGET, ()) == []


@pytest.mark.parametrize("trials", range(12))
def test_out_of_time_the_best_so_far_is_given(trials: int) -> None:
    bench = Known(dict.fromkeys(range(6), 0.01), {"abs_max": 0.0}, trials=trials)
    best = found(bench)
    assert best.drop.drop <= 0.06 + 1e-9
    assert len(bench.guessed) <= trials + 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=8))
def test_with_losses_that_add_up_it_is_the_smallest_set(losses: list[float]) -> None:
    bench = Known(dict(enumerate(losses)), {"abs_max": 0.0})
    ordered = sorted(losses)
    needed = next(n for n in range(len(losses) + 1) if sum(ordered[: len(losses) - n]) <= TARGET + 1e-12)
    best = found(bench)
    assert best.meets(TARGET)
    assert len(best.setup.op_ids) == needed


def test_a_move_is_worth_less_the_more_time_it_costs() -> None:
    now, then = Guess(1.0, 0.1), Guess(0.5, 0.05)
    quick, slow = Move((1,), cost=0.0), Move((1,), cost=0.3)
    assert worth(now, then, quick) == pytest.approx(4 * worth(now, then, slow))


# --- worst samples


def test_the_worst_samples_are_the_lost_ones_and_then_the_largest_errors() -> None:
    before = np.array([[1, 1]] * 6)
    after = np.array([[1, 1], [0, 1], [1, 1], [0, 1], [1, 1], [1, 1]])
    errors = np.array([0.1, 0.2, 0.9, 0.3, 0.5, 0.0])
    focus = worst_samples(METRICS["top1"], before, after, errors, most=4)
    assert focus.samples.tolist() == [1, 3, 2, 4]
    assert (focus.lost, focus.of_lost) == (2, 2)


def test_the_prediction_of_the_same_model_is_its_drop_also_with_more_lost_than_fit() -> None:
    random = np.random.default_rng(0)
    before = np.stack([random.random(2000) < 0.9, np.ones(2000)], 1).astype(np.int64)
    after = np.stack([random.random(2000) < 0.5, np.ones(2000)], 1).astype(np.int64)
    focus = worst_samples(METRICS["top1"], before, after, random.random(2000))
    assert focus.of_lost > focus.lost == 200
    drop = before[:, 0].mean() - after[:, 0].mean()
    assert predicted_drop(METRICS["top1"], before, after, focus, after[focus.samples]) == pytest.approx(drop)
    mended = after[focus.samples].copy()
    mended[: focus.lost : 2] = 1  # half of those seen, so half of all
    half = predicted_drop(METRICS["top1"], before, after, focus, mended)
    assert half == pytest.approx(drop - focus.of_lost / 2 / 2000)


def test_errors_are_each_sample_s_own() -> None:
    reference, other = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)
    assert sample_errors([reference], [other]).tolist() == [0.0, 4.0]
    tags, changed = Ragged(np.array([[1], [2], [3]]), np.array([0, 1, 3])), np.array([[1], [5], [6]])
    assert sample_errors([tags], [replace(tags, values=changed)]).tolist() == [0.0, 2.0]


# --- what is chosen


def test_of_those_that_meet_the_target_the_fastest_is_chosen_and_of_equals_the_fewest_ops() -> None:
    points = [
        point(PLAIN, 0.02),
        point(Setup("KL", (1,)), 0.001),
        point(Setup("KL", (1, 2)), 0.0),
        point(Setup("KL", (4,)), 0.002),
    ]
    seconds = {points[0].setup.key: [1.0] * 9, points[1].setup.key: [1.5] * 9, points[2].setup.key: [1.2] * 9}
    assert chosen_point(points, {**seconds, points[3].setup.key: [1.205] * 9}, TARGET) is points[3]
    assert chosen_point(points, {**seconds, points[3].setup.key: [1.6] * 9}, TARGET) is points[2]
    assert chosen_point(points[:1], seconds, TARGET) is points[0], "none meets it: the smallest drop"
