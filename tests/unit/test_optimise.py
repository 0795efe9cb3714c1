"""What is left in FP32 because INT8 is slower there: the search on planted costs, the graphs, one whole run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.errors import ConversionError
from quant.ir.fusion import numbered
from quant.ir.graph import Graph, run_passes, save_dir
from quant.ir.int8_regions import int8_op
from quant.ir.passes import PLACE, lower_quantizers
from quant.metrics.scores import sqnr
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import convert
from quant.reports import decisions
from quant.runtime.predictor import Predictor, Settings
from quant.search import for_speed
from quant.search.for_speed import Candidate, Limits, left_float, search, units
from quant.search.op_costs import Costs, op_times
from tests.nets import NATIVE, NETS, Net, data, inception_net, inverted_net, residual_net, run

Race = Callable[[frozenset[int], frozenset[int]], tuple[float, float, float]]


def ticking(step: float = 0.0) -> Limits:
    """A budget of 100 s, of which each look at the clock takes `step`."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return Limits(100.0, clock, 25.0)


def costly(ms: dict[int, float], noise: float = 0.002, whole: float = 10.0) -> Race:
    """A model of `whole` ms, and what each op adds to that when it is left in FP32 (negative: it gets faster)."""

    def race(slow: frozenset[int], fast: frozenset[int]) -> tuple[float, float, float]:
        before, after = (whole + sum(ms.get(number, 0.0) for number in ids) for ids in (slow, fast))
        return before / after, before / after - noise, before / after + noise

    return race


def all_of(*ids: int) -> Callable[[frozenset[int]], Sequence[Candidate]]:
    """Candidates of one op each, whatever they cost."""
    return lambda kept: [Candidate(frozenset({number}), 0.1) for number in ids if number not in kept]


def test_all_losers_are_found_in_one_trial() -> None:
    kept, trials = search(all_of(1, 2, 3), costly({1: -0.3, 2: -0.3, 3: -0.3}), ticking())
    assert kept == {1, 2, 3}
    assert [(trial.op_ids, trial.kept) for trial in trials] == [((1, 2, 3), True)]
    assert trials[0].gain_ms == pytest.approx(0.3)


def test_one_that_shouldnt_be_among_them_is_found_out() -> None:
    kept, trials = search(all_of(1, 2, 3, 4), costly({1: -0.3, 2: -0.3, 3: 5.0, 4: -0.3}), ticking())
    assert kept == {1, 2, 4}
    assert (3,) in [trial.op_ids for trial in trials if not trial.kept]


def test_losses_too_small_to_be_measured_are_found_together() -> None:
    losses = dict.fromkeys(range(20), -0.01)
    assert search(all_of(*losses), costly(losses, noise=0.005), ticking())[0] == set(losses)
    assert search(all_of(7), costly(losses, noise=0.005), ticking())[0] == set()


def test_nothing_is_kept_that_isnt_faster_by_more_than_noise() -> None:
    kept, trials = search(all_of(1, 2), costly({1: -0.01, 2: 0.5}), ticking())
    assert kept == set()
    assert {trial.op_ids for trial in trials} == {(1, 2), (1,), (2,)}


def test_what_was_kept_opens_up_more() -> None:
    """Op 2 is worth trying once op 1, its neighbour, is left in FP32."""

    def propose(kept: frozenset[int]) -> list[Candidate]:
        return [Candidate(frozenset({1}), 0.2)] if 1 not in kept else [Candidate(frozenset({2}), 0.1)] * (2 not in kept)

    kept, trials = search(propose, costly({1: -0.5, 2: -0.5}), ticking())
    assert kept == {1, 2}
    assert [trial.op_ids for trial in trials] == [(1,), (2,)]


def test_the_budget_ends_the_search() -> None:
    """Every candidate would win, one at a time; the clock allows for few."""

    def propose(kept: frozenset[int]) -> list[Candidate]:
        return [Candidate(frozenset({len(kept)}), 0.1)]

    kept, trials = search(propose, costly(dict.fromkeys(range(50), -0.1)), ticking(step=10.0))
    assert 1 <= len(trials) <= 5
    assert kept == set(range(len(trials)))


# --- graphs


