"""One model many times at once, each instance in a process pinned to a core of its own: throughput and latencies.

The scenario is that of a server that answers on every core. Each instance has one thread and runs a batch as soon as
the last one is done. Loads no Paddle; what an instance does is `quant.timing.worker.serve`.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant import cpu
from quant.errors import OptionError
from quant.metrics.scores import ratio_interval
from quant.process.isolate import Child, Progress

__all__ = ["Instance", "Throughput", "measure", "percentile", "work_done"]

_BEYOND = 10  # latencies above a percentile, below which it says more about chance than about the model
_AHEAD_S = 0.05  # from telling all instances to their common beginning
_BATCHES = 10  # that a window should hold, so that its rate is one


@dataclass(frozen=True)
class Instance:
    """One process: the CPU that it is pinned to, and what it did while all were running.

    `latency_s`: seconds of each batch, in their order. `rates`: samples a second of each window.
    """

    cpu: int
    latency_s: tuple[float, ...]
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Throughput:
    """Windows in which all instances ran, alternating with windows in which one of them ran alone.

    `window_s`: how long each was. `alone`: samples a second of the lone instance in each of its windows, each instance
    in its turn; `alone_latency_s`: its batches.
    """

    window_s: float
    instances: tuple[Instance, ...]
    alone: tuple[float, ...]
    alone_latency_s: tuple[float, ...]

    @property
    def latency_s(self) -> NDArray[np.float64]:
        """Of all instances together."""
        return np.concatenate([instance.latency_s for instance in self.instances])

    @property
    def rates(self) -> NDArray[np.float64]:
        """Samples a second of all instances together, of each window."""
        return np.asarray(np.sum([instance.rates for instance in self.instances], axis=0))

    def scaling(self) -> tuple[float, float, float]:
        """Throughput of all over that of one alone, with its 95% interval."""
        return ratio_interval(self.rates, np.array(self.alone))


def percentile(latency_s: Sequence[float] | NDArray[np.float64], share: float) -> float | None:
    """The latency that a share of all batches stay below; None when fewer than 10 can be expected above it.

    So p50 takes 20 batches, p90 100, p99 1000.

    >>> percentile([1.0, 2.0, 3.0] * 7, 0.5), percentile([1.0, 2.0, 3.0] * 7, 0.9)
    (2.0, None)
    """
    enough = len(latency_s) * (1 - share) >= _BEYOND - 1e-9
    return float(np.quantile(latency_s, share)) if enough else None


def work_done(
    begun: NDArray[np.float64], ended: NDArray[np.float64], samples: NDArray[np.int64], start: float, end: float
) -> float:
    """Samples done in a window; a batch that reaches beyond it counts by its share of time inside."""
    inside = np.clip(np.minimum(ended, end) - np.maximum(begun, start), 0, None)
    return float((samples * inside / (ended - begun)).sum())


def measure(
    variants: Sequence[Mapping[str, Any]],
    instances: int,
    *,
    seconds: float = 10.0,
    isa: str | None = None,
    progress: Progress | None = None,
    **feed: Any,
) -> Throughput:
    """Run `instances` of a model, of whose variants the fastest is taken, for `seconds`; and one alone for as long.

    All are loaded and warm before the first window, and begin each one together. `feed`: see quant.timing.worker.Feed.
    Raises OptionError when there are fewer cores, ChildError when an instance dies; the others are ended then.
    """
    places = _places(instances)
    with ExitStack() as stack:
        children: list[Child] = []
        batch_s, chosen = 0.0, list(variants)
        for place in places:  # one after the other: the first finds the fastest variant undisturbed
            arguments = {"variants": chosen, **feed}
            child = Child("quant.timing.worker:serve", arguments, isa=isa, threads=1, cpus=[place])
            children.append(stack.enter_context(child))
            ready = child.hear_event()
            batch_s, chosen = max(batch_s, ready["batch_s"]), [ready["run"]]
            if progress:
                progress("load", len(children), instances)
        windows = int(np.clip(seconds / (_BATCHES * batch_s), 2, 8))
        window_s = seconds / windows
        alone, together = [], []
        for number in range(windows):
            alone.append(_window([children[number % instances]], window_s)[0])
            together.append(_window(children, window_s))
            if progress:
                progress("bench", number + 1, windows)
    return Throughput(
        window_s=window_s,
        instances=tuple(
            Instance(place, _latencies(own), tuple(window.rate for window in own))
            for place, own in zip(places, zip(*together, strict=True), strict=True)
        ),
        alone=tuple(window.rate for window in alone),
        alone_latency_s=_latencies(alone),
    )


def _places(instances: int) -> list[int]:
    """The CPUs to pin to. Raises OptionError when an instance would have to share a core, or its time."""
    cores, quota = cpu.physical_cores(), cpu.quota()
    if instances > len(cores):
        raise OptionError(f"--instances: {instances}, but this process may run on {len(cores)} physical cores only")
    if quota is not None and instances > quota:
        raise OptionError(f"--instances: {instances}, but the control group allows {quota:g} CPUs' time only")
    return cores[:instances]


@dataclass(frozen=True)
class _Window:
    """What one instance did in one window: samples a second, seconds of each batch that lies inside."""

    rate: float
    latency_s: tuple[float, ...]


def _latencies(windows: Sequence[_Window]) -> tuple[float, ...]:
    return tuple(value for window in windows for value in window.latency_s)


def _window(children: Sequence[Child], window_s: float) -> list[_Window]:
    start = time.monotonic() + _AHEAD_S
    end = start + window_s
    for child in children:
        child.tell({"from": start, "until": end})
    found = []
    for child in children:
        heard = child.hear_event(window_s)
        begun, ended, samples = (np.array(heard[name]) for name in ("begun", "ended", "samples"))
        inside = (ended - begun)[ended <= end]
        found.append(_Window(work_done(begun, ended, samples, start, end) / window_s, tuple(inside.tolist())))
    return found
