"""INT8 agrees with the simulation on encoders with outlier channels, where Paddle's own INT8 is noise."""

from pathlib import Path

import numpy as np
import pytest

from fixtures import ernie
from quant.calibrate import calibrate
from quant.convert import convert
from quant.evaluation import signature
from quant.graph import Graph, load_dir, save_dir
from quant.metrics import cosine, sqnr
from quant.passes import lower_quantizers
from quant.predictor import Predictor, Settings
from quant.readers import Dataset, batches, open_data
from tests.outliers import plant

SAMPLES = 100


def data_for(graph: Graph, split: str, directory: Path) -> Dataset:
    path = directory / f"{split}.bs1"
    if not path.exists():
        ernie.write_pairs_of(split, SAMPLES, path)
    return open_data(path, signature(graph))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    place = tmp_path_factory.mktemp("ernie")
    ernie.export_small("ernie", place)
    return load_dir(place)


def pooled(graph: Graph, data: Dataset, directory: Path, settings: Settings) -> np.ndarray:
    directory.mkdir()
    save_dir(graph, directory)
    with Predictor(directory, settings) as predictor:
        return np.concatenate([list(predictor(batch).values())[1] for batch in batches(data, 25)])


@pytest.mark.parametrize("factor", [1, 10, 30, 100])
def test_int8_agrees_with_the_simulation_under_outliers(encoder: Graph, factor: int, tmp_path: Path) -> None:
    graph = plant(encoder, factor) if factor > 1 else encoder
    data = data_for(graph, "test", tmp_path)
    before = pooled(encoder, data, tmp_path / "before", Settings(optimise=False))
    fp32 = pooled(graph, data, tmp_path / "fp32", Settings(optimise=False))
    assert np.abs(fp32 - before).max() < 1e-3  # the planted model is the same function

    simulated = calibrate(graph, batches(data_for(graph, "calibration", tmp_path), 25), algo="best")
    int8, coverage = convert(simulated)
    assert not coverage.fp32["matmul_v2"]
    sim = pooled(lower_quantizers(simulated), data, tmp_path / "quant", Settings("quant"))
    ran = pooled(int8, data, tmp_path / "int8", Settings("int8"))
    told = f"factor {factor}: INT8 to simulation {sqnr(sim, ran):.1f} dB, cosine {cosine(sim, ran):.5f}; "
    print(told + f"simulation to FP32 {sqnr(fp32, sim):.1f} dB, cosine {cosine(fp32, sim):.5f}")
    assert cosine(sim, ran) >= 0.995
