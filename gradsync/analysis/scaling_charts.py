"""The two charts of a speed-up study: speed-up and efficiency against ideal, and the parts of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradsync.analysis import canvas
from gradsync.analysis.canvas import FAINT, INK, label, new_chart, say_instead, to_png
from gradsync.analysis.curves import LINES
from gradsync.analysis.load import SINGLE
from gradsync.analysis.scaling import Scaled, Study
from gradsync.analysis.step_parts import PARTS
from gradsync.analysis.words import milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINEAR_UP_TO = 8  # replicas; beyond, an axis on which doubling takes equal space
UNKNOWN_STYLE = {"facecolor": "none", "edgecolor": FAINT, "linestyle": "--", "linewidth": 0.6}
PART_STYLE = dict(zip(PARTS, ((canvas.YELLOW, ""), (canvas.BLUE, ""), (canvas.ORANGE, "////"), ("#cccccc", "")),
                      strict=True))


def speedup_chart(study: Study) -> bytes:
    """Speed-up over the single device and efficiency, by replicas, each with its range over the repeats."""
    methods = _by_method(study, lambda row: row.speedup is not None and row.name != SINGLE)
    most = max((row.replicas or 1 for rows in methods.values() for row in rows), default=1)
    title = "Speed-up over the single device"
    if most == 1:
        figure, (axes,) = new_chart(1.5, title, "")
        say_instead(axes, "no speed-up to show: it is withheld, the single device is missing, or no run has more than "
                          "one replica")
        return to_png(figure)
    figure, (axes, below) = new_chart(3.4, title, _speedup_caption(study), (2.4, 1))
    axes.plot([1, most], [1, most], color=FAINT, linestyle="--", linewidth=0.9, label="ideal", zorder=1)
    below.axhline(100, color=FAINT, linestyle="--", linewidth=0.9, zorder=1)
    for index, (name, rows) in enumerate(methods.items()):
        style, shade = LINES[index % len(LINES)], _shade(study, name)
        width = 0.55 * style["linewidth"] * 0.5 ** (index // len(LINES))  # a fifth line must not hide the first
        places = [row.replicas for row in rows]
        for panel, measured in ((axes, [row.speedup for row in rows]), (below, [row.efficiency for row in rows])):
            unit = 100 if panel is below else 1
            for place, spread in zip(places, measured, strict=True):
                if spread.n > 1:  # behind the marker, which a range may be smaller than
                    panel.plot([place, place], [unit * spread.low, unit * spread.high], color=INK, linewidth=0.8,
                               marker="_", markersize=5, zorder=2)
            panel.plot(places, [unit * spread.median for spread in measured], color=shade, markeredgecolor="white",
                       markeredgewidth=0.5, zorder=3 + index, label=label(rows[0].runs[0], 26),
                       **style | {"linewidth": width, "markersize": 0.8 * style["markersize"]})
    _finish_axes(axes, below, most, sorted({row.replicas for rows in methods.values() for row in rows} | {1}))
    axes.legend(loc="upper left", handlelength=4)
    return to_png(figure)


def _finish_axes(axes: Axes, below: Axes, most: int, places: list[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    if most > LINEAR_UP_TO:
        places = [2**power for power in range(most.bit_length())]  # others would run into each other
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_ylim(0.5, most * 4)
        axes.yaxis.set_major_locator(FixedLocator(places))
    else:
        axes.set_ylim(0, most * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(places))
    for axis in (axes.xaxis, axes.yaxis, below.xaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(ScalarFormatter())
    below.set_ylim(0, max(110.0, below.get_ylim()[1]))
    axes.set_ylabel("speed-up")
    below.set_ylabel("efficiency, %")
    below.set_xlabel("replicas (ranks that compute gradients)")


def _speedup_caption(study: Study) -> str:
    count = len(study.repeats)
    spread = (f"Medians of {count} repeats; whisker: lowest to highest." if count > 1 else
              "One run each, so no range is known.")
    kept = {"strong": "Strong scaling: one global batch for all.",
            "weak": "Weak scaling: one batch per replica."}.get(study.rule, "")
    return (f"{kept} Throughput / throughput of the single device in the same repeat. {spread} Efficiency: speed-up / "
            "replicas; a server is no replica.").strip()


def breakdown_chart(study: Study) -> bytes:
    """The parts of a step at each number of ranks, stacked; what is not known stays an empty frame."""
    from matplotlib.patches import Patch

    methods = _by_method(study, lambda row: row.parts is not None)
    bars = [row for rows in methods.values() for row in rows]
    figure, (axes,) = new_chart(1.0 + 0.2 * (len(bars) + 1.4 * max(1, len(methods))), "Where the time of a step goes",
                                _breakdown_caption(study, bars) if bars else "")
    if not bars:
        say_instead(axes, "no run tells how long its steps take")
        return to_png(figure)
    end = 1e3 * max(_length(row) for row in bars)
    place, ticks = 0.0, []
    for rows in methods.values():
        title = " ".join(label(rows[0].runs[0], 60).split())
        axes.text(0.005 * end, place, title, va="center", fontsize=6.5, fontweight="bold", color=INK)
        for row in rows:
            place += 1
            ticks.append((place, f"{row.ranks} rank{'s'[: row.ranks > 1]}"))
            _stack(axes, study, place, row, end)
        place += 1.3
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(place - 0.5, -0.6)
    axes.set_xlim(0, end * 1.32)
    axes.set_xlabel("milliseconds per step")
    used = [name for name in PARTS if any((row.parts.by_name[name] or 0) > 0 for row in bars)]
    handles = [Patch(facecolor=PART_STYLE[name][0], hatch=PART_STYLE[name][1], edgecolor="white", label=name)
               for name in used]
    if any(row.parts.rest is None for row in bars):
        handles.append(Patch(**UNKNOWN_STYLE, label="not known"))
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, columnspacing=0.8,
                handlelength=1.1)
    return to_png(figure)


def _length(row: Scaled) -> float:
    """Seconds that a bar takes: its step, or its parts where they exceed it."""
    return max(row.parts.step, sum(max(0.0, value or 0.0) for value in row.parts.by_name.values()))


def _stack(axes: Axes, study: Study, place: float, row: Scaled, end: float) -> None:
    left = 0.0
    for name, seconds in row.parts.by_name.items():
        if seconds is None:
            continue
        shade, hatch = PART_STYLE[name]
        axes.barh(place, max(0.0, seconds) * 1e3, 0.66, left=left, color=shade, hatch=hatch, edgecolor="white",
                  linewidth=0.4)
        left += max(0.0, seconds) * 1e3
    step, lost = row.parts.step * 1e3, study.lost(row)
    if row.parts.rest is None and left < step:
        axes.barh(place, step - left, 0.66, left=left, **UNKNOWN_STYLE)
    if row.name != SINGLE and lost:
        ideal = step * (1 - lost.total)
        axes.plot([ideal, ideal], [place - 0.42, place + 0.42], color=INK, linewidth=1.1, zorder=4)
    axes.text(max(left, step) + 0.015 * end, place, str(milliseconds(row.parts.step)), va="center", fontsize=6)


def _breakdown_caption(study: Study, bars: list[Scaled]) -> str:
    text = ("Data wait as measured in training; compute (a step without synchronisation) and exposed communication "
            "from the probe, medians; rest: what these leave of the step, whose length stands at the bar.")
    if any(row.name != SINGLE and study.lost(row) for row in bars):
        text += " Upright line: the step of ideal speed-up, the single device's divided by the replicas' shares."
    if any(row.parts.rest is not None and row.parts.rest < -0.02 * row.parts.step for row in bars):
        text += " Where the parts exceed the step, the probe's steps were slower than those of training."
    return text


def _by_method(study: Study, wanted: Callable[[Scaled], bool]) -> dict[str, list[Scaled]]:
    found: dict[str, list[Scaled]] = {}
    for row in study.rows:
        if row.runs and wanted(row):
            found.setdefault(row.name, []).append(row)
    return found


def _shade(study: Study, name: str) -> str:
    others = [other for other in dict.fromkeys(row.name for row in study.rows) if other not in canvas.METHOD_COLOURS]
    return canvas.METHOD_COLOURS.get(name) or canvas.FURTHER_COLOURS[others.index(name) % len(canvas.FURTHER_COLOURS)]
