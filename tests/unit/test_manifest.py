"""quant.toml: what comes out of it, and one line for whatever is wrong in it, with the line of the file and the key."""

import re
import sys
import time
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.datasets.readers import open_data
from quant.errors import DataError, OptionError, QuantError
from quant.metrics.scores import metric_of
from quant.results.target import Case
from quant.suites.manifest.schema import FileKeys, ModelKeys, ThresholdKeys, importable, read

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories and files that manifests name; none is opened while one is read."""
    root = tmp_path_factory.mktemp("shop")
    for name in ("fp32", "quant", "int8", "folder"):
        (root / name).mkdir()
    for name in ("test.npz", "calibration.npz", "test.bin", "calibration.bin", "test.dat", "dev.bs1", "dev.label"):
        (root / name).write_text(name)
    (root / "again.npz").symlink_to(root / "test.npz")
    return root


def written(shop: Path, text: str) -> Path:
    path = shop / "quant.toml"
    path.write_text(text, encoding="utf-8")
    return path


LEAST = """
[[model]]
name = "least"
fp32 = "fp32"
data = "test.npz"
calibration = "calibration.npz"
"""


def test_a_manifest_of_the_least_that_is_needed(shop: Path) -> None:
    manifest = read(written(shop, LEAST))
    [entry] = manifest.models
    assert manifest.path == shop / "quant.toml"
    assert (entry.name, entry.title, entry.line) == ("least", "least", 2)
    assert (entry.fp32, entry.quant, entry.int8) == (shop / "fp32", None, None)
    assert (entry.data, entry.calibration, entry.labels) == (shop / "test.npz", shop / "calibration.npz", None)
    assert (entry.format, entry.algo, entry.metrics) == (None, "mse", ("top1",))
    assert entry.precisions == ("fp32", "quant", "int8") and dict(entry.max_drop) == {"top1": 0.01}
    assert (entry.floor, dict(entry.speedup), entry.min_int8_share) == (0, {}, 0)
    assert (entry.threads, entry.batch_sizes, entry.batch_size) == ((1,), (1,), 50)
    assert (entry.ops_to_quantize, entry.op_ids_to_skip) == ((), ())


WHOLE = """# Two models.
[[model]]   # the first
name = "first \\"quoted\\" \\u00e4 <script>"
title = "First"
fp32 = "./fp32"
quant = "../{root}/quant"
data = "test.dat"
reader = "own.data:read"
metric = [
    "own.metrics:f1",  # the model's own
    "top1",
]
precisions = ["bf16", "int8", "fp32"]
threads = [1, 2]
batch_sizes = 8
batch_size = 20
ops_to_quantize = ["conv2d", "fc"]
op_ids_to_skip = [0, 7]
thresholds = {{ drop = {{ "own.metrics:f1" = 0.02, top1 = 1 }}, floor = 0.5 }}

[[model]]
  # the second
  name = '''second'''
  quant = "quant"
  int8 = "int8"
  data = "dev.bs1"
  labels = "dev.label"
[model.thresholds]
  drop = 0
  int8_share = 0.9
[model.thresholds.speedup]
  avx512_vnni = 2.5
  amx = 4
