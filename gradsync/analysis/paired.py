"""Is one method faster than another? Ratios of repeats that ran side by side, and how sure they make us."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom (any table of the distribution); beyond,
# the value for 30, which is larger than the true one.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
               2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
               2.045, 2.042)


@dataclass(frozen=True)
class PairedRatio:
    """Geometric mean of the ratios of ``n`` pairs, with its 95% bootstrap interval.

    ``shown``: both the bootstrap interval and Student's interval of the logarithms exclude 1. Either alone is
    not enough: with a handful of pairs the bootstrap is too narrow (it claims a winner in up to a quarter of
    comparisons of a method with itself), and Student's does not see the shape of the data.
    """

    ratio: float
    low: float
    high: float
    n: int
    shown: bool


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> PairedRatio | None:
    """``values[k]`` against ``baseline[k]``, both positive and of the same repeat. None for fewer than two pairs."""
    if len(values) < 2:
        return None
    logs = np.log(np.asarray(values, dtype=float)) - np.log(np.asarray(baseline, dtype=float))
    low, high = bootstrap_interval(logs[None])[0]
    return PairedRatio(
        ratio=float(np.exp(logs.mean())), low=float(np.exp(low)), high=float(np.exp(high)), n=len(logs),
        shown=bool(differences_shown(logs[None])[0]),
    )


def differences_shown(logs: np.ndarray) -> np.ndarray:
    """For each row of [comparisons, pairs] log ratios: whether a difference is shown. [comparisons] of bool."""
    pairs = logs.shape[1]
    intervals = bootstrap_interval(logs)
    reach = T_QUANTILES[min(pairs - 1, len(T_QUANTILES)) - 1] * logs.std(axis=1, ddof=1) / np.sqrt(pairs)
    return (np.abs(logs.mean(axis=1)) > reach) & ((intervals[:, 0] > 0) | (intervals[:, 1] < 0))


def bootstrap_interval(logs: np.ndarray, seed: int = 0) -> np.ndarray:
    """2.5% and 97.5% percentiles of the mean over resampled pairs, for each row. [comparisons, 2].

    The percentile bootstrap of Efron (1979). The seed is fixed, so that a report says the same twice.
    """
    pairs = logs.shape[1]
    draws = np.random.default_rng(seed).integers(0, pairs, (RESAMPLES, pairs))
    counts = np.zeros((RESAMPLES, pairs))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], draws), 1)
    means = logs @ counts.T / pairs
    return np.percentile(means, [2.5, 97.5], axis=1).T
