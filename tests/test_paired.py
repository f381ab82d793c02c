"""A comparison of a method with itself claims a winner in at most 5% of cases, and a real difference is found."""

from __future__ import annotations

import numpy as np
import pytest

from gradsync.analysis import paired
from gradsync.analysis.paired import differences_shown, paired_ratio

COMPARISONS = 4000
NOISE = {
    "normal": lambda rng, shape: rng.normal(0, 0.05, shape),
    "heavy tails": lambda rng, shape: 0.02 * rng.standard_t(2, shape),
    "occasional stalls": lambda rng, shape: np.where(rng.random(shape) < 0.1, 0.5, 0) + rng.normal(0, 0.02, shape),
    "skewed": lambda rng, shape: rng.exponential(0.05, shape),
}


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 20])
@pytest.mark.parametrize("noise", NOISE)
def test_a_method_against_itself(noise, pairs):
    rng = np.random.default_rng(pairs)
    drift = rng.normal(0, 0.3, (COMPARISONS, pairs))  # the machine's, shared by the two runs of a repeat
    first, second = (drift + NOISE[noise](rng, (COMPARISONS, pairs)) for _ in range(2))
    claimed = differences_shown(first - second).mean()
    print(f"{noise}, {pairs} pairs: {claimed:.1%}")
    # 4000 comparisons know a rate of 5% to 0.35 points.
    assert claimed <= 0.05 + 3 * 0.0035


@pytest.mark.parametrize(("pairs", "found"), [(3, 0.6), (5, 0.95), (10, 0.99)])
def test_a_difference_of_ten_percent_is_found(pairs, found):
    rng = np.random.default_rng(1)
    logs = np.log(0.9) + rng.normal(0, 0.03, (COMPARISONS, pairs))
    assert differences_shown(logs).mean() >= found


def test_the_bootstrap_alone_would_not_do(monkeypatch):
    """The reason for the second interval; without it the test above would fail."""
    monkeypatch.setattr(paired, "T_QUANTILES", (0.0,))
    assert differences_shown(np.random.default_rng(0).normal(0, 0.05, (COMPARISONS, 3))).mean() > 0.15


def test_ratio_and_interval():
    ratio = paired_ratio([90, 81, 99], [100, 90, 110])
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((0.9, 0.9, 0.9))
    assert ratio.shown
    assert ratio.n == 3
    ratio = paired_ratio([90, 110, 100], [100, 100, 100])
    assert ratio.low < 1 < ratio.high
    assert not ratio.shown
    assert paired_ratio([90], [100]) is None
