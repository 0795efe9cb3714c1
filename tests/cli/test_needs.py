"""Options that would have no effect are refused, by a table; the table is that of the commands there are."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from quant.cli.needs import NEEDS, Need, faults
from quant.cli.shared import app
from quant.errors import OptionError
from tests.documents import parse_quant

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def parameters(command: str) -> dict[str, Any]:
    return {param.name: param for param in COMMANDS[command].params}


def given(command: str, *names: str) -> list[str]:
    """A command line with these parameters, and those that it can't do without."""
    words = [command]
    for name, param in parameters(command).items():
        if name in names or param.required:
            words += [] if param.param_type_name == "argument" else [max(param.opts, key=len)]
            words += [] if getattr(param, "is_flag", False) else ["1"]
    return words


def cases() -> Iterator[Any]:
    for command, needs in NEEDS.items():
        for need in needs:
            for option in need.options:
                if need.only_with:
                    yield pytest.param(command, (option,), id=f"{command}-{option}-alone")
                for other in need.not_with:
                    yield pytest.param(command, (option, other), id=f"{command}-{option}-{other}")


@pytest.mark.parametrize(("command", "names"), list(cases()))
def test_what_would_have_no_effect_is_refused_in_one_line(
    command: str, names: tuple[str, ...], refused: Callable[..., str]
) -> None:
    line = refused(*given(command, *names))
    param = parameters(command)[names[0]]
    assert ("a name" if param.param_type_name == "argument" else max(param.opts, key=len)) in line
    assert " only with " in line or " not with " in line


@pytest.mark.parametrize("command", NEEDS)
def test_what_has_an_effect_is_taken(command: str) -> None:
    parse_quant(given(command))
    for need in NEEDS[command]:
        excluded = {
            option for other in NEEDS[command] for option in other.options if {*other.not_with} & {*need.only_with}
        }
        for other in need.only_with:
            parse_quant(given(command, *({*need.options} - excluded), other))
        for option in need.options if need.not_with else ():
            wanted = [other for one in NEEDS[command] if option in one.options for other in one.only_with[:1]]
            parse_quant(given(command, option, *wanted))


def test_the_table_is_of_parameters_that_there_are() -> None:
    for command, needs in NEEDS.items():
        for need in needs:
            assert {*need.options, *need.only_with, *need.not_with} <= parameters(command).keys(), (command, need)
            assert bool(need.only_with) != bool(need.not_with), need


def test_an_option_that_says_whose_it_is_needs_that() -> None:
    """Of those whose help begins with "Of --data"."""
    checked = 0
    for command in COMMANDS:
        needs = {name: need.only_with for need in NEEDS.get(command, ()) if need.only_with for name in need.options}
        for name, param in parameters(command).items():
            if found := re.match(r"(Of|For) --([a-z-]+)", getattr(param, "help", None) or ""):
                owner = found[2].replace("-", "_")
                assert owner in needs.get(name, ()), f"quant {command}: {name} is of --{found[2]}, says its help"
                checked += 1
    assert checked >= 5


def test_a_fault_names_both_and_the_reason() -> None:
    need = Need(("a",), only_with=("b", "c"), because=", which measures")
    shown = {"a": "--a", "b": "--b", "c": "--c"}
    assert list(faults([need], {"a"}, shown)) == ["--a: only with --b, which measures"]
    assert list(faults([need], {"a", "c"}, shown)) == list(faults([need], {"b"}, shown)) == []
    assert list(faults([Need(("a",), not_with=("b",))], {"a", "b"}, shown)) == ["--a: not with --b"]


def test_a_value_that_equals_the_default_is_given_all_the_same() -> None:
    with pytest.raises(OptionError, match="--samples: only with --data"):
        parse_quant(["bench", "--model", "m", "--samples", "500"])
