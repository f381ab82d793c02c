"""Non-linear least squares: Levenberg 1944 and Marquardt 1963 (doi:10.1137/0111030), with numerical derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEP = 1e-4  # of the numerical derivatives; the unknowns are logarithms
TRIES = 100
SETTLED = 1e-7  # relative gain of a step below which it is the last


@dataclass(frozen=True)
class Fit:
    """``values`` [p]; ``errors`` [p]: standard errors, infinite for what the residuals do not depend on."""

    values: np.ndarray
    errors: np.ndarray


def fit(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> Fit:
    """The values that minimise the sum of squares of ``residuals``, found from ``start``."""
    values, damping = start.astype(float), 1e-2
    current = residuals(values)
    jacobian = _derivatives(residuals, values, current)
    for _ in range(TRIES):
        normal, slope = jacobian.T @ jacobian, jacobian.T @ current
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -slope)
        trial = residuals(values + step)
        gain = 1 - (trial @ trial) / (current @ current)
        if gain < 0:
            damping *= 4
            if damping > 1e8:
                break
            continue
        values, current, damping = values + step, trial, damping / 3
        if gain < SETTLED:
            break
        jacobian = _derivatives(residuals, values, current)
    return Fit(values, _standard_errors(jacobian, current))


def _derivatives(residuals: Callable[[np.ndarray], np.ndarray], values: np.ndarray, at: np.ndarray) -> np.ndarray:
    columns = []
    for index in range(len(values)):
        moved = values.copy()
        moved[index] += STEP
        columns.append((residuals(moved) - at) / STEP)
    return np.array(columns).T


def _standard_errors(jacobian: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Of a linear model with these derivatives: Gauss's formula."""
    free = max(1, len(residuals) - jacobian.shape[1])
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * (residuals @ residuals) / free
    errors = np.sqrt(np.diag(covariance))
    return np.where(np.abs(jacobian).sum(axis=0) > 0, errors, np.inf)
