"""Curves over the course of training. Correct synchronous methods lie on each other, and must all be seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsync.analysis import figures
from gradsync.analysis.canvas import FAINT, colour, label, new_chart, say_instead, to_png
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.load import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1000  # about the width of the chart in pixels; more cannot be seen
# From wide and solid at the bottom to narrow and dotted on top: each shows around or through the next.
LINES = (
    {"linestyle": "-", "linewidth": 3.2, "marker": "o", "markersize": 6.5},
    {"linestyle": (0, (5, 1.6)), "linewidth": 1.9, "marker": "s", "markersize": 5.2},
    {"linestyle": (0, (1.2, 1.2)), "linewidth": 1.3, "marker": "^", "markersize": 3.9},
    {"linestyle": (0, (4, 1.5, 1, 1.5)), "linewidth": 0.8, "marker": "D", "markersize": 2.6},
)
ALONE = {"linewidth": 1.4, "markersize": 4}


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean over ``window`` (odd) values; near the ends the window shrinks and stays centred."""
    half = np.minimum(window // 2, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    return (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)


def envelope(values: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the lowest and highest value in each of ``points / 2`` stretches: keeps every spike."""
    if len(values) <= points:
        return np.arange(len(values)), values
    edges = np.linspace(0, len(values), points // 2 + 1).astype(int)
    chosen = [edge + place for edge, end in pairwise(edges)
              for place in sorted((int(values[edge:end].argmin()), int(values[edge:end].argmax())))]
    return np.array(chosen), values[chosen]


def smoothing_window(count: int) -> int:
    """About 4% of the steps, at least five, odd."""
    return max(5, count // 25) // 2 * 2 + 1


def loss_curves(comparison: Comparison) -> bytes:
    """Training loss per optimizer step, raw and smoothed; below it the difference from the first run, smoothed."""
    runs = [run for run in comparison.runs if run.results.all_losses]
    losses = [np.array(run.results.all_losses) for run in runs]
    rows = (1,) if len(runs) < 2 else (3, 1.1)
    figure, (axes, *below) = new_chart(1.9 + 0.6 * len(rows), "Training loss", _loss_caption(comparison, runs), rows)
    if not runs:
        say_instead(axes, "no run holds losses per step")
        return to_png(figure)
    for run, values in zip(runs, losses, strict=True):
        places, raw = envelope(values)
        axes.plot(places + 1, raw, color=colour(comparison, run), alpha=0.25, linewidth=0.5, zorder=1)
    for index, (run, values) in enumerate(zip(runs, losses, strict=True)):
        _line(axes, comparison, run, index, *_smoothed_points(values), every=(0.05 + 0.06 * index, 0.25))
        if index:
            common = min(len(values), len(losses[0]))
            difference = _smoothed_points(values[:common] - losses[0][:common])
            _line(below[0], comparison, run, index, *difference, every=None, marker="")
    for lower in below:
        lower.axhline(0, color=colour(comparison, runs[0]), linewidth=0.8)
        lower.set_ylabel(f"minus {label(runs[0], 12)}")
    axes.set_ylabel("loss")
    axes.set_xlim(left=0)
    (below or [axes])[-1].set_xlabel("optimizer step")
    _mark_epochs(axes, runs)
    axes.legend(handlelength=4)
    return to_png(figure)


def _loss_caption(comparison: Comparison, runs: list[Run]) -> str:
    windows = sorted({smoothing_window(len(run.results.all_losses)) for run in runs})
    lacking = [run.name for run in comparison.runs if run not in runs]
    if not runs:
        return ""
    text = f"Thin: loss of each global batch. Bold: centred mean over {' or '.join(map(str, windows))} steps."
    if len(runs) > 1:
        text += " Below: difference of the bold curves. Synchronous methods lie on each other, up to rounding."
    return text + (f" No losses per step in: {', '.join(lacking)}." if lacking else "")


def _smoothed_points(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps (from 1) and running mean at about ``POINTS`` of them, without the ends, where few steps are averaged."""
    window = smoothing_window(len(values))
    trim = window // 4 if len(values) > 2 * window else 0
    chosen = np.unique(np.linspace(trim, len(values) - 1 - trim, POINTS).astype(int))
    return chosen + 1, smoothed(values, window)[chosen]


def accuracy_curves(comparison: Comparison) -> bytes:
    """Validation accuracy after each epoch, where the data set has one to reach."""
    from matplotlib.ticker import MaxNLocator

    runs = [run for run in comparison.runs if figures.accuracy_is_meaningful(run)
            and any(epoch.val_accuracy is not None for epoch in run.results.epochs)]
    synthetic = [run.name for run in comparison.runs if not figures.accuracy_is_meaningful(run)]
    lacking = [run.name for run in comparison.runs if run not in runs and run.name not in synthetic]
    caption = "After each epoch; every validation image is counted once."
    caption += f" Not shown, synthetic data: {', '.join(synthetic)}." if synthetic and runs else ""
    caption += f" No accuracies in: {', '.join(lacking)}." if lacking else ""
    figure, (axes,) = new_chart(2.5, "Validation accuracy", caption if runs else "")
    if not runs:
        say_instead(axes, "n/a: the data is synthetic, so there is no accuracy to reach" if synthetic
                    else "no run holds accuracies")
        return to_png(figure)
    for index, run in enumerate(runs):
        points = [(epoch.epoch, epoch.val_accuracy) for epoch in run.results.epochs if epoch.val_accuracy is not None]
        _line(axes, comparison, run, index, *zip(*points, strict=True), every=None)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(handlelength=4)
    return to_png(figure)


def _line(axes: Axes, comparison: Comparison, run: Run, index: int, x: Sequence[float], y: Sequence[float],
          *, every: tuple[float, float] | None, **overrides: Any) -> None:
    style: dict[str, Any] = {"zorder": 2 + index} | LINES[index % len(LINES)]
    style["linewidth"] *= 0.5 ** (index // len(LINES))  # a fifth line must not hide the first
    style |= (ALONE if len(comparison.runs) == 1 else {}) | overrides
    axes.plot(x, y, color=colour(comparison, run), label=label(run, 30), markevery=every, markeredgecolor="white",
              markeredgewidth=0.5, **style)


def _mark_epochs(axes: Axes, runs: list[Run]) -> None:
    """Ends of epochs along the top, where all runs agree on them."""
    lengths = {figures.steps(run, run.results.epochs[0]) for run in runs if run.results.epochs}
    if len(lengths) != 1 or not (length := lengths.pop()):
        return
    from matplotlib.ticker import MaxNLocator

    top = axes.secondary_xaxis("top", functions=(lambda step: step / length, lambda epoch: epoch * length))
    top.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    top.set_xlabel("epoch")
    top.tick_params(color=FAINT)
