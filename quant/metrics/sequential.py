"""Looking at a comparison again and again while its samples come in, without deciding wrongly more often.

An interval at 95% that is looked at after each of 50 parts crosses a threshold, on which the true drop lies exactly, in
31 of 100 runs. So the error of 5% is spent on the looks bit by bit:

- How much until when: alpha t^3 at the share t of all samples (Kim and DeMets, Biometrika 74, 1987, 149-154, the power
  family of Lan and DeMets' error spending, Biometrika 70, 1983, 659-663). Of 50 looks the first decides at 5.1
  standard errors, the last at 2.17 instead of 1.96. O'Brien and Fleming's type of spending ends at 2.21 and needs more
  samples for any drop; Pocock's ends at 2.58.
- What that means for a look: the recursion of Armitage, McPherson and Rowe (Journal of the Royal Statistical Society A
  132, 1969, 235-244) over a Brownian motion, which the sum of paired differences approaches. A union bound over the
  same looks would end at 2.97.
- The interval of a look is the paired one at the confidence that belongs to its boundary: repeated confidence intervals
  (Jennison and Turnbull, Journal of the Royal Statistical Society B 51, 1989, 305-361). All of them hold the true drop
  together in 95% of all runs, so it may be stopped at any look, whatever the reason.

After an early stop the drop itself is biased away from the threshold, a little; the interval is not.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["ALPHA", "Look", "boundaries", "looks"]

ALPHA = 0.05  # all looks' error together, both sides
MOST = 50  # looks: more of them cost power and decide hardly earlier
_CLOSE = 0.01  # a look this share of all samples before the last one is none: the last one sees nearly the same
_POWER = 3
_NODES = 160  # of the quadrature; 80 give the same boundaries to 1e-6 at 50 looks


@dataclass(frozen=True)
class Look:
    """After how many samples, and at which confidence."""

    number: int  # from 1
    samples: int
    confidence: float


@cache
def looks(ends: tuple[int, ...], alpha: float = ALPHA) -> tuple[Look, ...]:
    """When to look: at the ends of parts (numbers of samples, ascending, the last is all), at most at 50 of them.

    >>> [f"{look.samples}: {look.confidence:.4f}" for look in looks((1000, 2000))]
    ['1000: 0.9937', '2000: 0.9526']
    """
    early = [end for end in ends[:-1] if end <= (1 - _CLOSE) * ends[-1]]
    every = max(-(-len(early) // (MOST - 1)), 1)
    chosen = [*early[every - 1 :: every], ends[-1]]
    bounds = boundaries(np.array(chosen) / chosen[-1], alpha)
    return tuple(
        Look(number, end, float(1 - 2 * scipy.stats.norm.sf(bound)))
        for number, (end, bound) in enumerate(zip(chosen, bounds, strict=True), 1)
    )


def boundaries(fractions: NDArray[np.float64], alpha: float = ALPHA) -> NDArray[np.float64]:
    """Shares of the information, ascending to 1 -> the standard errors at which each look decides, [looks].

    Raises ValueError unless they ascend.
    """
    if not len(fractions) or (np.diff(fractions, prepend=0.0) <= 0).any():
        raise ValueError(f"looks at {fractions.tolist()} of the samples: they must ascend from above 0")
    spent = alpha * fractions**_POWER
    steps, errors = np.diff(fractions, prepend=0.0), np.diff(spent, prepend=0.0)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    bounds = np.empty(len(fractions))
    # The motion at the last look, of runs that haven't decided: where it may be, and how likely times the weight.
    at, mass = np.zeros(1), np.ones(1)
    for place, (step, error) in enumerate(zip(np.sqrt(steps), errors, strict=True)):
        most = float(np.abs(at).max() + 40 * step)
        bound = scipy.optimize.brentq(_leaving, 0.0, most, args=(at, mass, step, error), xtol=1e-12)
        bounds[place] = bound / np.sqrt(fractions[place])
        reached = bound * nodes
        density = scipy.stats.norm.pdf((reached[:, None] - at) / step) / step
        at, mass = reached, bound * weights * (density @ mass)
    return bounds


def _leaving(bound: float, at: NDArray[np.float64], mass: NDArray[np.float64], step: float, error: float) -> float:
    """The chance to leave (-bound, bound) by a normal step of this size, less `error`."""
    return float(mass @ (scipy.stats.norm.sf((bound - at) / step) + scipy.stats.norm.cdf((-bound - at) / step))) - error
