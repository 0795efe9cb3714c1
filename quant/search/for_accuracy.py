"""Which ops stay FP32, and which calibration algorithm is used, so that INT8 loses no more than it may: the search.

Pure functions over a `Bench`, which measures. Two measures, because they cost differently:
- a guess: an INT8 model run on the worst samples alone (`worst_samples`), its error there, and from what it gets right
  there the drop that the whole set would show (`predicted_drop`);
- a point: an INT8 model run on the whole set. Only points are chosen among.

The search: other algorithms for all tensors first, since they cost no time. Then single moves, an op left in FP32 or a
tensor with another algorithm, ranked by the error that each takes away over what it costs (`worth`); the best is kept
and the best of the others are measured again on top of it, until the guess meets the target and a point confirms it. A
point that doesn't confirm shows which samples are the worst now. Ops are measured in the order of the error that
calibration saw rounding make in them, and one that takes half of the model's error away ends the round, but for other
algorithms of what it reads. At the end each op is tried in INT8 again: what was kept early may have become needless.

Moves are measured by leaving one op out of INT8 and not by making it the only one: the second finds what an op does
alone, but not what is left to gain behind the ops that were found already.
Not tried: ops in FP32 in exchange for one another, whose number grows with the square of the ops.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quant.datasets.columns import Column, Ragged, values_of
from quant.metrics.scores import Metric, Paired, ratio_interval
from quant.quantization.observers import ALGORITHMS

__all__ = [
    "OFFERED",
    "Bench",
    "Focus",
    "Guess",
    "Kernel",
    "Move",
    "Point",
    "Setup",
    "chosen_point",
    "predicted_drop",
    "sample_errors",
    "search",
    "worst_samples",
    "worth",
]

OFFERED = tuple(name for name in ALGORITHMS if name != "min_max")  # which is abs_max on symmetric grids
_WORST = 300  # samples that guesses are made on
_LOST = 200  # of them, at most, that INT8 loses; the others have the largest error
_AGAIN = 8  # moves that are measured again when another was kept
_AN_OP = 0.1  # what leaving an op in FP32 counts, beside the share of the model's time that it costs
_A_TENSOR = (
    0.03  # what another algorithm for a tensor counts: it costs no time, but the model has no simple recipe then
)
_LEAST_GAIN = 0.02  # share of the error that a move must take away
_CLEAR = 0.5  # a move that takes this share of the error away is kept before all others are measured
_UNEQUAL = 0.02  # by which one model must be faster than another for that to decide between them


@dataclass(frozen=True)
class Setup:
    """What decides an INT8 model: the algorithm, ops in FP32 in the order they were found, tensors' own algorithms."""

    algo: str
    op_ids: tuple[int, ...] = ()
    tensors: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """A name for what it makes: the order of the ops doesn't matter."""
        tensors = ",".join(f"{name}={algo}" for name, algo in sorted(self.tensors))
        return f"{self.algo} [{','.join(map(str, sorted(self.op_ids)))}] {tensors}".rstrip()


@dataclass(frozen=True)
class Move:
    """A change of a setup: more ops in FP32, or another algorithm for a tensor. `cost`: a share of the model's time."""

    op_ids: tuple[int, ...] = ()
    tensor: tuple[str, str] | None = None
    cost: float = 0.0

    def on(self, setup: Setup) -> Setup:
        if self.tensor is None:
            new = tuple(number for number in self.op_ids if number not in setup.op_ids)
            return replace(setup, op_ids=(*setup.op_ids, *new))
        kept = tuple(pair for pair in setup.tensors if pair[0] != self.tensor[0])
        return replace(setup, tensors=(*kept, self.tensor))


