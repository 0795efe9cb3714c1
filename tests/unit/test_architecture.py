"""The rooms: who may import whom, that public names exist, that tests can rely on the tables."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quant

ROOT = Path(__file__).parents[2]
# The rooms of quant/, bottom to top: a module imports only from its own room and those before it.
ORDER = (
    *("errors", "cpu", "storage", "process", "ir", "datasets", "metrics", "runtime", "quantization", "results"),
    *("evaluation", "timing", "diagnosis", "search", "suites", "reports", "pytest_plugin", "cli"),
    *("__init__", "__main__"),
)
MOST_MODULES = 12  # in a package; passes, one rewrite a file, apart
PADDLE_IN = ("ir", "runtime", "quantization")
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
def test_a_module_imports_only_from_its_own_room_and_those_before_it(path: Path) -> None:
    here = ORDER.index(room(path))
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("fixtures", "tests", "bench", "conftest"), f"{path.name} imports {name}"
        if top == "quant" and rest:
            other = rest.partition(".")[0]
            assert ORDER.index(other) <= here, f"{path.name} (in {room(path)}) imports {name}"
        if top == "paddle":
            assert room(path) in PADDLE_IN, f"{path.name} imports Paddle"


def test_a_room_is_seen_at_a_glance() -> None:
    for package in {path.parent for path in MODULES}:
        modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES or package.name == "passes", f"{package.name}: {len(modules)} modules"
        assert (package / "__init__.py").read_text().startswith('"""'), f"{package.name} doesn't say what it is"


@pytest.mark.parametrize("path", sorted((ROOT / "fixtures").glob("*.py")), ids=lambda path: path.name)
def test_fixtures_use_the_lower_rooms(path: Path) -> None:
    for name in imports(path):
        if name.startswith("quant."):
            assert ORDER.index(name.split(".")[1]) <= ORDER.index("metrics"), f"{path.name} imports {name}"


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
        if path.name != "__main__.py" and len(ast.parse(path.read_text()).body) > 1:
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
