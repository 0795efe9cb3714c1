"""Models that can't share a process, timed in alternation: each in a child of its own, which runs when it is its turn.

Loads no Paddle; what the children do is in `quant.timing.worker`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

from quant.cpu import physical_cores
from quant.process.isolate import Child, Progress, call

__all__ = ["BLOCK_S", "ROUNDS", "bench", "cycle", "in_fresh_processes", "in_turn", "loads", "rounds_in"]

BLOCK_S = 0.02  # how long OpenMP's idle threads wait for more in a loop; Intel's default is 0.2
ROUNDS = 8  # fresh processes of each contender; with 8 of each run, chance alone separates two runs once in 12,870
_CYCLES = 4  # after which orders repeat

Json = dict[str, Any]
Contenders = Sequence[Sequence[Mapping[str, Any]]]


def rounds_in(budget_s: float, cost_s: float) -> int:
    """Rounds of so many seconds each that a budget is good for: 8 to 60."""
    return int(min(max(budget_s / cost_s, 8), 60))


def in_turn(contenders: int, number: int) -> Sequence[int]:
    """Who comes after whom in round `number`: over the rounds everyone comes first, and behind each other, as often.

    A run feels what ran before it (caches, the clock): who mostly follows the same one is measured with its traces.
    Within `cycle` rounds each contender stands at each place, and directly behind each other one, equally often
    (Williams, "Experimental designs balanced for the estimation of residual effects of treatments", 1949). Who begins
    behind a round's last is nearly balanced too, and never that one itself; of two it is, every fourth time.

    >>> [in_turn(3, number) for number in range(6)]
    [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 0, 2), (0, 2, 1)]
    """
    orders = _orders(contenders)
    return orders[number % len(orders)]


def cycle(contenders: int) -> int:
    """Rounds after which `in_turn` has put each directly behind each other one equally often."""
    return 2 * contenders


@cache
def _orders(count: int) -> tuple[tuple[int, ...], ...]:
    """The rounds that `in_turn` repeats: the rows of a cycle, of which the next begins behind whom it least has."""
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    rows = [tuple((step + shift) % count for step in zigzag) for shift in range(count)]
    rows += [row[::-1] for row in rows]
    borders: Counter[tuple[int, int]] = Counter()
    found: list[tuple[int, ...]] = []
    for _ in range(_CYCLES):
        left = list(rows)
        while left:
            last = found[-1][-1] if found else -1
            row = min(left, key=lambda row: (row[0] == last, borders[last, row[0]]))
            borders[last, row[0]] += 1
            left.remove(row)
            found.append(row)
    return tuple(found)


def bench(
    contenders: Contenders,
    threads: Sequence[int],
    *,
    isa: str | None = None,
    budget_s: float = 6.0,
    progress: Progress | None = None,
    **feed: Any,
) -> list[list[Json]]:
    """As `worker.bench`, at several numbers of threads, round by round: for each number what `bench` gives.

    OpenMP's threads are settled when a process loads, so each number has a child. Round i of all numbers ran back to
    back. Idle threads sleep after 20 ms: the gaps between a run's kernels are far shorter, and a child answers when
    they sleep, so that the others' turns have all cores.
    """
    environment = {"KMP_BLOCKTIME": str(round(1000 * BLOCK_S))}
    with ExitStack() as stack:
        children, ready = [], []
        for count in threads:  # one after the other: each finds its fastest variant undisturbed
            arguments = {"contenders": [list(runs) for runs in contenders], "threads": count, **feed}
            child = Child("quant.timing.worker:take_turns", arguments, isa=isa, threads=count, environment=environment)
            children.append(stack.enter_context(child))
            ready.append(child.hear_event())
        rounds = rounds_in(budget_s, sum(event["cost_s"] for event in ready))
        timed: list[list[Json]] = [[{"run": run, "seconds": []} for run in event["runs"]] for event in ready]
        for number in range(rounds):
            for place in in_turn(len(children), number):
                children[place].tell(number)
                for entry, value in zip(timed[place], children[place].hear_event()["seconds"], strict=True):
                    entry["seconds"].append(value)
            if progress:
                progress("bench", number + 1, rounds)
    return timed


def in_fresh_processes(
    contenders: Contenders,
    *,
    threads: int | Sequence[int] = 1,
    rounds: int = ROUNDS,
    laps: int = 12,
    isa: str | None = None,
    progress: Progress | None = None,
    job: str = "quant.timing.worker:take_turns",
    **feed: Any,
) -> list[Json]:
    """As `quant.timing.worker.bench`, but each contender in a process of its own, and all of these new in each round.

    How a process came to lie in memory changes its speed for as long as it lives, so only several processes show what
    a model's speed is. In a round the processes load at once, are pinned to the same cores, one for each thread, and
    then take `laps` turns. Which variant of a contender is the fastest is found out in the first round.
    `threads`: of all contenders, or of each. "seconds" are those of all rounds, one round after the other.
    """
    timed: list[Json] = []
    asked = [list(runs) for runs in contenders]
    counts = [threads] * len(asked) if isinstance(threads, int) else threads
    physical = physical_cores()
    cores = [*physical, *sorted(os.sched_getaffinity(0) - {*physical})]
    environment = {"KMP_BLOCKTIME": str(round(1000 * BLOCK_S))}
    for number in range(rounds):
        with ExitStack() as stack:
            children = []
            for runs, count in zip(asked, counts, strict=True):
                arguments = {"contenders": [runs], "threads": count, "cpus": cores[:count], **feed}
                child = Child(job, arguments, isa=isa, threads=count, environment=environment)
                children.append(stack.enter_context(child))
                if number == 0:  # the variants' trial: undisturbed
                    timed.append({"run": child.hear_event()["runs"][0], "seconds": []})
            if number > 0:
                for child in children:
                    child.hear_event()
            for lap in range(laps):
                for place in in_turn(len(children), lap):
                    children[place].tell(lap)
                    timed[place]["seconds"].extend(children[place].hear_event()["seconds"])
        asked = [[entry["run"]] for entry in timed]
        if progress:
            progress("processes", number + 1, rounds)
    return timed


def loads(
    runs: Sequence[Mapping[str, Any]], rounds: int, *, isa: str | None = None, threads: int = 1, **feed: Any
) -> list[list[Json]]:
    """{"load_s", "answer_s"} (`quant.timing.worker.load`) of each model in each round, every time in a new process."""
    found: list[list[Json]] = [[] for _ in runs]
    for number in range(rounds):
        for place in in_turn(len(runs), number):
            arguments = {"run": runs[place], "threads": threads, **feed}
            found[place].append(call("quant.timing.worker:load", arguments, isa=isa, threads=threads))
    return found
