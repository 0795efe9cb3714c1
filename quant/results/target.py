"""What a model is shown as and judged by: of the embedded models, of published ones, and of users' own.

A run's record keeps its rows, so it can be read without the table or the manifest that they came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

__all__ = ["Case", "Row"]


@dataclass(frozen=True)
class Case:
    """One way to time a row.

    `batch` samples a run, every batch `repeat` times in a row, samples in the data's order or sorted `by_length`.
    `due`: CPU tier -> the FP32 / INT8 latency to reach with that many `threads`. `published`: the seeds' ratio on a
    Xeon Gold 6271, one core.
    """

    batch: int = 1
    due: Mapping[str, float] = field(default_factory=dict)
    published: float | None = None
    repeat: int = 1
    by_length: bool = False
    threads: tuple[int, ...] = (1,)

    def due_on(self, tier: str, threads: int = 1) -> float:
        """What has to be reached on a tier: never less than FP32, anywhere."""
        return self.due.get(tier, 1.0) if threads in self.threads else 1.0

    def words(self, threads: int) -> str:
        """The case at a number of threads."""
        extra = f", each {self.repeat} times" * (self.repeat > 1) + ", by length" * self.by_length
        return f"batch {self.batch}{extra}, {threads} thread(s)"


@dataclass(frozen=True, eq=False)
class Row:
    """A model's name, figures to compare with, and limits.

    `max_drop`: metric -> accepted loss, FP32 to INT8, 0.01 is one point; the first is the row's own. `floor` is what
    FP32 must reach in that one. `max_engine_gap` is the accepted difference between simulation and INT8.
    `min_int8_share` of the multiply-accumulates, with 7-bit weights `min_int8_share_7bit`. `published`: metric -> the
    seeds' FP32 and INT8 scores in percent. `fails_below`: a ratio whose whole interval lies below this share of what
    is due has failed; above, it is a figure that was missed.
    """

    name: str
    title: str
    cases: tuple[Case, ...]
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    max_drop: Mapping[str, float] = field(default_factory=lambda: {"top1": 0.005})
    max_engine_gap: float = 0.003
    floor: float = 0.75
    min_int8_share: float = 0.98
    min_int8_share_7bit: float = 0.98
    # What is due are figures from other machines: coming close to one is a figure to print as it is.
    fails_below: float = 0.9

    @property
    def metric(self) -> str:
        return next(iter(self.max_drop))

    def int8_share_due(self, variant: str) -> float:
        return self.min_int8_share_7bit if variant == "7bit" else self.min_int8_share

    def case_of(self, batch: int, repeat: int = 1, by_length: bool = False) -> Case:
        """The case that was timed so; a batch size of a user's choosing is a case of its own."""
        known = (case for case in self.cases if (case.batch, case.repeat, case.by_length) == (batch, repeat, by_length))
        return next(known, Case(batch, repeat=repeat, by_length=by_length))

    @staticmethod
    def of(other: "Row") -> "Row":
        """The row alone, of what may know more than that."""
        return Row(**{column.name: getattr(other, column.name) for column in fields(Row)})
