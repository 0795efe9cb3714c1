"""Which source files decide what a job computes: its modules, and all that those import, from the text of the files.

Nothing is imported to find out. An edit of one of these files so gives results another key, and an edit of any other
file, of a report's, say, leaves them what they are.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from quant.errors import OptionError
from quant.storage.digests import digest

__all__ = ["closure", "code_of", "package_of"]

_JOB = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):[A-Za-z_]\w*")  # "package.module:function"
_HERE = Path(__file__).parents[1]


def package_of(name: str) -> Path:
    """The directory of a top-level package. Raises OptionError when there is none."""
    if name == _HERE.name:
        return _HERE
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise OptionError(
            f"the embedded models need the package {name!r}: run `make suite` in a checkout of the project"
        )
    return Path(next(iter(found.submodule_search_locations)))


def closure(*roots: str, quant: Path = _HERE) -> dict[str, Path]:
    """Module -> file: the modules `roots` and what they import, directly or not, of this package and of the roots' own.

    A root is "package.module" or "package.module:function". Imports inside functions count, as do strings of the second
    form, which name jobs. `quant`: the directory that stands for this package. Raises OptionError for a package that
    isn't there.
    """
    names = [root.partition(":")[0] for root in roots]
    packages = {name.partition(".")[0] for name in names}
    places = {name: quant if name == _HERE.name else package_of(name) for name in (*packages, _HERE.name)}
    found: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or (file := _file(name, places)) is None:
            continue
        found[name] = file
        is_package = file.name == "__init__.py"
        waiting += [parent for parent in [name.rpartition(".")[0]] if parent]  # its __init__ runs, too
        waiting += _imported(file, name if is_package else name.rpartition(".")[0])
    return dict(sorted(found.items()))


@cache
def code_of(*roots: str, quant: Path = _HERE) -> str:
    """A digest of all files of `closure`. Read once a process. Thread-safe."""
    return digest(part for name, file in closure(*roots, quant=quant).items() for part in (name, file))


def _file(name: str, places: dict[str, Path]) -> Path | None:
    """A module's file; None for one of another package, and for what is no module."""
    top, *rest = name.split(".")
    if top not in places:
        return None
    place = places[top].joinpath(*rest)
    candidates = (place / "__init__.py", place.with_suffix(".py"))
    return next((file for file in candidates if file.is_file()), None)


@cache
def _imported(file: Path, package: str) -> tuple[str, ...]:
    """What a file may import, by name; `package`: what its relative imports start from."""
    return tuple(dict.fromkeys(_names(ast.parse(file.read_bytes()), package)))


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*above, *([node.module] if node.module else [])])
            yield home
            for alias in node.names:
                yield f"{home}.{alias.name}"  # perhaps a module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (job := _JOB.fullmatch(node.value)):
            yield job[1]
