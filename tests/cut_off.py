"""A job that ends before it has written what it trained. It imports nothing else of this package."""

from typing import Any

from quant.errors import OutputError
from quant.suites import commands


def qat(**arguments: Any) -> None:
    """In a child: quant.suites.commands.qat, on a disk that is full when all steps are done."""

    def full(*_: object) -> None:
        raise OutputError("no space left")

    commands.save_dir = full  # type: ignore[assignment]
    commands.qat(**arguments)