"""


def test_every_key(shop: Path) -> None:
    first, second = read(written(shop, WHOLE.format(root=shop.name))).models
    assert (first.name, first.title, first.line) == ('first "quoted" ä <script>', "First", 2)
    assert (first.fp32, first.quant, first.format) == (shop / "fp32", shop / "quant", "own.data:read")
    assert first.metrics == ("own.metrics:f1", "top1")
    assert list(first.max_drop.items()) == [("own.metrics:f1", 0.02), ("top1", 1.0)]
    assert first.precisions == ("fp32", "int8", "bf16")
    assert (first.threads, first.batch_sizes, first.batch_size) == ((1, 2), (8,), 20)
    assert (first.ops_to_quantize, first.op_ids_to_skip) == (("conv2d", "fc"), (0, 7))
    assert (second.name, second.line) == ("second", 21)
    assert (second.labels, second.metrics, dict(second.max_drop)) == (shop / "dev.label", ("top1",), {"top1": 0.0})
    assert second.precisions == ("fp32", "quant", "int8") and second.min_int8_share == 0.9
    assert dict(second.speedup) == {"amx": 4.0, "avx512_vnni": 2.5}


def test_an_entry_is_judged_by_its_limits(shop: Path) -> None:
    limits = "[model.thresholds]\nfloor = 0.7\ndrop = 0.02\nint8_share = 0.8\nspeedup = { amx = 3 }\n"
    [entry] = read(written(shop, f"{LEAST}threads = [1, 2]\nbatch_sizes = [1, 8]\n{limits}")).models
    row = entry.row()
    assert row.cases == (Case(1, {"amx": 3.0}, threads=(1, 2)), Case(8, {"amx": 3.0}, threads=(1, 2)))
    assert row.cases[0].due_on("amx", 2) == 3 and row.cases[0].due_on("avx512_vnni") == 1
    assert (row.metric, dict(row.max_drop), row.max_engine_gap) == ("top1", {"top1": 0.02}, 0.02)
    assert (row.floor, row.int8_share_due(""), row.int8_share_due("7bit"), row.fails_below) == (0.7, 0.8, 0.8, 1.0)
    assert asdict(row)["name"] == "least"


def bad(change: str, expected: str, *, base: str = LEAST) -> tuple[str, str]:
    """A manifest that is right but for a change: `old -> new`, or lines behind it; {shop} is the directory."""
    old, arrow, new = change.partition(" -> ")
    if arrow:
        assert old in base
        return base.replace(old, new), expected
    return f"{base}{change}\n", expected


DIRECTORY, FILE = 'fp32 = "fp32"', 'data = "test.npz"'
CALIBRATION = 'calibration = "calibration.npz"'

BAD = [
    # text
    ("", "1: no [[model]] in it"),
    ("# nothing\n\n", "1: no [[model]] in it"),
    ("[[model]]\nname = \n", "2: Invalid value"),
    ("[[model]]\nname = 'a\n", "2: Expected"),
    ('[[model]]\nname = "a"\nname = "b"\n', "3: Cannot overwrite a value"),
    ("[[model]]\n[model.name]\n[model.name]\n", "3: Cannot declare"),
    ("[[model]]\nfloor = [1,\n\n", "2: Invalid value before the end"),
    ("a = " + "[" * 5000, ": nested too deeply"),
    (f"{'.'.join(['a'] * 5000)} = 1", ": nested too deeply"),
    (f"[{'.'.join(['a'] * 5000)}]", ": nested too deeply"),
    (f"a = {'1' * 5000}", ": Exceeds the limit"),
    # shape of the file
    bad("[[model]] -> [[models]]", "1: no [[model]] in it; and 1 more"),
    bad("[[model]] -> [model]", "2: must be [[model]], one for each model"),
    ("model = []\n", "1: must be [[model]], one for each model"),
    ("\n\nmodel = [1]\n", "3: model 1: must be a table, not 1"),
    (f"version = 1\n{LEAST}", "1: unknown key 'version'; valid: model"),
    # unknown keys
    bad("treads = 2", "7: model 'least': unknown key 'treads'; did you mean 'threads'?"),
    bad("[model.threshold]", "7: model 'least': unknown key 'threshold'; did you mean 'thresholds'?"),
    bad("[model.thresholds]\n\nflor = 1", "9: model 'least', key thresholds: unknown key 'flor'; did you mean 'floor'"),
    bad("thresholds.flor = 1", "7: model 'least', key thresholds: unknown key 'flor'; did you mean 'floor'?"),
    bad('name = "least" -> nam = "x"', "2: model 1, key name: is required; and 1 more"),
    bad(FILE + " -> ", "2: model 'least', key data: is required"),
    (f'"" = 1\n{LEAST}', "1: unknown key ''; valid: model"),
    bad('"" = 1', "7: model 'least': unknown key ''; valid: name, title"),
    # types and ranges
    bad('thresholds.drop = {"" = 0.1}', "7: model 'least', key thresholds.drop: a metric has a name"),
    bad("thresholds.drop = [0.1]", "7: model 'least', key thresholds.drop: must be a number, not [0.1]"),
    bad('name = "least" -> name = 3', "3: model 1, key name: must be a string, not 3"),
    bad('name = "least" -> name = ""', "3: model '', key name: must be printable text, not empty"),
    bad('name = "least" -> name = "a\\nb"', r"3: model 'a\nb', key name: must be printable text, not empty"),
    bad('fp32 = "fp32" -> fp32 = ["fp32"]', "4: model 'least', key fp32: must be a string, not ['fp32']"),
    bad('fp32 = "fp32" -> fp32 = ""', "4: model 'least', key fp32: '' is no path"),
    bad('fp32 = "fp32" -> fp32 = "a\\u0000b"', r"4: model 'least', key fp32: 'a\x00b' is no path"),
    bad("threads = 0", "7: model 'least', key threads: must be at least 1, not 0"),
    bad("threads = [\n  1,\n  0,\n]", "7: model 'least', key threads: must be at least 1, not 0"),
    bad("threads = [2, 2]", "7: model 'least', key threads: 2 is there twice"),
    bad("threads = []", "7: model 'least', key threads: must not be empty"),
    bad("threads = true", "7: model 'least', key threads: must be a whole number, not true"),
    bad('threads = "2"', "7: model 'least', key threads: must be a whole number, not '2'"),
    bad("threads = 2.0", "7: model 'least', key threads: must be a list, not 2.0"),
    bad("threads = 1000000000000000000000", "7: model 'least', key threads: must be at most 4096, not 1000"),
    bad("batch_sizes = -1", "7: model 'least', key batch_sizes: must be at least 1, not -1"),
    bad("batch_size = [1]", "7: model 'least', key batch_size: must be a whole number, not [1]"),
    bad("op_ids_to_skip = [-1]", "7: model 'least', key op_ids_to_skip: must be at least 0, not -1"),
    bad("thresholds = 3", "7: model 'least', key thresholds: must be a table, not 3"),
    bad("thresholds.drop = 1.5", "7: model 'least', key thresholds.drop: must be at most 1, not 1.5"),
    bad("thresholds.drop = -0.1", "7: model 'least', key thresholds.drop: must be at least 0, not -0.1"),
    bad('thresholds.drop = "1%"', "7: model 'least', key thresholds.drop: must be a number, not '1%'"),
    bad("thresholds.floor = nan", "7: model 'least', key thresholds.floor: must be a finite number, not nan"),
    bad("thresholds.int8_share = 99", "7: model 'least', key thresholds.int8_share: must be at most 1, not 99"),
    bad("thresholds.speedup = 2", "7: model 'least', key thresholds.speedup: must be a table, not 2"),
    bad("thresholds.speedup.amx = 0", "7: model 'least', key thresholds.speedup.amx: must be above 0, not 0"),
    bad("thresholds.speedup.amx = inf", "7: model 'least', key thresholds.speedup.amx: must be a finite number"),
    bad("thresholds.floor = 1979-05-27", "7: model 'least', key thresholds.floor: must be a number, not datetime.date"),
    # names
    bad('format = "image"', "7: model 'least', key format: unknown data format 'image'; did you mean 'images'?"),
    bad('metric = "top-1"', "7: model 'least', key metric: unknown metric 'top-1'; did you mean 'top1'?"),
    bad('metric = ["top1", "top1"]', "7: model 'least', key metric: 'top1' is there twice"),
    bad('metric = "own:1"', "7: model 'least', key metric: 'own:1' doesn't name a function: package.module:function"),
    bad('reader = "read"', "7: model 'least', key reader: 'read' doesn't name a function: package"),
    bad('algo = "kl"', "7: model 'least', key algo: unknown calibration algorithm 'kl'; did you mean 'KL'?"),
    bad('precisions = ["int4"]', "7: model 'least', key precisions: unknown precision 'int4'; did you mean 'int8'?"),
    bad(
        "thresholds.speedup.avx512_vni = 2",
        "7: model 'least', key thresholds.speedup.avx512_vni: unknown tier 'avx512_vni'; did you mean 'avx512_vnni'?",
    ),
    bad(
        "thresholds.drop.top5 = 0.1",
        "7: model 'least', key thresholds.drop.top5: metric 'top5' isn't one of key metric: top1",
    ),
    bad(LEAST, "9: model 'least', key name: model 1 has this name too"),
    # places
    bad('"fp32" -> "absent"', "4: model 'least', key fp32: {shop}/absent: no such directory"),
    bad('"fp32" -> "test.npz"', "4: model 'least', key fp32: {shop}/test.npz: not a directory"),
    bad(f'"fp32" -> "{"a" * 5000}"', "4: model 'least', key fp32: {shop}/aaa"),
    bad(f'{FILE} -> data = "absent.npz"', "5: model 'least', key data: {shop}/absent.npz: no such file"),
    bad(f'{FILE} -> data = "folder"', "5: model 'least', key data: {shop}/folder: a directory; only a reader"),
    bad(f'{FILE} -> data = "test.dat"', "5: model 'least', key data: suffix '.dat' tells no data format: key format"),
    bad('labels = "dev.label"', "7: model 'least', key labels: format npz carries its labels itself"),
    bad(f"{CALIBRATION} -> calibration = './test.npz'", "6: model 'least', key calibration: is the test data"),
    bad(f"{CALIBRATION} -> calibration = 'again.npz'", "6: model 'least', key calibration: is the test data"),
    bad('reader = "own:read"', "7: model 'least', key reader: data of a reader's own has no usual metric"),
    bad(
        'reader = "own:read"\nmetric = "top1"\nformat = "npz"',
        "9: model 'least', key format: not together with reader, which gives inputs and labels",
    ),
    # what can be had
    bad(f"{DIRECTORY} -> ", "2: model 'least': no model directory: one of the keys fp32, quant, int8 is required"),
    bad(f"{CALIBRATION} -> ", "4: model 'least', key fp32: nothing to make INT8 from: one of the keys calibration"),
    bad(f'{DIRECTORY} -> int8 = "int8"', "4: model 'least', key int8: nothing to compare INT8 with: one of the keys"),
    bad('precisions = ["fp32"]', "7: model 'least', key precisions: 'fp32' and 'int8' must be among them"),
    bad('precisions = ["int8", "quant"]', "7: model 'least', key precisions: 'fp32' and 'int8' must be among them"),
    bad(
        'int8 = "int8"\nprecisions = ["fp32", "quant", "int8"]',
        "8: model 'least', key precisions: 'quant' can't be had of what is given: fp32, int8, bf16",
    ),
    bad('int8 = "int8"\nop_ids_to_skip = 3', "8: model 'least', key op_ids_to_skip: has no effect beside key int8"),
    bad('quant = "quant"\nalgo = "avg"', "8: model 'least', key algo: has no effect beside key quant"),
    # several
    bad(
        "threads = 0\nalgo = 3\n[model.thresholds]\nfloor = 2",
        "7: model 'least', key threads: must be at least 1, not 0; and 2 more",
    ),
    (LEAST + LEAST.replace('"least"', '"other"').replace('"fp32"', '"no"'), "10: model 'other', key fp32: {shop}/no: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[expected[:70] for _, expected in BAD])
def test_what_is_wrong_is_one_line(shop: Path, text: str, expected: str) -> None:
    path = written(shop, text)
    with pytest.raises(OptionError) as raised:
        read(path)
    told = str(raised.value)
    start = f"{path}{expected}" if expected.startswith(":") else f"{path}:{expected}"
    assert told.startswith(start.replace("{shop}", str(shop)))
    assert "\n" not in told and len(told) < 6000


def test_a_file_that_can_not_be_read(shop: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.toml: can't be read \(No such file or directory\)"):
        read(shop / "absent.toml")
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\)"):
        read(shop)
    path = shop / "latin.toml"
    path.write_bytes(b'[[model]]\nname = "\xe4"\n')
    with pytest.raises(DataError, match=r"latin\.toml:2: not UTF-8"):
        read(path)


def test_windows_line_ends_count_as_one(shop: Path) -> None:
    path = shop / "crlf.toml"
    path.write_bytes((LEAST + "threads = 0\n").replace("\n", "\r\n").encode())
    with pytest.raises(OptionError, match=r"crlf\.toml:7: model 'least', key threads"):
        read(path)


# Blocks that may stand between and inside entries: none changes a key, each moves the lines below.
FILLINGS = st.sampled_from(["", "\n", "# [[model]]\n", "#threads = 0\n", "   \t\n", '# name = """\n'])
KEYS = st.sampled_from(
    [
        "title = '''\nmse'''\n",
        'metric = [\n# ]\n"top5"\n,"top1"]\n',
        'ops_to_quantize = [\n # "x"\n "conv2d",\n\n]\n',
        "threads = [1,\n2]\n",
        "thresholds.floor = 0.5\n",
        "batch_size = 3 # threads = 0\n",
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=st.lists(st.tuples(FILLINGS, st.lists(st.tuples(KEYS, FILLINGS), max_size=3, unique_by=lambda k: k[0][:5]))),
    end=FILLINGS,
)
def test_lines_are_those_of_the_file(shop: Path, blocks: list[tuple[str, list[tuple[str, str]]]], end: str) -> None:
    """Wherever a fault stands, and whatever stands around it, its line is told."""
    text, lines = "", []
    for number, (filling, keys) in enumerate([*blocks, ("", [])]):
        text += filling
        lines.append(text.count("\n") + 1)
        text += f'[[model]]\nname = "m{number}"\n{filling}fp32 = "fp32"\nquant = "quant"\ndata = "test.npz"\n'
        text += "".join(key + other for key, other in keys)
    text += f"{end}precisions = []\n{end}"
    line = text[: text.index("precisions")].count("\n") + 1
    path = written(shop, text)
    with pytest.raises(OptionError, match=rf":{line}: model 'm{len(blocks)}', key precisions: must not be empty$"):
        read(path)
    path.write_text(text.replace("precisions = []", ""), encoding="utf-8")
    manifest = read(path)
    assert [entry.line for entry in manifest.models] == lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_manifest_holds_is_read_or_told(shop: Path, data: st.DataObject) -> None:
    """Pieces cut out, put in twice or replaced: an entry or one line, never anything else."""
    whole = WHOLE.format(root=shop.name)
    for _ in range(data.draw(st.integers(1, 4))):
        at, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
        piece = data.draw(st.sampled_from(["", whole[at:end] * 2, "[", '"', "\n", "=", "{}", "9", "[[model]]", "'''"]))
        whole = whole[:at] + piece + whole[min(end, at + 40) :]
    path, told = written(shop, whole), ""
    try:
        assert read(path).models
    except QuantError as error:
        told = str(error)
    assert "\n" not in told and told.startswith(f"{path}:"[: len(told)])


def test_lines_of_a_long_manifest_are_found_in_time(shop: Path) -> None:
    """By one pass: parsing the beginning of the file anew for each line took minutes."""
    text = "".join(LEAST.replace("least", f"m{number}") for number in range(300))
    numbers = "".join(f"{number},\n" for number in range(500))
    text = text.replace('"m150"\n', f'"m150"\nop_ids_to_skip = [\n{numbers}]\n')
    begun = time.process_time()
    manifest = read(written(shop, text))
    assert time.process_time() - begun < 10
    assert [entry.line for entry in manifest.models[149:152]] == [896, 902, 1410]


DOCS = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")


def test_the_documentation_is_true(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its manifest is one, and its functions are a metric and a reader."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
    [manifest] = [text for kind, text in blocks if kind == "toml"]
    FileKeys.model_validate(tomllib.loads(manifest))
    code = "import numpy as np\n" + "".join(text for kind, text in blocks if kind == "python")
    (tmp_path / "documented.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    counts = metric_of("documented:f1").counts([np.eye(2)[[0, 1, 1]]], np.array([1, 1, 0]))
    assert counts.tolist() == [[0, 1], [2, 2], [0, 1]]
    (tmp_path / "images").mkdir()
    for number, count in ((7, 2), (10, 1)):
        np.save(tmp_path / "images" / f"{number}.npy", np.zeros((count, 3, 4, 4)))
    data = open_data(tmp_path / "images", {"image": ((3, 4, 4), "float32")}, "documented:read")
    assert sorted(np.asarray(data.labels).tolist()) == [7, 7, 10]


def test_every_key_is_in_the_documentation() -> None:
    for table in (FileKeys, ModelKeys, ThresholdKeys):
        for key in table.model_fields:
            assert f"`{key}`" in DOCS, key


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("", False),
        ('metric = ["top1", "top5"]', False),
        ('format = "npz"', False),
        ('metric = ["top1", "own.metrics:f1"]', True),
        ('reader = "own.data:read"\nmetric = "top1"', True),
    ],
)
def test_only_a_manifest_that_names_functions_makes_modules_beside_it_importable_and_last(
    lines: str, named: bool, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    importable(read(written(shop, LEAST + lines)))
    assert sys.path == [*before, str(shop)] if named else sys.path == before
