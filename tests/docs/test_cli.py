"""docs/cli.md is what the command line says."""

from pathlib import Path

import pytest

from tests.docs.cli import reference


def test_the_reference_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    told = "docs/cli.md is out of date: python -m tests.docs.cli > docs/cli.md"
    assert (Path(__file__).parents[2] / "docs" / "cli.md").read_text() == reference(), told


def test_the_reference_has_every_verb_with_its_options() -> None:
    text = reference()
    assert all(f"## quant {verb}\n" in text for verb in ("ptq", "convert", "suite", "gate", "bench"))
    assert "`--int8-model-save-path`" in text and "[bold]" not in text
