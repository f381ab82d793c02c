"""Who wins at which bandwidth and number of hosts: the model over a range of links, the measured cells on top of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsync.analysis import canvas
from gradsync.analysis.canvas import INK, legend_in, new_chart, to_png
from gradsync.analysis.cost_grid import Cell, Errors, predict, rows
from gradsync.analysis.cost_model import Costs, servers_of
from gradsync.probed import ComputeProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS_PER_DECADE = 40
SHADES = (canvas.BLUE, canvas.ORANGE, canvas.GREEN, canvas.VERMILION, canvas.PURPLE, canvas.SKY, canvas.YELLOW,
          canvas.GREY)
RIGHT, TIED, WRONG = "right", "tied", "wrong"
MARKS = {RIGHT: ("o", "the winner of the measurement is that of the model"),
         TIED: ("s", "the model's winner measured no slower: quartiles overlap"),
         WRONG: ("X", "another one wins: the model is wrong")}


@dataclass(frozen=True)
class Standing:
    """The best and the second best row by img/s, and by what factor the best leads."""

    best: str
    second: str
    lead: float


def throughput(cell: Cell, row: str, seconds: float) -> float:
    """img/s over all replicas, from the seconds of a step."""
    return cell.batch_size * (cell.hosts - servers_of(row)) / seconds


def ranked(cell: Cell, rates: dict[str, float]) -> Standing:
    """``rates``: img/s by row."""
    best, second = sorted(rates, key=lambda row: rates[row], reverse=True)[:2]
    return Standing(best, second, rates[best] / rates[second])


def measured_standing(cell: Cell, candidates: Sequence[str]) -> Standing:
    return ranked(cell, {row: throughput(cell, row, cell.step[row][1]) for row in candidates if row in cell.step})


def predicted_standing(cell: Cell, candidates: Sequence[str], costs: Costs) -> Standing:
    return ranked(cell, {row: throughput(cell, row, predict(cell, row, costs)) for row in candidates
                         if row in cell.step})


def verdict(cell: Cell, candidates: Sequence[str], costs: Costs) -> str:
    """Whether the model names the row that won here."""
    ours, theirs = (predicted_standing(cell, candidates, costs).best, measured_standing(cell, candidates).best)
    if ours == theirs:
        return RIGHT
    fastest = [throughput(cell, row, cell.step[row][which]) for row, which in ((ours, 0), (theirs, 2))]
    return TIED if fastest[0] >= fastest[1] else WRONG


def at_rate(cells: Sequence[Cell], hosts: int, rate: float) -> Cell:
    """A cell that was not measured: the computing of the measured ones with so many hosts, on another link."""
    like = [cell for cell in cells if cell.hosts == hosts]
    profiles = {servers: median_profile([cell.profiles[servers] for cell in like]) for servers in like[0].profiles}
    return like[0].model_copy(update={"rate": rate, "profiles": profiles})


def median_profile(profiles: Sequence[ComputeProfile]) -> ComputeProfile:
    """The one whose step is the middle one: its parts belong together, as medians of parts would not."""
    return sorted(profiles, key=lambda profile: profile.step)[(len(profiles) - 1) // 2]


def crossover_chart(cells: Sequence[Cell], costs: Costs, errors: Errors, told_apart: float) -> bytes:
    """Two panels: all rows, and those that send the gradients as they are.

    In the latter DDP stands for the overlapped all-reduce too: they do the same, so neither would ever lead.
    """
    everything = list(dict.fromkeys(row for cell in cells for row in rows(cell)))
    exact = [row for row in everything if not row.endswith(("fp16", "bf16", "powersgd", "overlapped"))]
    panels = [("compression allowed", everything), ("exact gradients; DDP for all that overlaps", exact)]
    caption = (f"MODEL, fitted to {len(cells)} measured cells. Held-out cells: median error {errors.median:.0%}, worst "
               f"{errors.worst:.0%}. Colour: the most img/s predicted; hatched: the lead over the second is within "
               f"{told_apart:.0%}, which the model cannot tell. Marks are measured cells in the colour of the "
               f"measured winner. {cells[0].model}, {cells[0].batch_size} images of {cells[0].image_size}x"
               f"{cells[0].image_size} per replica, {cells[0].cores} cores for all hosts.")
    figure, (*panel_axes, below) = new_chart(4.4, "Who wins (model)", caption, (1, 1, 0.95))
    shown: dict[str, str] = {}
    verdicts: list[str] = []
    for axes, (title, candidates) in zip(panel_axes, panels, strict=True):
        axes.set_title(title, loc="left", fontsize=7)
        draw_bands(axes, cells, candidates, costs, told_apart, shown)
        verdicts += draw_cells(axes, cells, candidates, costs, shown)
    finish(panel_axes, cells)
    legend_in([below], legend_handles(shown, verdicts))
    return to_png(figure)


def shade(row: str, shown: dict[str, str]) -> str:
    return shown.setdefault(row, SHADES[len(shown) % len(SHADES)])


def draw_bands(axes: Axes, cells: Sequence[Cell], candidates: Sequence[str], costs: Costs, told_apart: float,
               shown: dict[str, str]) -> None:
    """One band a number of hosts: the predicted winner along the rates."""
    slowest, fastest = (extreme(cell.rate for cell in cells) for extreme in (min, max))
    count = int(POINTS_PER_DECADE * math.log10(2 * fastest / (slowest / 2)))
    edges = [slowest / 2 * (4 * fastest / slowest) ** (index / count) for index in range(count + 1)]
    for hosts in sorted({cell.hosts for cell in cells}):
        for left, right in itertools.pairwise(edges):
            standing = predicted_standing(at_rate(cells, hosts, math.sqrt(left * right)), candidates, costs)
            unsure = standing.lead < 1 + told_apart
            axes.barh(hosts, right - left, 0.8, left=left, color=shade(standing.best, shown), linewidth=0,
                      alpha=0.45)
            if unsure:
                axes.barh(hosts, right - left, 0.8, left=left, color="none", hatch="//////", edgecolor="white",
                          linewidth=0)


def draw_cells(axes: Axes, cells: Sequence[Cell], candidates: Sequence[str], costs: Costs, shown: dict[str, str]
               ) -> list[str]:
    verdicts = []
    for cell in cells:
        verdicts.append(verdict(cell, candidates, costs))
        axes.plot(cell.rate, cell.hosts, MARKS[verdicts[-1]][0], markersize=7, markeredgecolor=INK,
                  markeredgewidth=0.9, color=shade(measured_standing(cell, candidates).best, shown), zorder=4)
    return verdicts


def finish(panel_axes: Sequence[Axes], cells: Sequence[Cell]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for axes in panel_axes:
        axes.set_xscale("log")
        axes.set_ylabel("hosts")
        axes.set_yticks(sorted({cell.hosts for cell in cells}))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False)
        axes.set_xlim(min(cell.rate for cell in cells) / 2, 2 * max(cell.rate for cell in cells))
        axes.xaxis.set_major_locator(FixedLocator(sorted({cell.rate for cell in cells})))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate / 1e9:g}" if rate else ""))
        axes.xaxis.set_minor_locator(NullLocator())
    panel_axes[-1].tick_params(labelbottom=True)
    panel_axes[-1].set_xlabel("link of each host, Gbit/s in each direction")


def legend_handles(shown: dict[str, str], verdicts: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks = [Line2D([], [], marker=MARKS[kind][0], linestyle="", color="white", markeredgecolor=INK, markersize=5,
                    label=f"{MARKS[kind][1]} ({verdicts.count(kind)})") for kind in MARKS if kind in verdicts]
    return [Patch(facecolor=colour, alpha=0.7, label=row) for row, colour in shown.items()] + marks
