"""Work for several items at once, one on each core."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from quant import cpu
from quant.process import isolate
from quant.storage.cache import giving_up

__all__ = ["each"]

Progress = isolate.Progress
S = TypeVar("S")
T = TypeVar("T")


def each(specs: Sequence[S], work: Callable[[S], T]) -> list[T]:
    """`work` for several rows, one on each core at a time. For what isn't timed: models, data, accuracy."""
    with ThreadPoolExecutor(cpu.cores()) as pool:
        # The last rows take longest; begun first, they don't leave one core idle at the end.
        waiting = [pool.submit(work, spec) for spec in reversed(specs)]
        try:
            return [future.result() for future in reversed(waiting)]
        except BaseException:  # also Ctrl-C: don't wait for rows whose result nobody wants
            pool.shutdown(wait=False, cancel_futures=True)
            with giving_up():
                while not all(future.done() for future in waiting):
                    isolate.end_all()  # again: what was between two children has begun the next one meanwhile
                    time.sleep(0.05)
            raise
