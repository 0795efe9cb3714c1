"""Every block of README.md and docs/: commands and programs run, in order, in one fresh directory a document."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.document_place import VALUES, write_place
from tests.documents import SHELL, Block, blocks, commands_in, names_read, options_of, parse_quant, substituted

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"from-the-seeds.md": "test_from_the_seeds.py, with a server of small models in place of the published"}

OWN = {
    "FP32_DIR": "models/resnet50",
    "QUANT_DIR": "simulated",
    "QUANTIZED_DIR": "quantized",
    "QAT_DIR": "trained",
    "INT8_DIR": "int8_model",
    "QAT_INT8_DIR": "int8_trained",
    "TABLE_INT8_DIR": "int8_by_table",
    "FAST_INT8_DIR": "int8_fast",
    "TUNED_DIR": "tuned",
    "DIR": "found",
    "NAME": "resnet50",
    "CALIBRATION": "train",
    "TRAIN": "train",
    "TEST": "val",
    "SCHEDULER": "127.0.0.1",
    "URL": "http://127.0.0.1:1",
    "HEX": "0" * 64,
}

# Files that a document's reader has before, beside those of write_place.
GIVEN = {
    "ci.md": {
        "quant.toml": """
[[model]]
name = "resnet50"
fp32 = "models/resnet50"
data = "val.bin"
calibration = "train.bin"
"""
    }
}

# What is only looked at (that its options, targets and paths exist), and why.
NOT_RUN = {
    r"pip (install|wheel)": "installs; tests/cli/test_wheel.py does, into an environment of its own",
    r"make \w+": "installs, and measures for minutes or hours",
    r"quant fetch": "downloads; tests/cli/test_fetch.py and test_from_the_seeds.py do, from servers of their own",
    r"quant suite --zoo": "needs what quant fetch downloads; tests/cli/test_from_the_seeds.py runs it",
    r"quant eval .*--cluster": "needs a scheduler; tests/cli/test_cluster.py has one",
    r"(QUANT_FUZZ_SEEDS=\d+ )?pytest (tests|bench)": "the whole of the tests",
    r"pytest --zoo": "needs what quant fetch downloads",
}
# A network of three layers is no faster in INT8, and whoever judges speed says so.
MAY_FAIL = re.compile(r"quant (suite|gate) ")


def why_not_run(line: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, line)), None)


def shell(line: str, place: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "QUANT_CACHE": str(place.parent / "cache"),
        "GITHUB_STEP_SUMMARY": str(place.parent / "summary.md"),
        "BROWSER": "true",  # a program that opens nothing
        "PYTEST_ADDOPTS": "--benchmark-disable -p no:cacheprovider",
    }
    command = ["bash", "-euc", line]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def run_line(line: str, place: Path, where: str) -> None:
    done = shell(line, place)
    allowed = (0, 1) if MAY_FAIL.match(line) else (0,)
    assert done.returncode in allowed, f"{where}: {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def look_at(line: str, pytest_help: str) -> None:
    """What can be told of a command without running it. Raises AssertionError, or what the command line would."""
    for program, *arguments in commands_in(line):
        if program == "quant":
            parse_quant(arguments)
        elif program == "pip":
            assert arguments[0] in ("install", "wheel"), line
        elif program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        elif program == "pytest":
            for option in options_of(arguments):
                assert re.search(rf"(^|[\s,]){re.escape(option)}\b", pytest_help, re.M), f"{line}: no {option}"
            for path in arguments:
                assert not path.startswith(("tests", "bench")) or (ROOT / path).exists(), f"{line}: no {path}"
        else:
            raise AssertionError(f"{line}: nobody knows how to look at {program}")


def run_python(block: Block, place: Path) -> None:
    """In a process of its own, with those of VALUES that it reads."""
    read = names_read(block.text)
    unknown = read - VALUES.keys()
    assert not unknown, f"{block.place}: neither imported nor defined: {', '.join(sorted(unknown))}"
    given = "\n".join(f"{name} = VALUES[{name!r}]()" for name in sorted(read & VALUES.keys()))
    code = f"from tests.document_place import VALUES\n{given}\ndel VALUES\n"
    code += f"exec(compile({block.text!r}, {block.place!r}, 'exec'))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.place}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def pytest_help() -> str:
    command = [sys.executable, "-m", "pytest", "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name not in ELSEWHERE], ids=lambda path: path.name
)
def test_every_block_runs(document: Path, tmp_path: Path, pytest_help: str) -> None:
    found = blocks(document)
    place = tmp_path / "place"
    place.mkdir()
    if any(block.language in (*SHELL, "python") for block in found):
        write_place(place, tmp_path / "exported")
    for name, text in GIVEN.get(document.name, {}).items():
        (place / name).write_text(text)
    for block in found:
        if block.file is not None:
            (place / block.file).parent.mkdir(parents=True, exist_ok=True)
            (place / block.file).write_text(block.text)
        elif block.language == "python":
            run_python(block, place)
        elif block.language in SHELL:
            for line in block.lines():
                command = substituted(line, OWN)
                if why_not_run(command):
                    look_at(command, pytest_help)
                else:
                    run_line(command, place, block.place)


def lines_of(document: Path) -> list[str]:
    """A document's command lines, placeholders filled in."""
    return [substituted(line, OWN) for block in blocks(document) if block.language in SHELL for line in block.lines()]


