"""What reports tell of what INT8 comes to: of a net all of whose arithmetic is INT8, and which yet isn't all INT8."""

import json
from dataclasses import asdict

import pytest

from quant.diagnosis.composition import anatomy_of
from quant.diagnosis.kernel_table import moved
from quant.ir.graph import save_dir
from quant.reports.composition import cost_of, tables
from quant.reports.page.values import page_of
from quant.reports.tables import markdown
from quant.results.record import Anatomy, Run
from quant.runtime.verbose_log import kernels
from tests import runs
from tests.unit.test_crossings import converted, softmax_between_net

LOG = """\
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32:b:a::f0 dst:u8:b:a::f0,,,2x8x8x8,0.01
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:s8:b:a::f0 dst:f32:b:a::f0,,,2x8x4x4,0.01
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:f32:b:a::f0 dst:f32:b:a::f0,,,2x8x8x8,0.01
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:u8:b:a::f0 dst:u8:b:a::f0,,,2x8x8x8,0.01
onednn_verbose,v1,primitive,exec,cpu,softmax_v2,jit:avx2,forward_inference,src:f32:b:a::f0 dst:f32:b:a::f0,,,2x8,0.01
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Anatomy:
    place = tmp_path_factory.mktemp("net")
    save_dir(converted(softmax_between_net()), place)
    return anatomy_of(place, {}, place, None, place, None)


def test_bytes_of_reorders_by_what_they_convert() -> None:
    # one sample: 512 values to u8, 128 from s8; 512 values within float32, and 512 within u8
    assert moved(kernels(LOG.splitlines()), 2) == (512 * 5 + 128 * 5, 512 * 8 + 512 * 2)


def test_all_arithmetic_is_int8_but_not_all_time(found: Anatomy) -> None:
    assert (found.mac_share, found.uncounted) == (pytest.approx(1.0), ())
    assert found.time_share is not None and 0 < found.time_share < 0.95
    assert found.outside_share is not None and 0 <= found.outside_share < 1
    assert found.between is not None and {"softmax", "relu"} <= {entry.type for entry in found.between}
    # into the first convolution and the second, of 3 and 8 channels of 8 x 8, each value in 4 bytes and 1
    assert found.crossing_bytes is not None and found.crossing_bytes >= (3 + 8) * 64 * 5
    assert found.reorder_bytes is not None
    assert Anatomy.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_reports_show_it(found: Anatomy) -> None:
    run = runs.run(runs.accuracy("resnet50", 40), anatomy={"resnet50": found})
    text = markdown(run.machine, tables(run.anatomy, run.rows), [])
    assert "## What INT8 comes to" in text and "| ResNet-50 | 100.0% | - |" in text
    assert "| softmax |" in text and "| - | no pass takes softmax into an INT8 kernel |" in text
    assert (
        "| relu |" in text and "| chains_of | it stands behind softmax in float32, not behind an INT8 kernel |" in text
    )
    part = page_of(run).parts[0]
    assert "INT8 kernels do 100.0% of the multiply-accumulates, in " in part.int8
    assert part.between is not None and len(part.between.lines) == len(found.between or ())


def test_an_uncounted_op_is_told_beside_the_share() -> None:
    assert "100.0% of the multiply-accumulates (not counted: custom), in 93.0%" in cost_of(runs.anatomy())
    assert "752,640 bytes go between float32 and int8, 1,204,224 through other reorders" in cost_of(runs.anatomy())


def test_runs_from_before_are_read() -> None:
    run = runs.run(runs.accuracy("resnet50", 40), anatomy={"resnet50": runs.anatomy()})
    content = json.loads(run.to_json())
    kept = ("int8", "fp32", "kernels", "layers")
    content["anatomy"]["resnet50"] = {key: content["anatomy"]["resnet50"][key] for key in kept}
    older = Run.from_json(json.dumps(content))
    assert older.anatomy["resnet50"].mac_share is None
    assert tables(older.anatomy, older.rows) == []
    part = page_of(older).parts[0]
    assert part.between is None and part.int8.endswith("stay float32.")