@dataclass(frozen=True)
class Kernel:
    """What one INT8 kernel takes over: the ids of its ops; the type and output of the weighted one.

    `cost`: what it takes longer in FP32, as a share of the INT8 model's time, 0 where that isn't known or it is faster.
    `tensors`: those it multiplies. `errors`: algorithm -> error of its output that rounding them makes, as a share of
    the output's energy, where known.
    """

    op_ids: tuple[int, ...]
    op_type: str
    output: str
    cost: float
    tensors: tuple[str, ...]
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Guess:
    """A model on the worst samples: its error there, and the drop that follows for the whole set."""

    error: float
    drop: float


@dataclass(frozen=True)
class Point:
    """A model on the whole set. `number`: of the trial that found it."""

    setup: Setup
    score: float
    drop: Paired
    number: int = 0

    def meets(self, max_drop: float) -> bool:
        """Whether the drop is within the limit, by its estimate."""
        return self.drop.drop <= max_drop + 1e-12


class Bench(Protocol):
    """What measures setups. None: that one can't be measured, and the search goes on."""

    def confirm(self, setup: Setup) -> Point | None: ...

    def focus(self, point: Point) -> None:
        """The worst samples are those of this point from now on."""

    def guess(self, setup: Setup) -> Guess | None: ...

    def kernels(self) -> Sequence[Kernel]: ...

    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        """Tensor -> algorithm -> its threshold."""

    def searching(self) -> bool:
        """Whether there is time left for another trial."""

    def phase(self, what: str, trials: int) -> None:
        """Told what comes next, and of how many guesses at most."""


# --- the worst samples


@dataclass(frozen=True, eq=False)
class Focus:
    """The samples that guesses are made on, int64 [n]; the first `lost` are some of all `of_lost` that were lost."""

    samples: NDArray[np.int64]
    lost: int
    of_lost: int


def sample_errors(reference: Sequence[Column], other: Sequence[Column]) -> NDArray[np.float64]:
    """Each sample's error: the squared difference of all scores over the mean sample's energy; [N].

    Of a model that gives out decisions only: how many of a sample's differ.
    """
    pairs = [pair for pair in zip(reference, other, strict=True) if values_of(pair[0]).dtype.kind == "f"]
    if pairs:
        noise = [_summed((values_of(o).astype(np.float64) - values_of(r)) ** 2, r) for r, o in pairs]
        energy = [float((values_of(r).astype(np.float64) ** 2).sum()) / len(r) for r, _ in pairs]
        return np.asarray(sum(part / max(signal, 1e-300) for part, signal in zip(noise, energy, strict=True)))
    return np.asarray(sum(_summed(values_of(r) != values_of(o), r) for r, o in zip(reference, other, strict=True)))


def _summed(values: NDArray[Any], column: Column) -> NDArray[np.float64]:
    """The sum of each sample's values."""
    rows = values.reshape(len(values), -1).sum(1, dtype=np.float64)
    if not isinstance(column, Ragged):
        return np.asarray(rows)
    owner = np.repeat(np.arange(len(column)), column.lengths)
    return np.asarray(np.bincount(owner, rows, len(column)), np.float64)


def worst_samples(
    metric: Metric, before: NDArray[Any], after: NDArray[Any], errors: NDArray[np.float64], most: int = _WORST
) -> Focus:
    """The samples that score less than before, and those with the largest error of the others.

    `before`, `after`: what each sample adds to the metric, [N, k]. Of more lost samples than fit, an even draw, so that
    they stand for all of them.
    """
    lost = np.flatnonzero(metric.score(before) > metric.score(after))
    taken = lost
    limit = min(_LOST, most)
    if lost.size > limit:
        taken = np.sort(np.random.default_rng(0).choice(lost, limit, replace=False))
    order = np.argsort(-errors, kind="stable")
    others = order[~np.isin(order, lost)]
    return Focus(np.concatenate([taken, others[: most - taken.size]]).astype(np.int64), int(taken.size), int(lost.size))


