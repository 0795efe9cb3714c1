"""The rooms: who may import whom, that public names exist, that tests can rely on the tables."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quant

ROOT = Path(__file__).parents[2]
FLOORS = {
    "errors": 0, "custom": 0, "own_data": 0, "record": 0, "figures": 0, "rows": 0, "surroundings": 0,
    "packing": 2, "old_programs": 1,
    "numerics": 0, "names": 0, "metrics": 0, "tagging": 0, "cpu": 0, "readers": 0, "sequences": 0, "formats": 0,
    "places": 0, "digests": 0, "imports": 0, "cache": 0, "memory": 0, "remarks": 0,
    "archives": 0, "download": 0, "sequential": 0, "outcomes": 0,
    "graphviz": 0, "calibration_table": 2,
    "graph": 1, "comparable": 1, "paddle_errors": 0, "well_formed": 1, "onednn": 1, "primitives": 1, "constants": 1,
    "pir": 1,
    "direct": 1, "direct_ops": 1, "direct_sequences": 1, "workspace": 1, "chains": 1, "activations": 1,
    "passes": 2, "reasons": 2, "observers": 2, "rounding": 2, "calibration": 2, "qat": 2, "qat_layers": 2,
    "finetune": 2, "conversion": 2, "kernels": 2, "profile": 2, "predictor": 2, "reference": 2,
    "arithmetic": 1, "plain_ops": 0, "shapes": 1, "data_shapes": 1, "crossings": 2,
    "kernel_table": 2, "islands": 2, "findings": 2, "profile_jobs": 4, "profiler": 4, "profile_report": 5,
    "toml_lines": 0, "manifest": 3, "manifest_text": 3, "preprocess": 3, "registry": 3, "zoo": 3, "fetch": 3,
    "gaps": 0, "counterparts": 2, "analyze_jobs": 4, "analyze": 4, "anatomy_jobs": 4, "anatomy": 4,
    "analyze_report": 5,
    "optimise": 4, "baseline": 4, "op_costs": 4, "decisions": 5,
    "tuning": 4, "tuning_jobs": 4, "tuning_state": 4, "tuning_run": 4, "tuning_entry": 4, "tuning_report": 5,
    "models": 4, "manifest_suite": 4, "benchmark_files": 5,
    "data_check": 4, "check": 4, "inspection": 4,
    "zoo_jobs": 4, "zoo_suite": 4, "jobs": 4, "evaluation": 4, "collect": 4, "cluster": 4, "pipeline": 4, "isolate": 0,
    "timing": 4, "turns": 4, "instances": 4, "ratios": 4,
    "charts": 5, "sheets": 5, "html_history": 5, "html_values": 5, "html_sections": 5, "html_report": 5,
    "report": 5, "zoo_report": 5, "history": 5, "gate": 5, "cases": 4, "subjects": 4, "journal": 0, "gate_report": 5,
    "history_report": 5, "saving": 5, "composition": 5,
    "cli": 6, "plugin": 6, "__main__": 6, "__init__": 6,
}  # fmt: skip
MAY_IMPORT_PADDLE = {
    *("graph", "pir", "shapes", "well_formed", "direct_sequences", "predictor", "qat", "qat_layers", "finetune"),
}
MODULES = sorted((ROOT / "quant").rglob("*.py"))


def room(path: Path) -> str:
    relative = path.relative_to(ROOT / "quant")
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "quant" else {node.module}
            )
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_lower_floors_or_its_own(path: Path) -> None:
    here = FLOORS[room(path)]
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("fixtures", "tests", "bench", "conftest"), f"{path.name} imports {name}"
        if top == "quant":
            assert FLOORS[rest.partition(".")[0]] <= here, f"{path.name} (floor {here}) imports {name}"
        if top == "paddle":
            assert room(path) in MAY_IMPORT_PADDLE, f"{path.name} imports Paddle"


@pytest.mark.parametrize("path", sorted((ROOT / "fixtures").glob("*.py")), ids=lambda path: path.name)
def test_fixtures_use_floor_0_and_the_graph(path: Path) -> None:
    for name in imports(path):
        if name.startswith("quant."):
            module = name.split(".")[1]
            assert FLOORS[module] == 0 or module == "graph", f"{path.name} imports {name}"


# Prints the public names that aren't the function or class of their own name. The order of imports is the argument:
# a submodule, once imported, is an attribute of the package, and would hide a public name that it shares.
_PUBLIC_NAMES = """
import importlib, inspect, pkgutil, sys
import quant

def submodules():
    for module in pkgutil.walk_packages(quant.__path__, "quant."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

def wrong():
    for name in quant.__all__:
        value = getattr(quant, name)
        home = value.__module__ if inspect.isclass(value) or inspect.isfunction(value) else None
        if not (home and home.startswith("quant.") and value.__name__ == name
                and getattr(sys.modules[home], name) is value):
            yield f"{name}: {value!r}"

for step in sys.argv[1:]:
    found = submodules() if step == "submodules" else list(wrong())
    if found:
        sys.exit("; ".join(found))
"""


@pytest.mark.parametrize("order", ["names submodules names", "submodules names"])
def test_public_names_are_functions_and_classes_in_any_order_of_imports(order: str) -> None:
    command = [sys.executable, "-c", _PUBLIC_NAMES, *order.split()]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_submodule_bears_a_public_name() -> None:
    assert not {path.stem for path in (ROOT / "quant").iterdir()} & set(quant.__all__)


def test_public_names_are_sorted_and_others_refused() -> None:
    assert list(quant.__all__) == sorted(quant.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = quant.nonsense


def test_every_module_names_its_public_names() -> None:
    for path in MODULES:
        if path.name != "__main__.py":
            assert "\n__all__ = " in path.read_text(), path


def test_the_command_line_does_not_load_paddle() -> None:
    """It takes seconds, prints warnings, and belongs into the children."""
    script = "import sys, quant.cli; sys.exit('paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_no_pickle_no_shell_no_eval() -> None:
    for path in MODULES:
        text = path.read_text()
        for word in ("allow_pickle=True", "shell=True", "os.system", "import pickle", " eval(", " exec("):
            assert word not in text, f"{path}: {word}"
