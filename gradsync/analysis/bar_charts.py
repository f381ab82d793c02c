"""Charts with one horizontal bar or group of bars a method, so that long names stay readable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradsync.analysis import canvas, figures
from gradsync.analysis.breakdown import FROM_PROBE, INSEPARABLE, OTHER, SEGMENTS, breakdown
from gradsync.analysis.canvas import FAINT, INK, colour, convergence, label, new_chart, say_instead, standing, to_png
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.load import BASELINE, Run
from gradsync.analysis.message import joined
from gradsync.analysis.table import speedup
from gradsync.analysis.words import milliseconds, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_RUN = "no complete run"
PHASE_COLOURS = {"pull": canvas.SKY, "all-reduce": canvas.ORANGE, "push": canvas.VERMILION}
SEGMENT_STYLE: dict[str, tuple[str, str]] = {
    "data wait": (canvas.YELLOW, ""),
    "pull": (canvas.SKY, ""),
    "compute": (canvas.BLUE, ""),
    INSEPARABLE: (canvas.BLUE, "xxxx"),
    FROM_PROBE: (canvas.ORANGE, "////"),
    "all-reduce": (canvas.ORANGE, ""),
    "push": (canvas.VERMILION, ""),
    "optimizer": (canvas.GREEN, ""),
    OTHER: ("#cccccc", ""),
}


def throughput_comparison(comparison: Comparison) -> bytes:
    """Median img/s over the epochs, with range."""

    def text(run: Run, spread: figures.Spread) -> str:
        ratio, _, mark = str(speedup(comparison, run)).partition(" ")
        return f"{number(spread.median, 3)}" + (f"  ({ratio}x {mark}".rstrip() + ")" if ratio[0].isdigit() else "")

    caption = ("Median over the epochs of one run; whisker: lowest to highest epoch. In brackets: throughput relative "
               "to DDP (~ no difference shown, ? spread not known). Below each bar: final training loss, best "
               f"validation accuracy. {standing(comparison)}")
    return _measured_bars(comparison, figures.throughput, text, "Throughput", "images per second, all replicas",
                          caption)


def training_time_comparison(comparison: Comparison) -> bytes:
    """Median seconds per epoch, with range, and the total."""

    def text(run: Run, spread: figures.Spread) -> str:
        total = sum(epoch.train_time or 0.0 for epoch in run.results.epochs)
        return f"{number(spread.median, 3)}" + (f"  (all {number(total, 3)})" if total else "")

    caption = ("Wall time of the training part of an epoch, evaluation excluded: median over the epochs of one run; "
               "whisker: lowest to highest epoch; in brackets: all epochs. Below each bar: final training loss, best "
               f"validation accuracy. {standing(comparison)}")
    return _measured_bars(comparison, figures.epoch_time, text, "Training time", "seconds per epoch", caption)


def _measured_bars(comparison: Comparison, measure: Callable[[Run], figures.Spread | None],
                   text: Callable[[Run, figures.Spread], str], title: str, unit: str, caption: str) -> bytes:
    runs = comparison.runs
    title += ": not comparable" if comparison.withheld else ""
    figure, (axes,) = new_chart(0.85 + 0.42 * max(2, len(runs)), title, caption if runs else "")
    if not runs:
        say_instead(axes, NO_RUN)
        return to_png(figure)
    spreads = [measure(run) for run in runs]
    end = max((spread.high for spread in spreads if spread), default=1.0) or 1.0
    for place, (run, spread) in enumerate(zip(runs, spreads, strict=True)):
        axes.text(0.01 * end, place + 0.36, convergence(run), va="center", fontsize=5.8, color=FAINT)
        if spread is None:
            axes.text(0.01 * end, place, "not known", va="center", color=FAINT, style="italic")
            continue
        invalid = comparison.verdict(run) == "invalid"
        axes.barh(place, spread.median, 0.42, color="none" if invalid else colour(comparison, run),
                  edgecolor=FAINT if invalid else "none", hatch="////" if invalid else None, linestyle="--")
        if spread.n > 1:
            axes.plot([spread.low, spread.high], [place, place], color=INK, linewidth=0.9, marker="|", markersize=4)
        axes.text(spread.high + 0.02 * end, place, "invalid, see report" if invalid else text(run, spread), va="center")
    _finish_bars(axes, runs, end * 1.6, unit)
    return to_png(figure)


def _finish_bars(axes: Axes, runs: list[Run], end: float, unit: str, start: float = 0.0) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_yticks(range(len(runs)), [label(run) for run in runs])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(runs) - 0.45, -0.5)
    axes.set_xlim(start, end)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(unit)


def _legend_above(axes: Axes, handles: list, columns: int) -> None:
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, columnspacing=1.0,
                handlelength=1.2)


def communication_overhead(comparison: Comparison) -> bytes:
    """Exposed communication of every method, above the measured communication phases, ms per step."""
    caption = ("Upper bar: exposed communication, the step time minus the same step without synchronisation, the same "
               "definition for all; whisker: quartiles of the probe. Lower bar: measured phases, median epoch; "
               "they also contain the wait for slower peers. DDP communicates inside the backward pass, "
               "so it has no phase of its own.")
    runs = comparison.runs
    figure, (axes,) = new_chart(0.95 + 0.45 * max(2, len(runs)), "Communication per step", caption if runs else "")
    if not runs:
        say_instead(axes, NO_RUN)
        return to_png(figure)
    ends = [_communication_bars(axes, place, run) for place, run in enumerate(runs)]
    end = max(ends) or 1.0
    _finish_bars(axes, runs, end * 1.5, "milliseconds per step", min(0.0, *(_lowest(run) for run in runs)))
    axes.axvline(0, color=FAINT, linewidth=0.6)
    from matplotlib.patches import Patch

    used = {phase for run in runs for phase in figures.communication_phases(run)}
    handles = []
    if any(figures.exposed_communication(run) for run in runs):
        handles = [Patch(facecolor="#999999", hatch="////", edgecolor="white", label="exposed (probe)")]
    handles += [Patch(color=shade, label=phase) for phase, shade in PHASE_COLOURS.items() if phase in used]
    if handles:
        _legend_above(axes, handles, len(handles))
    return to_png(figure)


def _lowest(run: Run) -> float:
    spread = figures.exposed_communication(run)
    return 1.1e3 * spread.low if spread else 0.0


def _communication_bars(axes: Axes, place: int, run: Run) -> float:
    """The two bars of one method; returns where the longer one ends, in ms."""
    if not figures.has_peers(run):
        axes.text(0, place, " none: one replica", va="center", color=FAINT, style="italic")
        return 0.0
    spread, phases = figures.exposed_communication(run), figures.communication_phases(run)
    end = 0.0
    if spread:
        low, middle, high = (value * 1e3 for value in (spread.low, spread.median, spread.high))
        axes.barh(place - 0.19, middle, 0.3, color="#999999", hatch="////", edgecolor="white", linewidth=0)
        axes.plot([low, high], [place - 0.19] * 2, color=INK, linewidth=0.9, marker="|", markersize=4)
        axes.text(max(high, 0), place - 0.19, f"  {milliseconds(spread.median)}", va="center")
        end = high
    else:
        axes.text(0, place - 0.19, " exposed: not measured", va="center", color=FAINT, style="italic", fontsize=6)
    left = 0.0
    for phase, seconds in phases.items():
        axes.barh(place + 0.19, seconds * 1e3, 0.3, left=left, color=PHASE_COLOURS[phase], edgecolor="white",
                  linewidth=0.4)
        left += seconds * 1e3
    parts = " + ".join(str(milliseconds(seconds)) for seconds in phases.values())
    absent = " no phase: inside the backward pass" if run.name == BASELINE else " phases: not measured"
    axes.text(left, place + 0.19, f"  {parts}" if phases else absent, va="center",
              **({} if phases else {"color": FAINT, "style": "italic", "fontsize": 6}))
    return max(end, left)


def time_breakdown(comparison: Comparison) -> bytes:
    """Where a step's time went, ms per step, one stacked bar a method."""
    from matplotlib.patches import Patch

    runs = comparison.runs
    parts = [breakdown(run) for run in runs]
    used = [segment for segment in SEGMENTS if any(part and segment in part.segments for part in parts)]
    figure, (axes,) = new_chart(1.2 + 0.4 * max(2, len(runs)), "Where the time of a step went", _time_caption(used))
    if not any(parts):
        names = joined([run.name for run in runs])
        say_instead(axes, f"not known: no phases in the file of {names}" if runs else NO_RUN)
        return to_png(figure)
    end = max(part.total for part in parts if part) * 1e3
    for place, part in enumerate(parts):
        if part is None:
            axes.text(0, place, " not known: the file holds no phases", va="center", color=FAINT, style="italic")
            continue
        left = 0.0
        for segment, seconds in part.segments.items():
            shade, hatch = SEGMENT_STYLE[segment]
            axes.barh(place, seconds * 1e3, 0.55, left=left, color=shade, hatch=hatch, edgecolor="white", linewidth=0.4)
            left += seconds * 1e3
        axes.text(left, place, f"  {milliseconds(part.total)}", va="center")
    _finish_bars(axes, runs, end * 1.15, "milliseconds per step")
    handles = [Patch(facecolor=SEGMENT_STYLE[name][0], hatch=SEGMENT_STYLE[name][1], edgecolor="white", label=name)
               for name in used]
    _legend_above(axes, handles, 3)
    return to_png(figure)


def _time_caption(used: list[str]) -> str:
    """What the segments in the chart mean, and nothing about those that are not in it."""
    if not used:
        return ""
    meanings = {
        "push": "Pull and push contain the wait for slower peers and for the server, whose optimizer runs meanwhile.",
        "all-reduce": "All-reduce contains the wait for slower peers.",
        FROM_PROBE: "Hatched: communication inside the backward pass, its exposed part as the probe found it.",
        INSEPARABLE: "Crossed: communication inside the backward pass, which no probe separated.",
        OTHER: "Other: training time outside any phase.",
    }
    known = [text for name, text in meanings.items() if name in used]
    return " ".join(["Mean over replicas, in the epoch of median length.", *known])
