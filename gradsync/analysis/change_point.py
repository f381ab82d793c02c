"""Where a series of step times changes its level, if it does: a warm-up inside the measured part, or a later shift.

The best split in two is the one whose difference of means is largest for its standard error. Step times are
heavy-tailed and correlated: so what is averaged are distances from the median, cut off at a few median absolute
deviations, and the standard error counts only as many independent steps as their correlation leaves. What is
found must also matter: a fifth of the level (by medians), and a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_STEPS = 20
SHORTEST = 3  # steps of the shorter side
CUT_OFF = 5.0  # median absolute deviations
SIGNIFICANCE = 5.0  # standard errors; the tests simulate how often noise alone reaches this
LEVEL_CHANGE = 0.20
SHARE_OF_TIME = 0.01
SHORT_SERIES = 3  # times Kendall's correction (1 + 4 r) / n: the split itself hides correlation as well
SMALLEST_DEVIATION = 0.05  # of the level: noise and drift far below a change that matters shall not decide


@dataclass(frozen=True)
class ChangePoint:
    """The level (median seconds) of the ``place`` steps before the change and of the steps after it."""

    place: int
    before: float
    after: float


def change_point(times: np.ndarray) -> ChangePoint | None:
    """The most significant change of level in ``times`` (seconds, one a step); None where there is none."""
    if len(times) < MIN_STEPS:
        return None
    level = float(np.median(times))
    deviation = max(1.4826 * float(np.median(np.abs(times - level))), SMALLEST_DEVIATION * level, 1e-300)
    scores = np.clip((times - level) / deviation, -CUT_OFF, CUT_OFF)
    split, difference, weight = _best_split(scores)
    residuals = np.concatenate([scores[:split] - scores[:split].mean(), scores[split:] - scores[split:].mean()])
    if abs(difference) * weight <= SIGNIFICANCE * _long_run_deviation(residuals):
        return None
    change = ChangePoint(split, float(np.median(times[:split])), float(np.median(times[split:])))
    return change if _matters(change, times) else None


def _best_split(scores: np.ndarray) -> tuple[int, float, float]:
    """The split, the difference of the means of its sides, and one over the standard error for unit deviation."""
    count = len(scores)
    splits = np.arange(SHORTEST, count - SHORTEST + 1)
    before = np.cumsum(scores)[splits - 1]
    differences = (scores.sum() - before) / (count - splits) - before / splits
    weights = np.sqrt(splits * (count - splits) / count)
    best = int(np.argmax(np.abs(differences) * weights))
    return int(splits[best]), float(differences[best]), float(weights[best])


def _long_run_deviation(residuals: np.ndarray) -> float:
    """Deviation of one step as a mean over many correlated steps sees it, from the correlation of neighbours."""
    power = float(np.mean(residuals**2))
    neighbours = float(np.mean(residuals[1:] * residuals[:-1])) / power if power else 0.0
    bias = SHORT_SERIES * (1 + 4 * neighbours) / len(residuals)
    correlation = min(max(neighbours + bias, 0.0), 0.97)
    return float(np.sqrt(power * (1 + correlation) / (1 - correlation)))


def _matters(change: ChangePoint, times: np.ndarray) -> bool:
    low, high = sorted((change.before, change.after))
    shorter = min(change.place, len(times) - change.place)
    return high > (1 + LEVEL_CHANGE) * low and (high - low) * shorter > SHARE_OF_TIME * float(times.sum())
