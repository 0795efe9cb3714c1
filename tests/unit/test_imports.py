"""What decides a job's results is found in the text of the sources, and is all that the job loads."""

import shutil
from pathlib import Path

import pytest

from quant.errors import OptionError
from quant.evaluation import parts
from quant.process import imports, isolate
from quant.process.imports import closure, code_of
from tests.models import write_place

WORKER = ("quant.evaluation.worker", "quant.runtime.verbose_log")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = write_place(tmp_path_factory.mktemp("place"))
    runs = [
        {"model": str(place / model), "precision": precision, "executor": executor}
        for model, precision, executor in (
            ("fp32", "fp32", "auto"),
            ("fp32", "bf16", "auto"),
            ("quant", "quant", "auto"),
            ("int8", "int8", "paddle"),
            ("int8", "int8", "direct"),
        )
    ]
    arguments = {"runs": runs, "data": str(place / "data.npz"), "outputs": str(tmp_path_factory.mktemp("outputs"))}
    found: list[str] = isolate.call("tests.loaded:loaded_by", arguments)
    assert {
        "quant.evaluation.worker",
        "quant.runtime.direct.emit",
        "quant.runtime.direct.emit_sequences",
        "quant.runtime.predictor",
    } <= set(found)
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This package's sources, to be edited."""
    place = tmp_path / "quant"
    shutil.copytree(Path(imports.__file__).parents[1], place, ignore=shutil.ignore_patterns("__pycache__"))
    return place


def edited(copy: Path, name: str) -> str:
    """The worker's code, as another process would see it, with one module edited."""
    file = closure(name, quant=copy)[name]
    before = file.read_bytes()
    file.write_bytes(before + b"\n# edited\n")
    code_of.cache_clear()
    found = code_of(*WORKER, quant=copy)
    file.write_bytes(before)
    return found


def test_the_key_of_outcomes_is_closed(loaded: list[str], copy: Path) -> None:
    """An edit of any module that the worker loads makes another key; an edit of a report doesn't."""
    code_of.cache_clear()
    own = code_of(*WORKER)
    assert parts.versions()["code"] == own == code_of(*WORKER, quant=copy)
    assert [name for name in loaded if edited(copy, name) == own] == []
    deciding = [
        "runtime.direct.emit_sequences",
        "ir.fusion",
        "ir.passes.fold_batch_norm",
        "ir.numerics",
        "ir.ops.schema",
    ]
    deciding += ["ir.ops.activations", "cpu"]
    assert [name for name in deciding if edited(copy, f"quant.{name}") == own] == []
    telling = ["reports.page.values", "reports.page.render", "reports.tables", "cli", "cli.suites", "results.gate"]
    telling += ["pytest_plugin", "evaluation.collect"]
    assert [name for name in telling if edited(copy, f"quant.{name}") != own] == []


def test_imports_in_functions_packages_above_and_jobs_named_by_text_count(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "job.py": "def job():\n    from quant import late\n    call('quant.named:work', 'quant.prose: no job')\n",
        "late.py": "import quant.inner.deep\nfrom . import near\nfrom .inner import deeper\n",
        "named.py": "import numpy, json",
        "near.py": "",
        "prose.py": "",
        "inner/__init__.py": "from quant import above",
        "inner/deep.py": "",
        "inner/deeper.py": "from .. import top",
        "above.py": "",
        "top.py": "",
        "other.py": "import quant.job",
    }
    for name, text in files.items():
        (tmp_path / "quant" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "quant" / name).write_text(text)
    found = closure("quant.job:job", quant=tmp_path / "quant")
    assert {path.relative_to(tmp_path / "quant").as_posix() for path in found.values()} == {*files} - {
        "prose.py",
        "other.py",
    }


def test_a_builder_of_another_package_counts_with_what_it_imports() -> None:
    found = closure("quant.suites.commands", "fixtures.models:export_small")
    assert {
        "fixtures.models",
        "fixtures.digits",
        "quant.quantization.conversion",
        "quant.quantization.training.finetune",
    } <= found.keys()
    telling = {"reports.tables", "reports.page.values", "reports.page.render", "cli", "results.gate", "reports.gate"}
    telling |= {"pytest_plugin", "results.history", "suites.registry", "suites.embedded", "evaluation.collect"}
    assert not {"fixtures.train", *(f"quant.{name}" for name in telling)} & found.keys()
    with pytest.raises(OptionError, match="the embedded models need the package 'nowhere'"):
        closure("nowhere.models:export")


def test_the_code_is_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code_of(*WORKER)
    monkeypatch.setattr(imports, "closure", None)
    code_of(*WORKER)
