"""What a comparison of runs in one process says: its file, its table, its charts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradsync.analysis import canvas, curves, figures
from gradsync.analysis.comparison import Comparison, difference_shows
from gradsync.analysis.layout import aligned, wrapped
from gradsync.analysis.load import SINGLE, Loaded, Run
from gradsync.results import DatasetInfo, Environment, ModelInfo, RunResults
from gradsync.section import Seconds, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = (("Method", "Best val", "Time per epoch, s", "Total", "Speed-up", "Devices"),
          ("", "acc. %", "median (range)", "time, s", "", ""))
MARKS = {True: "", False: " ~", None: " ?"}
MEANINGS = {" ~": "~ no difference shown: it is smaller than the range over the epochs",
            " ?": "? one epoch has no range, so whether there is a difference is not known"}


class Entry(Section):
    """One method: what its run showed, or why it was skipped. Accuracies in percent.

    Times are those of training: warm-up, evaluation and start-up are outside. ``speedup`` is the median time per
    epoch of the single device divided by this one's; ``difference_shown`` says whether the two medians differ by more
    than the wider range over the epochs, and is null where there is no range, or nothing to compare with.
    """

    method: str
    title: str
    status: Literal["complete", "skipped"]
    reason: str = ""  # why it was skipped
    remark: str = ""  # what must be known about its parallelism
    devices: list[str] | None = None
    chunks: int | None = None  # micro-batches of a step
    best_val_accuracy: float | None = None
    final_val_accuracy: float | None = None
    time_per_epoch: Seconds | None = None  # median
    time_per_epoch_range: tuple[Seconds, Seconds] | None = None
    total_time: Seconds | None = None  # of all epochs
    speedup: float | None = None
    difference_shown: bool | None = None

    @property
    def speedup_text(self) -> str:
        """``1.62``, with ``~`` where no difference is shown and ``?`` where the range is not known."""
        return f"{self.speedup:.2f}" + ("" if self.method == SINGLE else MARKS[self.difference_shown])


class ParallelComparison(Section):
    """The file ``parallel_comparison.json``. The first entry is the single device's."""

    schema_version: int = 1
    start_time: str
    end_time: str
    dataset: DatasetInfo
    model: ModelInfo
    recipe: dict[str, Any]
    environment: Environment
    entries: list[Entry]


def title_of(results: RunResults) -> str:
    chunks = results.parallelism["chunks"]
    return f"{results.title}, {chunks} chunks" if chunks > 1 else str(results.title)


def complete_entry(results: RunResults, single: RunResults) -> Entry:
    """What a finished run showed, and its speed-up over the finished run ``single``."""
    own, base = (figures.spread_of(epoch.train_time for epoch in run.epochs) for run in (results, single))
    return Entry(
        method=results.method, title=title_of(results), status="complete", **results.parallelism,
        best_val_accuracy=results.best_accuracy, final_val_accuracy=results.epochs[-1].val_accuracy,
        time_per_epoch=own.median, time_per_epoch_range=(own.low, own.high),
        total_time=sum(epoch.train_time for epoch in results.epochs),
        speedup=base.median / own.median,
        difference_shown=None if results is single else difference_shows(own, base),
    )


def table(entries: Sequence[Entry]) -> list[str]:
    """One line a method, skipped ones too; below it the reasons and what else must be known."""
    lines = aligned([*HEADER, *map(_row, entries)], left=(0, len(HEADER[0]) - 1))
    rule = "-" * max(map(len, lines))
    notes = [f"{entry.title}: {f'skipped, {entry.reason}' if entry.reason else entry.remark}"
             for entry in entries if entry.reason or entry.remark]
    notes += [meaning for mark, meaning in MEANINGS.items() if any(row.endswith(mark) for row in _speedups(entries))]
    return [*lines[:2], rule, *lines[2:], rule, *(line for note in notes for line in wrapped(note))]


def _row(entry: Entry) -> tuple[str, ...]:
    if entry.status == "skipped":
        return (entry.title, "-", "-", "-", "skipped", "-")
    low, high = entry.time_per_epoch_range
    return (entry.title, f"{entry.best_val_accuracy:.2f}", f"{entry.time_per_epoch:.2f} ({low:.2f} - {high:.2f})",
            f"{entry.total_time:.2f}", entry.speedup_text, ", ".join(entry.devices or ()))


def _speedups(entries: Sequence[Entry]) -> list[str]:
    return [entry.speedup_text for entry in entries if entry.status == "complete"]


def draw(entries: Sequence[Entry], results: Sequence[RunResults], directory: Path) -> dict[Path, bytes]:
    """The charts, by their path below ``directory``: the training curves of any comparison, and the speed-up."""
    runs = [Run(directory / f"results_{one.method}.json", one, one.method, title_of(one)) for one in results]
    comparison = Comparison(Loaded(directory, runs, []), findings=[])
    with canvas.quiet_matplotlib():
        pictures = {"loss_curves": curves.loss_curves(comparison),
                    "accuracy_curves": curves.accuracy_curves(comparison),
                    "parallel_speedup": speedup_chart(entries, comparison)}
    return {Path("plots") / f"{name}.png": picture for name, picture in pictures.items()}


def speedup_chart(entries: Sequence[Entry], comparison: Comparison) -> bytes:
    """One horizontal bar a method; a skipped one has its reason in place of the bar."""
    caption = ("Median time per epoch of the single device divided by that of the method, training only; whisker: "
               "the method's slowest to fastest epoch (~ no difference shown, ? range not known). Below each bar: "
               "final training loss, best validation accuracy. ")
    caption += " ".join(f"{entry.title}: {entry.remark}." for entry in entries if entry.remark)
    figure, (axes,) = canvas.new_chart(0.85 + 0.42 * len(entries), "Speed-up over a single device", caption)
    base = entries[0].time_per_epoch
    end = max(base / entry.time_per_epoch_range[0] for entry in entries if entry.status == "complete")
    for place, entry in enumerate(entries):
        if entry.status == "skipped":
            axes.text(0.01 * end, place, textwrap.fill(f"skipped: {entry.reason}", 52), va="center", style="italic",
                      color=canvas.FAINT, fontsize=6, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        else:
            _speedup_bar(axes, place, entry, comparison, base, end)
    axes.axvline(1, color=canvas.INK, linewidth=0.7, linestyle=":", zorder=0)
    axes.set_yticks(range(len(entries)), [textwrap.fill(entry.title, 18) for entry in entries])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(entries) - 0.45, -0.5)
    axes.set_xlim(0, end * 1.6)
    axes.set_xlabel("times as fast as the single device")
    return canvas.to_png(figure)


def _speedup_bar(axes: Axes, place: int, entry: Entry, comparison: Comparison, base: float, end: float) -> None:
    run = comparison.run(entry.method)
    low, high = entry.time_per_epoch_range
    axes.barh(place, entry.speedup, 0.42, color=canvas.colour(comparison, run))
    if high > low:
        axes.plot([base / high, base / low], [place, place], color=canvas.INK, linewidth=0.9, marker="|", markersize=4)
    axes.text(base / low + 0.02 * end, place, f"{entry.speedup_text}  ({entry.time_per_epoch:.3g} s)", va="center")
    axes.text(0.01 * end, place + 0.36, canvas.convergence(run), va="center", fontsize=5.8, color=canvas.FAINT)