def test_what_is_not_run_is_there_and_each_document_has_who_runs_it() -> None:
    lines = [line for document in DOCUMENTS if document.name not in ELSEWHERE for line in lines_of(document)]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []
    assert {*ELSEWHERE, *GIVEN} <= {document.name for document in DOCUMENTS}
    ran = [line for line in lines if not why_not_run(line)]
    assert len(ran) > len(lines) / 2 and {line.split()[0] for line in ran} == {"quant", "pytest"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```text\nquant cpu\n```\n", "d.md:2: commands in a block of text"),
        ("a\n```ruby\n1\n```\n", "d.md:3: a block of language 'ruby'"),
        ("```\nquant cpu\n```\n", "a block of language ''"),
        ("```bash\nquant cpu\n", "d.md:2: a block without an end"),
    ],
)
def test_a_block_that_nothing_would_run_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text(text)
    with pytest.raises(ValueError, match=told):
        blocks(tmp_path / "d.md")


def test_blocks_lines_and_placeholders(tmp_path: Path) -> None:
    (tmp_path / "d.md").write_text(
        "```console\n$ quant eval --model FP32_DIR \\\n    --data TEST.bin  # comment\nprinted\n```\n"
        "  ```python\n  # my_pkg/f.py\n  x = 1\n  ```\n"
    )
    shell_block, file = blocks(tmp_path / "d.md")
    assert (file.file, file.line, file.text) == ("my_pkg/f.py", 7, "# my_pkg/f.py\nx = 1\n")
    [line] = shell_block.lines()
    command = substituted(line, {"FP32_DIR": "fp32", "TEST": "val"})
    assert commands_in(command) == [["quant", "eval", "--model", "fp32", "--data", "val.bin"]]
    with pytest.raises(KeyError, match="FP32_DIR"):
        substituted(line, {"TEST": "val"})
    assert (
        substituted('A_SEED=1 x "$HOME_DIR" --sha256=HEX # NAME', {"HEX": "0"}) == 'A_SEED=1 x "$HOME_DIR" --sha256=0'
    )
    assert commands_in("A=1 quant report --open; quant history") == [
        ["quant", "report", "--open"],
        ["quant", "history"],
    ]


@pytest.mark.parametrize(
    "line",
    [
        "quant no-such-command",
        "quant eval --model m --data d --no-such-option",
        "quant bench --model m --samples 3",
        "make no-such-target",
        "pytest tests --no-such-option",
        "pytest tests/no_such_directory",
        "rm -r out",
    ],
)
def test_what_is_only_looked_at_must_be_right(line: str, pytest_help: str) -> None:
    with pytest.raises(Exception, match=r"no-such|no_such|rm|--samples"):
        look_at(line, pytest_help)


def test_names_that_a_program_neither_defines_nor_imports() -> None:
    text = (
        "import a.b as c\nimport d.e\ndef f(x, *y, z=1, **w): return x, y, w, len(z)\nfor i in c: print(i, d, f, g)\n"
    )
    assert names_read(text) == {"g"}
