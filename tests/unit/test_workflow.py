"""The workflow that users copy: its commands and options exist, and nobody's text gets into its scripts."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from quant.cli import app

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "examples" / "github-actions.yml"
OWN = {"name", "on", "permissions", "concurrency", "jobs"}


def steps() -> list[dict[str, Any]]:
    content = yaml.safe_load(WORKFLOW.read_text())
    assert {"on" if key is True else key for key in content} == OWN  # YAML 1.1 reads `on` as true
    [job] = content["jobs"].values()
    found: list[dict[str, Any]] = job["steps"]
    return found


def commands(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = shlex.split(line)
        if words[:1] == ["quant"]:
            yield words[1:]


def test_every_command_and_option_exists() -> None:
    group: Any = typer.main.get_command(app)
    found = [words for step in steps() for words in commands(step.get("run", ""))]
    found += [words for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.S)
              for words in commands(block)]  # fmt: skip
    assert {words[0] for words in found} == {"cpu", "gate", "report"}
    for name, *rest in found:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, name


def test_no_expression_stands_in_a_script() -> None:
    scripts = [step["run"] for step in steps() if "run" in step]
    assert scripts and not any("${{" in script for script in scripts)


@pytest.mark.parametrize("action", ["checkout", "setup-python", "cache/restore", "cache/save", "upload-artifact"])
def test_actions_name_a_version(action: str) -> None:
    used = [step["uses"] for step in steps() if step.get("uses", "").startswith(f"actions/{action}")]
    assert used and all(re.fullmatch(rf"actions/{action}@v\d+", one) for one in used)
