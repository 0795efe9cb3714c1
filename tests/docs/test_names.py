"""Paths, links and functions that documents name exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(r"`((?:quant|tests|bench|fixtures|docs)/[\w./-]*[\w/])`")
LINK = re.compile(r"\]\(([^)#:]+)\)")
FUNCTION = re.compile(r"`([\w/]+\.py):(\w+)`")


def wrong(document: Path, root: Path) -> list[str]:
    """What `document` names and isn't there: paths and functions below `root`, links from where it stands."""
    text = document.read_text()
    found = [path for path in PATH.findall(text) if not (root / path).exists()]
    found += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    for module, name in FUNCTION.findall(text):
        path = root / "quant" / module
        kinds = (ast.FunctionDef, ast.ClassDef)
        defined = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}
        if name not in defined:
            found.append(f"{module}:{name}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(document: Path) -> None:
    if document.name != "CHANGELOG.md":  # which tells of what was
        assert wrong(document, ROOT) == []


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "a.py").write_text("def f(): pass\n")
    (tmp_path / "d.md").write_text("`quant/a.py` `quant/b.py` [x](no.md) `a.py:f` `a.py:g`\n")
    assert wrong(tmp_path / "d.md", tmp_path) == ["quant/b.py", "no.md", "a.py:g"]