def simulated(graph: Graph) -> Graph:
    return run_passes(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")), PLACE)


def int8_ids(placed: Graph) -> set[int]:
    return set(numbered(placed).values()) - {kept.op_id for kept in convert(placed)[1].kept}


def test_the_graph_that_is_placed_stays_as_it_is_when_it_is_converted() -> None:
    """Op ids mean the same in both."""
    for make in NETS.values():
        placed = simulated(make())
        again = run_passes(placed, PLACE)
        assert [op.type for op in again.ops] == [op.type for op in placed.ops]


@pytest.mark.parametrize("name", NETS)
def test_int8_equals_its_simulation_whatever_is_left_in_float(name: str, tmp_path: Path) -> None:
    """On the executor that INT8 models get, against the simulation run natively: Paddle fuses a residual and
    a leaky ReLU that lacks its `alpha`, as in `swish`, with another slope (28 dB), in FP32 and simulations too."""
    placed = simulated(NETS[name]())
    ids, chains = numbered(placed), units(placed, int8_ids(placed))
    arrays = data(placed, 1, 16, seed=2)[0]
    assert chains
    for chain in chains:
        graph = left_float(placed, [chain])
        skipped = {ids[op] for op in chain.ops if op in ids}
        try:
            int8, coverage = convert(graph, op_ids_to_skip=skipped)
        except ConversionError:
            assert len(chains) == 1
            continue
        assert skipped <= {kept.op_id for kept in coverage.kept}
        [expected] = run(lower_quantizers(graph), arrays, tmp_path, NATIVE)
        place = tmp_path / f"int8-{min(skipped)}"
        place.mkdir()
        save_dir(int8, place)
        with Predictor(place, Settings("int8")) as predictor:
            [found] = predictor(arrays).values()
        assert sqnr(expected, found) > 30


def quantizers(graph: Graph) -> int:
    return sum(op.type == "fake_quant" for op in graph.ops)


def test_what_only_a_skipped_op_reads_is_not_rounded() -> None:
    placed = simulated(inverted_net())
    chains = units(placed, int8_ids(placed))
    first, deep = chains[0], next(chain for chain in chains if chain.op.type == "depthwise_conv2d")
    assert quantizers(left_float(placed, [deep])) == quantizers(placed) - 1
    assert first.data not in {name for op in left_float(placed, [first]).ops for name in op.writes}
    assert left_float(placed, []) is placed


def test_what_another_op_reads_stays_rounded() -> None:
    """The stem's output goes into a block and its shortcut: as long as one of them is INT8."""
    placed = simulated(residual_net())
    readers = placed.readers()
    shared = next(
        chain for chain in units(placed, int8_ids(placed)) if len(readers[chain.data]) > 1 and chain.data != "x"
    )
    both = [chain for chain in units(placed, int8_ids(placed)) if chain.data == shared.data]
    assert quantizers(left_float(placed, both[:1])) == quantizers(placed)
    assert quantizers(left_float(placed, both)) < quantizers(placed)


def test_quantizers_above_a_pool_or_a_concat_go_with_the_op_behind_it() -> None:
    placed = simulated(inception_net())
    readers = placed.readers()
    behind = [
        chain
        for chain in units(placed, int8_ids(placed))
        if any(op.type == "concat" and op.output("Out") == chain.data for op in placed.ops)
    ]
    [chain] = behind
    [joined] = [op for op in placed.ops if op.output("Out") == chain.data]
    above = [op for op in placed.ops if op.type == "fake_quant" and op.output("Out") in joined.inputs["X"]]
    assert len(above) == 2 and all(len(readers[op.output("Out")]) == 1 for op in above)
    assert quantizers(left_float(placed, [chain])) == quantizers(placed) - 2


def test_a_prediction_adds_up_what_was_measured() -> None:
    """1 ms for each INT8 op, 2 for each op in FP32, 0.1 for each quantize or dequantize op."""
    placed = simulated(inverted_net())
    plain = convert(placed)[0]
    kinds = {"quantize": 0.1, "dequantize": 0.1}
    int8_ms = {op.writes[0]: kinds.get(op.type, 1.0) for op in plain.ops if op.type in kinds or int8_op(op)}
    chains = units(placed, int8_ids(placed))
    costs = Costs.of(placed.vars, plain, int8_ms, {chain.out: 2.0 for chain in chains})
    assert all(costs.of_chain(chain) == (1.0, 2.0) for chain in chains)
    ids = numbered(placed)
    left = convert(left_float(placed, chains[1:2]), op_ids_to_skip={ids[chains[1].op]})[0]

    def borders(graph: Graph) -> int:
        return sum(op.type in kinds for op in graph.ops)

    grown = 1.0 + 0.1 * (borders(left) - borders(plain))
    assert costs.predicted_ms(left) - costs.predicted_ms(plain) == pytest.approx(grown)


# --- all of it


def optimised(graph: Graph) -> tuple[Graph, Any, dict[str, Any]]:
    feed = data(graph, 1, 1, seed=3)[0]
    return for_speed.optimise(lower_quantizers(calibrate(graph, data(graph), algo="abs_max")), feed, budget_s=3.0)


def test_a_decision_says_what_it_rests_on(tmp_path: Path) -> None:
    result, coverage, found = optimised(residual_net())
    contenders = {"fp32", "int8"} | ({"optimised"} if any(trial["kept"] for trial in found["tried"]) else set())
    assert set(found["median_ms"]) == contenders
    assert found["choice"] in contenders
    assert len(found["left_in_fp32"]) == sum(kept.reason == for_speed.LEFT for kept in coverage.kept)
    if found["choice"] != "fp32":
        assert found["ratios"][f"fp32/{found['choice']}"]["ratio"] >= 1
    assert np.isfinite(run(result, data(result, 1, 2)[0], tmp_path)[0]).all()
    place = {"tier": "avx512_vnni", "threads": 1, "batch": 1}
    told = decisions.sentences({**found, "cpu": place, "budget_s": 3.0})
    assert told[-1].endswith("of 3 s on avx512_vnni, 1 thread, batch 1")


@pytest.mark.parametrize(
    ("ms", "choice", "told"),
    [
        ((2.0, 1.0), "int8", "INT8 wherever it can be: 2.00 [2.00, 2.00] times as fast as FP32"),
        ((1.0, 2.0), "fp32", "INT8 doesn't pay on this CPU, the FP32 model was written: the best INT8 model found is"),
    ],
)
def test_the_faster_one_is_written_and_never_silently(
    ms: tuple[float, float], choice: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP32 and INT8 as they were measured -> what is written."""
    monkeypatch.setattr(for_speed, "search", lambda propose, race, limits: (frozenset(), []))
    monkeypatch.setattr(for_speed, "_measured", lambda runners, limits: np.tile(ms, (10, 1)))
    result, coverage, found = optimised(residual_net())
    assert found["choice"] == choice
    int8 = {op.type for op in result.ops if op.attr("mkldnn_data_type") == "int8"}
    place = {"cpu": {"tier": "avx2", "threads": 2, "batch": 4}, "budget_s": 3.0}
    assert decisions.sentences({**found, **place})[0].startswith(told)
    assert bool(int8) == bool(coverage.int8) == (choice == "int8")
    if choice == "fp32":
        assert {kept.reason for kept in coverage.kept} == {for_speed.NO_INT8}
        assert not any("quantize" in op.type for op in result.ops)


@pytest.mark.parametrize(
    ("last", "choice"),
    [
        ((2.0, 1.0, 0.9), "optimised"),
        ((2.0, 1.0, 1.0), "int8"),
        ((2.0, 1.0, 1.1), "int8"),
        ((0.95, 1.0, 0.9), "optimised"),
        ((0.8, 1.0, 0.9), "fp32"),
    ],
)
def test_what_was_kept_must_be_faster_at_the_end_too(
    last: tuple[float, ...], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = inverted_net()
    deep = next(number for op, number in numbered(simulated(net)).items() if op.type == "depthwise_conv2d")
    trial = for_speed.Trial((deep,), 0.1, 1.1, 1.05, 1.2, True)
    monkeypatch.setattr(for_speed, "search", lambda propose, race, limits: (frozenset({deep}), [trial]))
    monkeypatch.setattr(for_speed, "_measured", lambda runners, limits: np.tile(last, (10, 1)))
    result, coverage, found = optimised(net)
    left = [(entry["op_id"], entry["op_type"]) for entry in found["left_in_fp32"]]
    assert found["choice"] == choice
    assert left == ([(deep, "depthwise_conv2d")] if choice == "optimised" else [])
    assert [kept.op_id for kept in coverage.kept if kept.reason == for_speed.LEFT] == [number for number, _ in left]
    kinds = ("fused_conv2d", "depthwise_conv2d")
    floats = [op for op in result.ops if op.type in kinds and op.attr("mkldnn_data_type") != "int8"]
    assert len(floats) == (1 if choice != "int8" else 0)


def test_op_times_add_up_to_a_run(tmp_path: Path) -> None:
    """A clock that counts: each look takes one second, and the sum over ops is that of a run."""
    seconds: Iterator[int] = iter(range(10**9))
    net = Net()
    graph = net.graph(net.act(net.act("x"), "sigmoid"))
    save_dir(graph, tmp_path)
    with Predictor(tmp_path) as predictor:
        times = op_times(predictor, data(graph, 1, 1)[0], lambda: float(next(seconds)))
    assert sum(times.values()) == pytest.approx(1e3)
    assert set(times) >= set(graph.fetches)
