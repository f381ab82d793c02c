"""How far one run's losses are from another's, step by step: the figures, without a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EARLY_STEPS = 10
WINDOWS = 10
SMALL = 1e-12


@dataclass(frozen=True)
class Deviation:
    """Differences of losses, ``run`` minus reference. ``scale`` is the reference's largest early loss."""

    steps: int  # that both have
    rounding: float  # relative difference of a loss that means nothing
    scale: float
    first: float  # at step 1, as a share of the reference's loss
    early: float  # largest of the first EARLY_STEPS
    largest: float
    place: int  # 0-based step of the largest
    tail: int  # steps of the last tenth
    end: float  # between the means of the tail; positive: the run ends higher
    persistent: float  # the mean difference of the worst of WINDOWS stretches
    noise: float  # of that mean, if each step's difference were independent of the others
    correlation: float | None  # of the two runs' step-to-step changes: near 1 where they see the same batches
    onset: int | None  # 0-based step from which the difference is more than rounding
    unrest: float  # the run's step-to-step changes relative to the reference's
    pace: float | None  # how much faster the run's loss falls in the first steps, where that can be told

    @property
    def significant(self) -> bool:
        """Whether the worst stretch differs by more than single batches explain."""
        return abs(self.persistent) > 4 * self.noise


def deviation(losses: Sequence[float], expected: Sequence[float], rounding: float) -> Deviation:
    """Compare two series over the steps that both have; ``rounding`` is a relative difference that means nothing."""
    steps = min(len(losses), len(expected))
    own, other = np.array(losses[:steps]), np.array(expected[:steps])
    difference = own - other
    scale, tail = max(float(np.max(np.abs(other[:EARLY_STEPS]))), SMALL), max(1, steps // 10)
    beyond = np.flatnonzero(np.abs(difference) > rounding * np.maximum(np.abs(other), SMALL))
    persistent, noise = _persistent(difference)
    place = int(np.abs(difference).argmax())
    return Deviation(
        steps=steps, rounding=rounding, scale=scale, first=abs(float(difference[0])) / max(abs(float(other[0])), SMALL),
        early=float(np.abs(difference[:EARLY_STEPS]).max()), largest=float(abs(difference[place])), place=place,
        tail=tail, end=float(difference[-tail:].mean()), persistent=persistent, noise=noise,
        correlation=_correlation(own, other), onset=int(beyond[0]) if len(beyond) else None,
        unrest=step_noise(own) / max(step_noise(other), SMALL), pace=_pace(own, other),
    )


def step_noise(values: np.ndarray) -> float:
    """Standard deviation of a step around its neighbours, without the trend and without outliers."""
    if len(values) < 3:
        return 0.0
    changes = np.diff(values)
    return float(1.4826 * np.median(np.abs(changes - np.median(changes))) / np.sqrt(2))


def _persistent(difference: np.ndarray) -> tuple[float, float]:
    """Mean difference of the worst stretch, and what the noise of single steps leaves of such a mean."""
    stretches = np.array_split(difference, max(1, min(WINDOWS, len(difference) // 5)))
    means = np.array([stretch.mean() for stretch in stretches])
    worst = int(np.abs(means).argmax())
    return float(means[worst]), step_noise(difference) / float(np.sqrt(len(stretches[worst])))


def _correlation(own: np.ndarray, other: np.ndarray) -> float | None:
    """Rank correlation of the step-to-step changes, so that neither trend nor spikes decide."""
    if len(own) < 2 * EARLY_STEPS:
        return None
    ranks = [np.argsort(np.argsort(np.diff(values))).astype(float) for values in (own, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def _pace(own: np.ndarray, other: np.ndarray) -> float | None:
    """Fall of the loss from step 1 to the mean of steps 2 to 4, relative to the reference's, where it stands out."""
    if len(own) < 4:
        return None
    falls = [float(values[0] - values[1:4].mean()) for values in (own, other)]
    return falls[0] / falls[1] if falls[1] > 2 * step_noise(np.array(other)) / np.sqrt(3) and falls[1] > SMALL else None
