"""Numbers that compare methods over seeds: shares of successes, differences, probabilities; all with 95 % intervals.

Pure functions of arrays. As Agarwal et al., "Deep RL at the Edge of the Statistical Precipice" (NeurIPS 2021, arXiv
2108.13264) define them, and their rliable computes them, where they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from galampi.analysis.statistics import interquartile_mean as iqm

Floats = NDArray[np.float64]

_NUM_RESAMPLES = 5000
_AT_ONCE = 500
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and the interval around it.

    Attributes:
        value: The number.
        low: Lower end of the interval; NaN for a single run.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        """Write number and interval with a format of numbers."""
        if np.isnan(self.low):
            return f"{self.value:{spec}}"
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def share(num_successes: int, num_runs: int) -> Estimate:
    """Return the share of successes with Wilson's score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(num_successes, num_runs).proportion_ci(_LEVEL, method="wilson")
    return Estimate(num_successes / num_runs, float(interval.low), float(interval.high))


def interquartile_mean(scores: Floats) -> Estimate:
    """Return the interquartile mean of scores [S] of S runs."""
    return _bootstrap(lambda runs: iqm(runs, axis=-2).mean(axis=-1), scores)


def difference(scores: Floats, others: Floats) -> Estimate:
    """Return the mean difference of scores [S] and others' [S], paired: the i-th of both had the same seed."""
    return _bootstrap(lambda runs: runs.mean(axis=(-2, -1)), scores - others)


def median(values: Floats) -> Estimate:
    """Return the median of values [S], each of a round of its own."""
    return _bootstrap(lambda rounds: np.asarray(np.median(rounds[..., 0], axis=-1)), values)


def probability_of_improvement(scores: Floats, others: Floats) -> Estimate:
    """Return the probability that a run with score X beats one with Y, P(X > Y) + P(X = Y) / 2.

    Args:
        scores: [S, K] of S runs on K tasks; or [S] on one.
        others: [S', K] of the others.

    Returns:
        Its mean over the tasks. Runs of each task are resampled by themselves: a stratified bootstrap.
    """

    def probability(x: Floats, y: Floats) -> Floats:
        differences = x[..., :, None, :] - y[..., None, :, :]
        return np.asarray((np.sign(differences) + 1).mean(axis=(-3, -2, -1)) / 2)

    return _bootstrap(probability, scores, others)


def performance_profile(scores: Floats, thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the share of runs with scores above each threshold, and the ends of its intervals at each.

    Args:
        scores: [S, K] of S runs on K tasks; or [S] on one.
        thresholds: [M].

    Returns:
        Three times [M].
    """
    runs = _by_task(scores)
    found = [_bootstrap(lambda each, least=least: (each > least).mean(axis=(-2, -1)), runs) for least in thresholds]
    value, low, high = np.array([(each.value, each.low, each.high) for each in found]).T
    return value, low, high


def _bootstrap(statistic: Callable[..., Floats], *samples: Floats) -> Estimate:
    """Return a statistic with its percentile bootstrap interval; runs are resampled, of each sample and task alone.

    Args:
        statistic: Takes samples [..., S, K], and returns [...].
        samples: [S, K] or [S] each.
    """
    runs = [_by_task(each) for each in samples]
    value = float(statistic(*runs))
    if min(map(len, runs)) < 2:
        return Estimate(value, float("nan"), float("nan"))
    # The same draws at each call, so that a number is the same twice.
    generator = np.random.default_rng(0)
    resampled: list[Floats] = []
    for _ in range(_NUM_RESAMPLES // _AT_ONCE):
        drawn = [generator.integers(len(each), size=(_AT_ONCE, *each.shape)) for each in runs]
        resampled.append(
            statistic(*(np.take_along_axis(each[None], of, axis=1) for each, of in zip(runs, drawn, strict=True)))
        )
    low, high = np.quantile(np.concatenate(resampled), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _by_task(scores: Floats) -> Floats:
    """Return scores as [S, K]."""
    return np.reshape(scores, (len(scores), -1))