def predicted_drop(
    metric: Metric, before: NDArray[Any], after: NDArray[Any], focus: Focus, counts: NDArray[Any]
) -> float:
    """The drop of the whole set, by what another model adds on the worst samples, `counts` [n, k].

    Lost samples that aren't among them are taken to fare as those that are; all others as they did (`after`).
    """
    lost, rest = counts[: focus.lost], counts[focus.lost :]
    everywhere = np.ones(len(after), bool)
    everywhere[focus.samples] = False
    everywhere[np.flatnonzero(metric.score(before) > metric.score(after))] = False
    scale = focus.of_lost / focus.lost if focus.lost else 0.0
    sums = after[everywhere].sum(0) + rest.sum(0) + lost.sum(0) * scale
    return float(metric.score(before.sum(0)) - metric.score(sums))


# --- the search


def worth(now: Guess, then: Guess, move: Move) -> float:
    """The error that a move takes away, over what it counts."""
    return (now.error - then.error) / (_A_TENSOR if move.tensor else _AN_OP + move.cost)


@dataclass
class _Search:
    bench: Bench
    max_drop: float
    points: list[Point] = field(default_factory=list)

    def confirm(self, setup: Setup) -> Point | None:
        known = [point for point in self.points if point.setup.key == setup.key]
        if known:
            return known[0]
        point = self.bench.confirm(setup)
        if point is not None:
            self.points.append(point)
        return point

    def ranked(self, setup: Setup, now: Guess, moves: Sequence[Move]) -> list[tuple[Move, Guess]]:
        """The moves that take error away, the best first."""
        found = []
        for move in moves:
            if not self.bench.searching():
                break
            then = self.bench.guess(move.on(setup))
            if then is not None and now.error - then.error > _LEAST_GAIN * now.error:
                found.append((move, then))
                if now.error - then.error > _CLEAR * now.error:
                    break
        return sorted(found, key=lambda pair: -worth(now, pair[1], pair[0]))

    def other_algorithms(self, start: Point, algorithms: Sequence[str]) -> Point:
        """The start, or the point of a better algorithm for all tensors."""
        now = self.bench.guess(start.setup)
        self.bench.phase("calibration algorithms", len(algorithms))
        best, guess = start.setup, now
        for algo in algorithms:
            setup = replace(start.setup, algo=algo)
            then = self.bench.guess(setup) if self.bench.searching() else None
            if then and (guess is None or (then.drop, then.error) < (guess.drop, guess.error)):
                best, guess = setup, then
        if best == start.setup:
            return start
        other = self.confirm(best)
        return other if other and other.drop.drop < start.drop.drop else start

    def all_moves(self, setup: Setup, now: Guess) -> list[tuple[Move, Guess]]:
        """Every op, then other algorithms for what the best of them read."""
        kernels = [kernel for kernel in self.bench.kernels() if not set(kernel.op_ids) <= set(setup.op_ids)]
        kernels.sort(key=lambda kernel: -kernel.errors.get(setup.algo, 0.0))
        self.bench.phase("ops", len(kernels))
        by_move = {Move(kernel.op_ids, cost=kernel.cost): kernel for kernel in kernels}
        found = self.ranked(setup, now, list(by_move))
        clear = bool(found) and now.error - found[0][1].error > _CLEAR * now.error
        thresholds = self.bench.thresholds()
        best = found[: 1 if clear else _AGAIN]
        tensors = dict.fromkeys(name for move, _ in best for name in by_move[move].tensors)
        moves = [move for name in tensors for move in _algorithms(name, setup, thresholds.get(name, {}))]
        self.bench.phase("tensors", len(moves))
        return sorted([*found, *self.ranked(setup, now, moves)], key=lambda pair: -worth(now, pair[1], pair[0]))

    def add(self, start: Point) -> Point | None:
        """Keep moves until a point meets the target; None when there are none left, or no time."""
        setup, now = start.setup, self.bench.guess(start.setup)
        found: list[tuple[Move, Guess]] = []
        while now is not None and self.bench.searching():
            found = found or self.all_moves(setup, now)
            if not found:
                break
            (move, now), others = found[0], [move for move, _ in found[1 : _AGAIN + 1]]
            setup, found = move.on(setup), []
            if now.drop <= self.max_drop:
                point = self.confirm(setup)
                if point is not None and point.meets(self.max_drop):
                    return point
                if point is not None:
                    self.bench.focus(point)
                    now = self.bench.guess(setup)
                continue
            self.bench.phase("the best again", len(others))
            found = self.ranked(setup, now, [move for move in others if move.on(setup).key != setup.key])
        point = self.confirm(setup)
        return point if point and point.meets(self.max_drop) else None

    def take_back(self, point: Point) -> None:
        """Try every op in INT8 again, the last one kept first."""
        groups = [set(kernel.op_ids) for kernel in self.bench.kernels()]
        left = [group & set(point.setup.op_ids) for group in groups]
        place = {number: order for order, number in enumerate(point.setup.op_ids)}
        kept = sorted((group for group in left if group), key=lambda group: -max(place[number] for number in group))
        self.bench.phase("ops in INT8 again", len(kept))
        for group in kept if len(kept) > 1 else ():
            smaller = replace(point.setup, op_ids=tuple(n for n in point.setup.op_ids if n not in group))
            guess = self.bench.guess(smaller) if self.bench.searching() else None
            if guess is not None and guess.drop <= self.max_drop:
                again = self.confirm(smaller)
                if again is not None and again.meets(self.max_drop):
                    point = again


