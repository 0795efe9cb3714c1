"""Options without an effect are mistakes: which option goes only with, or never with, which others. One place checks.

A user who gives an option takes its silence for a yes, so one that would change nothing is refused like any other
mistake: exit code 2, one line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from quant.errors import OptionError

__all__ = ["GROUPS", "NEEDS", "App", "Need", "faults"]


F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Need:
    """Parameters of a command, by their names in its function: each of `options` has an effect only where one of
    `only_with` is given, or none of `not_with`. `because` follows in the message, with its comma."""

    options: tuple[str, ...]
    only_with: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()
    because: str = ""


_CLUSTER = Need(("cluster_wait",), only_with=("cluster_at",))
# Of commands that take a row, a directory or a manifest's model; what the manifest says itself is told by `sole_entry`.
_OF_DATA = Need(("format",), only_with=("data", "manifest_path"))

# Command -> its needs; that of an option's value is for the command itself to check.
NEEDS: dict[str, tuple[Need, ...]] = {
    "eval": (_CLUSTER,),
    "compare": (_CLUSTER,),
    "bench": (
        Need(("format", "samples", "by_length", "repeat"), only_with=("data",)),
        Need(("seconds",), only_with=("instances",)),
        Need(("against_precision",), only_with=("against",)),
        Need(("input_shape",), not_with=("row", "data"), because=", which says what the input is"),
        Need(("against",), not_with=("instances",), because=", which times one model"),
    ),
    "profile": (
        _OF_DATA,
        Need(("input_shape",), not_with=("data",), because=", which says what the input is"),
        Need(("each",), not_with=("json",), because=", which has all kernels"),
    ),
    "analyze": (
        _OF_DATA,
        Need(("each",), not_with=("json",), because=", which has all ops"),
        Need(("markdown",), not_with=("json",)),
    ),
    "qat": (
        Need(("format", "labels", "steps", "batch_size", "learning_rate"), only_with=("model",)),
        Need(("full",), only_with=("row",)),
        Need(("fresh",), only_with=("checkpoint",)),
    ),
    "convert": (
        Need(
            ("time_budget", "isa", "threads", "batch_size", "input_shape", "fp32_model"),
            only_with=("optimize",),
            because=", which measures",
        ),
        Need(
            ("target",),
            only_with=("calibration_file",),
            because=", for an FP32 model; else the weights are quantized",
        ),
        Need(
            ("debug",),
            not_with=("optimize",),
            because="; draw a conversion with the --op-ids-to-skip that it decides on",
        ),
    ),
    "fetch": (
        Need(
            ("names", "output", "mirror", "sha256", "retries", "timeout", "fresh"),
            not_with=("list_all",),
            because=", which fetches nothing",
        ),
    ),
    "suite": (Need(("full",), not_with=("manifest_path",), because=", whose data are used as a whole"),),
    "tune": (Need(("model",), only_with=("manifest",)),),
    "history": (Need(("plot",), only_with=("model",), because=", which it draws"),),
}


def faults(needs: Sequence[Need], given: set[str], shown: dict[str, str]) -> Iterator[str]:
    """What of the given parameters would have no effect, a line each; `shown`: parameter -> what a user calls it."""
    for need in needs:
        for option in need.options:
            if option not in given:
                continue
            if need.only_with and not given & {*need.only_with}:
                yield f"{shown[option]}: only with {shown[need.only_with[0]]}{need.because}"
            for other in need.not_with:
                if other in given:
                    yield f"{shown[option]}: not with {shown[other]}{need.because}"


class _Command(TyperCommand):
    """A command whose options are looked over when they are parsed, before anything else is done."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        given = {name for name in ctx.params if _given(ctx, name)}
        shown = {param.name: _shown(param) for param in self.params if param.name}
        if told := next(faults(NEEDS.get(self.name or "", ()), given, shown), None):
            raise OptionError(told)
        return rest


def _given(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _shown(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"a {(param.metavar or param.name).lower()}"
    return str(max(param.opts, key=len))


# What `quant --help` lists: title -> commands.
GROUPS: dict[str, tuple[str, ...]] = {
    "Make": ("quantize", "ptq", "convert", "qat", "tune", "preprocess", "fetch"),
    "Measure": ("suite", "eval", "compare", "bench", "cpu", "models", "cache"),
    "Understand": ("analyze", "profile", "report"),
    "Gate": ("init", "gate", "history"),
}


class _Group(TyperGroup):
    """The program, whose help lists the commands by GROUPS, each with the first sentence of its own help."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))  # the same column in all groups
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), _sentence(self.commands[name].help or "")) for name in names])


def _sentence(text: str) -> str:
    """Text up to the end of its first sentence, on one line."""
    return " ".join(text.split()).partition(". ")[0].removesuffix(".") + "."


class App(typer.Typer):
    """A Typer app whose commands refuse what NEEDS says, and whose help groups them."""

    def __init__(self, **more: Any) -> None:
        super().__init__(cls=_Group, **more)

    def command(self, name: str | None = None, **more: Any) -> Callable[[F], F]:
        return super().command(name, cls=_Command, **more)
