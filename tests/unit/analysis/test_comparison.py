"""Comparisons of methods against rliable, whose numbers stand here, and against what is known by hand."""

import numpy as np
import pytest

from galampi.analysis.comparison import (
    Estimate,
    difference,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    share,
)

# Twelve and nine runs on three tasks.
X = np.array(
    [
        [0.6, 1.1, 0.6],
        [-1.0, 1.2, 0.7],
        [-0.2, 0.9, 0.7],
        [0.6, 0.3, 0.8],
        [-0.4, 0.1, -0.2],
        [0.9, 0.3, 0.0],
        [-0.5, 0.0, 0.3],
        [0.0, 1.6, 1.3],
        [-2.4, -1.6, 0.1],
        [-0.1, 0.5, 0.5],
        [2.4, -0.8, -0.1],
        [2.3, 0.9, 1.0],
    ]
)
Y = np.array(
    [
        [-0.5, -1.6, 0.2],
        [0.1, -1.2, -0.7],
        [-0.1, -0.9, -0.1],
        [0.1, 0.0, -0.5],
        [0.6, 0.9, 0.3],
        [-0.8, 0.7, -0.5],
        [0.9, -1.1, 0.9],
        [0.0, -1.2, -0.3],
        [0.1, 0.3, -1.0],
    ]
)


def close(found: Estimate, value: float, low: float, high: float, resampling: float) -> None:
    """The value is exact; the ends are quantiles of other draws."""
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=resampling)


def test_as_rliable() -> None:
    """rliable 1.2.0 with 20,000 resamples."""
    close(probability_of_improvement(X, Y), 0.6851851851851851, 0.55246914, 0.81018519, resampling=0.02)
    close(interquartile_mean(X[:, 0]), 0.08333333333333333, -0.46666667, 0.95, resampling=0.05)
    value, low, high = performance_profile(X, np.array([-1, 0, 0.5]))
    np.testing.assert_allclose(value, [0.91666667, 0.63888889, 0.44444444], rtol=1e-7)
    np.testing.assert_allclose(low, [0.83333333, 0.5, 0.27777778], atol=0.03)
    np.testing.assert_allclose(high, [1, 0.77777778, 0.61111111], atol=0.03)


def test_ties_count_half() -> None:
    assert probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 1.0])).value == 0.75


def test_differences_are_paired() -> None:
    """A constant gain over seeds that differ much has no interval; of runs that are not paired it would be wide."""
    seeds = np.array([0.0, 100.0, 200.0])
    assert difference(seeds + 3, seeds) == Estimate(3, 3, 3)


def test_shares_have_wilson_s_interval() -> None:
    """16 of 20 by the formula: centre (p + z^2 / 2n) / (1 + z^2 / n)."""
    z, n, p = 1.959964, 20, 0.8
    centre, denominator = p + z * z / (2 * n), 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = share(16, 20)
    expected = (0.8, (centre - half) / denominator, (centre + half) / denominator)
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-5)
    assert f"{found:.2f}" == "0.80 (0.58 to 0.92)"


def test_one_run_has_no_interval() -> None:
    assert f"{interquartile_mean(np.array([5.0])):.1f}" == "5.0"
