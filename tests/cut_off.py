"""A job that ends before it has written what it trained. It imports nothing else of this package."""

from typing import Any

from quant import jobs
from quant.errors import OutputError


def qat(**arguments: Any) -> None:
    """In a child: quant.jobs.qat, on a disk that is full when all steps are done."""

    def full(*_: object) -> None:
        raise OutputError("no space left")

    jobs.save_dir = full  # type: ignore[assignment]
    jobs.qat(**arguments)
