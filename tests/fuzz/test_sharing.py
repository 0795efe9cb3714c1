"""Nets whose ops share parameters are quantized as their twins are, in which each op has its own of the same values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from quant.datasets.columns import values_of
from quant.errors import ConversionError
from quant.ir.fusion import LOOKUPS
from quant.ir.graph import Graph, run_passes, save_dir
from quant.ir.numerics import REDUCED, SIGNED
from quant.ir.passes import CALIBRATE, NORMALISE, fuse_kernels, lift_quantizers, lower_quantizers, quantize_cells
from quant.quantization.calibration import calibrate
from quant.quantization.conversion import Coverage, convert
from quant.quantization.observers import Choice
from quant.quantization.plan import plan_of, roundable, simulate
from quant.runtime.predictor import Predictor, Settings
from tests.fuzz.test_properties import OFTEN, RARELY, SEED, fresh
from tests.nets import NATIVE
from tests.published import with_plain_cells
from tests.sharing import check_rewrite, images, inputs, shared, size, texts, written

SELDOM = settings(OFTEN, max_examples=OFTEN.max_examples // 20)
NETS = [images, texts]
Build = Callable[[np.random.Generator], Graph]


def simulation(graph: Graph, seed: int, levels: int) -> Graph:
    """With thresholds that only the places of tensors decide, some much larger than others."""
    random = np.random.default_rng(seed)
    chains = roundable(graph, (), (), levels)
    plan = plan_of(graph, chains)
    groups = dict.fromkeys(plan.group.values())
    drawn = {group: Choice("drawn", float(np.exp(random.normal(0, 2)))) for group in groups}
    return simulate(graph, chains, plan, drawn | {g: Choice("known", t) for g, t in plan.known.items()}, levels)


def alike(one: Graph, twin: Graph) -> None:
    assert written(one) == written(twin)
    assert size(one) <= size(twin)


def converted(graph: Graph, seen: Callable[[str, Graph], None] | None = None) -> tuple[Graph, Coverage] | None:
    try:
        return convert(graph, seen=seen)
    except ConversionError:
        return None


@pytest.mark.parametrize("build", NETS)
@RARELY
@given(seed=SEED)
def test_every_rewrite_of_shared_parameters_is_that_of_twins(seed: int, build: Build) -> None:
    """Each pass, rounding with any thresholds, and conversion give the same ops on the same values."""
    pair = shared(build(np.random.default_rng(seed)), np.random.default_rng(seed + 1))
    levels = SIGNED if seed % 2 else REDUCED
    alike(*pair)
    normal = pair
    for rewrite in CALIBRATE:
        before, normal = normal, (rewrite(normal[0]), rewrite(normal[1]))
        alike(*normal)
        check_rewrite(before[0], normal[0])
    alike(fuse_kernels(normal[0]), fuse_kernels(normal[1]))
    simulated = simulation(normal[0], seed, levels), simulation(normal[1], seed, levels)
    alike(*simulated)
    check_rewrite(normal[0], simulated[0], may_round=lambda op: op.type in LOOKUPS)
    stored = lower_quantizers(simulated[0]), lower_quantizers(simulated[1])
    alike(*stored)
    check_rewrite(simulated[0], stored[0])
    for some in (simulated, stored, partly(stored, pair)):
        (mine, covered), (its, of_twin) = (in_steps(graph) for graph in some)
        assert covered == of_twin
        for one, twin in zip(mine, its, strict=True):
            alike(one, twin)


def in_steps(graph: Graph) -> tuple[list[Graph], Coverage | None]:
    """A graph after each step of conversion, and its coverage; None when nothing of it can be INT8."""
    steps: list[Graph] = []
    found = converted(graph, lambda _, step: steps.append(step))
    return steps, found[1] if found else None


def partly(stored: tuple[Graph, Graph], exported: tuple[Graph, Graph]) -> tuple[Graph, Graph]:
    """As Paddle's training leaves it: the recurrent layers themselves aren't rounded."""
    plain = [with_plain_cells(one, run_passes(other, NORMALISE)) for one, other in zip(stored, exported, strict=True)]
    lifted = [run_passes(one, (lift_quantizers, *NORMALISE)) for one in plain]
    done = quantize_cells(lifted[0]), quantize_cells(lifted[1])
    check_rewrite(lifted[0], done[0])
    return done


def outputs(graph: Graph, batch: dict[str, Any], place: Path, how: Settings) -> list[np.ndarray]:
    directory = fresh(place)
    save_dir(graph, directory)
    with Predictor(directory, how) as predictor:
        return [values_of(column) for column in predictor(batch).values()]


@pytest.mark.parametrize("build", NETS)
@SELDOM
@given(seed=SEED)
def test_shared_parameters_give_what_twins_give(seed: int, build: Build, tmp_path: Path) -> None:
    """In FP32, simulated after calibration, and in INT8 by both executors: no bit differs."""
    pair = shared(build(np.random.default_rng(seed)), np.random.default_rng(seed + 1))
    random, sizes = np.random.default_rng(seed + 2), (3, 5, 2, 7)
    seen, batch, single = (inputs(pair[0], random, some) for some in (sizes, sizes, (6,)))
    simulated = [lower_quantizers(calibrate(graph, [seen], algo="abs_max")) for graph in pair]
    int8 = [found[0] for graph in simulated if (found := converted(graph))]
    runs = [(pair, batch, NATIVE), (simulated, batch, NATIVE), (int8, batch, Settings("int8", executor="paddle"))]
    runs.append((int8, single, Settings("int8")))  # of sequences one at a time runs directly
    for graphs, fed, how in runs:
        found = [outputs(graph, fed, tmp_path, how) for graph in graphs]
        for mine, its in zip(*found, strict=True):
            np.testing.assert_array_equal(mine, its)
