"""Each op of the table, exported by Paddle in its own format, gives Paddle's own bits as a legacy program."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quant.datasets.columns import values_of
from quant.ir.graph import load_dir
from quant.ir.pir import read_program
from quant.ir.pir.special import SPECIAL
from quant.ir.pir.table import TABLE
from quant.runtime.predictor import Predictor
from tests.nets import NATIVE
from tests.pir.ops import cases
from tests.pir.oracle import differences, translated_back

ROOT = Path(__file__).parents[2]
# Paddle's PIR predictor drops pairs of quantizers unasked, so it can't tell what they do.
UNQUANTIZED_BY_PADDLE = {"quantize_linear"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pir-ops")
    environment = {**os.environ, "FLAGS_enable_pir_api": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.pir.ops", root], check=True, env=environment)
    return root


NAMES = [name.replace(" ", "-") for name in cases()]


@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_paddles_own_bits(exported: Path, name: str) -> None:
    failed = exported / name / "failed.txt"
    assert not failed.exists(), f"Paddle's own export: {failed.read_text()}"
    data = np.load(exported / name / "io.npz")
    with Predictor(exported / name, NATIVE) as predictor:
        found = predictor({name: data[name] for name in predictor.inputs})
    assert list(found) == [f"fetch_name_{number}" for number in range(len(found))]
    for number, column in enumerate(found.values()):
        values = np.asarray(values_of(column))
        if name in UNQUANTIZED_BY_PADDLE:
            due = np.clip(np.round(data["x0"] / 0.7 * 127), -128, 127) * np.float32(0.7) / 127
            np.testing.assert_allclose(values, due, rtol=1e-5)
            continue
        due = data[f"y{number}"]
        assert (values.dtype, values.shape) == (due.dtype, due.shape)
        np.testing.assert_array_equal(values, due)


@pytest.mark.parametrize("name", NAMES)
def test_paddles_translator_gives_back_the_program_that_was_read(exported: Path, name: str, tmp_path: Path) -> None:
    directory = exported / name
    original = read_program(directory / "inference.json")
    assert differences(original, translated_back(load_dir(directory), tmp_path)) == []


def test_every_line_of_the_table_has_a_case(exported: Path) -> None:
    seen = {op.name for name in NAMES for op in read_program(exported / name / "inference.json").ops}
    # No export of Paddle's was found that takes one tensor out of an array by this op; `builtin.split` does.
    assert ({*TABLE} | {*SPECIAL}) - seen == {"builtin.slice"}