def _algorithms(name: str, setup: Setup, thresholds: Mapping[str, float]) -> list[Move]:
    """The other algorithms for a tensor that clip it elsewhere, one for each threshold."""
    used = thresholds.get(dict(setup.tensors).get(name, setup.algo))
    seen = [] if used is None else [used]
    moves = []
    for algo, threshold in thresholds.items():
        if all(abs(threshold - other) > _UNEQUAL * other for other in seen):
            seen.append(threshold)
            moves.append(Move(tensor=(name, algo)))
    return moves


def search(bench: Bench, given: Setup, max_drop: float, algorithms: Collection[str]) -> list[Point]:
    """All points that were found, the given setup's first; `algorithms`: others that may be used for all tensors.

    With the target met by the given setup, or by another algorithm, no op is left in FP32.
    """
    found = _Search(bench, max_drop)
    start = found.confirm(given)
    if start is None:
        return []
    bench.focus(start)
    best = found.other_algorithms(start, [algo for algo in algorithms if algo != given.algo])
    if best.meets(max_drop) or not bench.searching():
        return found.points
    if best is not start:
        bench.focus(best)
    met = found.add(best)
    if met is not None:
        found.take_back(met)
    return found.points


def chosen_point(points: Sequence[Point], seconds: Mapping[str, Sequence[float]], max_drop: float) -> Point:
    """Of those that meet the target the fastest; without one, that with the smallest drop.

    `seconds`: key of a setup -> rounds that alternated. Models that time doesn't tell apart (the ratio's interval holds
    1, or the ratio is within 2%) are told apart by the number of ops in FP32, then of tensors' own algorithms, then by
    the drop. A point that wasn't timed is only chosen when none that meets the target was.
    """
    met = [point for point in points if point.meets(max_drop)]
    if not met:
        return min(points, key=lambda point: (point.drop.drop, len(point.setup.op_ids)))
    timed = {point.setup.key: np.array(seconds[point.setup.key]) for point in met if point.setup.key in seconds}
    if timed:
        fastest = min(timed.values(), key=lambda rounds: float(np.median(rounds)))
        met = [point for point in met if point.setup.key in timed and _alike(timed[point.setup.key], fastest)]
    return min(met, key=lambda point: (len(point.setup.op_ids), len(point.setup.tensors), point.drop.drop))


def _alike(rounds: NDArray[np.float64], fastest: NDArray[np.float64]) -> bool:
    ratio, low, _ = ratio_interval(rounds, fastest)
    return low <= 1 or ratio <= 1 + _UNEQUAL
