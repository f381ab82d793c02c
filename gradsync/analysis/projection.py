"""From a measured model and link to clusters that nobody has measured: step time and efficiency by replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsync.analysis import canvas
from gradsync.analysis.canvas import FAINT, legend_in, new_chart, to_png
from gradsync.analysis.cost_model import FREE, Cluster, Costs, Link, servers_of, step_time
from gradsync.analysis.layout import shortened
from gradsync.config import TrainConfig
from gradsync.probed import ComputeProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPLICAS = tuple(2**power for power in range(3, 13))
VARIANTS = ("baseline_ddp", "all_reduce_overlapped_fp16", "all_reduce_overlapped_powersgd", "ps_pipelined", "ps")
MOST_LINKS = 4
STYLES = ((canvas.BLUE, "-", "o"), (canvas.VERMILION, "-", "s"), (canvas.PURPLE, "-", "D"), (canvas.GREEN, "--", "^"),
          (canvas.GREY, ":", "v"))


@dataclass(frozen=True)
class Subject:
    """What is projected: a model on a device, as one run measured it, and the flags that it ran with."""

    name: str  # of the model
    profile: ComputeProfile
    config: TrainConfig
    costs: Costs = FREE  # what a ring's step takes beside the link's latency, as probed
    tree: bool = False


def projected_step(subject: Subject, row: str, link: Link, replicas: int, steps: int | None = None) -> float:
    """Seconds; ``steps`` as in ``step_time``. Every replica has its own link and processors; so have servers."""
    cluster = Cluster(replicas + servers_of(row), link, subject.costs, tree=subject.tree)
    return step_time(row, subject.profile, cluster, subject.config, steps)


def efficiency(subject: Subject, row: str, link: Link, replicas: int) -> float:
    """Step without synchronisation / step: the share of ``replicas`` single devices' throughput that is left."""
    return subject.profile.step / projected_step(subject, row, link, replicas)


def projection_chart(subject: Subject, links: dict[str, Link], standing: str) -> bytes:
    """Step time above, efficiency below, a column for each of ``links``. ``standing``: what is known of the error."""
    count = len(links)
    height, room_below = (3.9, 0.75) if count == 1 else (3.4, 0.22)  # one column: a line for each variant
    figure, axes = new_chart(height, f"{shortened(subject.name, 24)} on other clusters (model)",
                             _caption(subject, links, standing), (1, 1, room_below), count)
    above, below, room = axes[:count], axes[count : 2 * count], axes[2 * count :]
    for upper, lower, (name, link) in zip(above, below, links.items(), strict=True):
        upper.set_title(f"links of {name} (model)", loc="left", fontsize=7)
        upper.axhline(1e3 * subject.profile.step, color=FAINT, linestyle="-", linewidth=0.6)
        for row, (colour, line, marker) in zip(VARIANTS, STYLES, strict=True):
            looks = {"color": colour, "linestyle": line, "marker": marker, "markersize": 2.5, "linewidth": 0.9}
            upper.plot(REPLICAS, [1e3 * projected_step(subject, row, link, n) for n in REPLICAS], label=row, **looks)
            lower.plot(REPLICAS, [100 * efficiency(subject, row, link, n) for n in REPLICAS], **looks)
    _finish(above, below)
    legend_in(room, above[0].get_legend_handles_labels()[0], 1 if count == 1 else 3)
    return to_png(figure)


def _finish(above: Sequence[Axes], below: Sequence[Axes]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for panel in [*above, *below]:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(REPLICAS[::3]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for panel in above:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for panel in below:
        panel.set_ylim(0, 105)
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("replicas")
    above[0].set_ylabel("step, ms")
    below[0].set_ylabel("efficiency, %")


def _caption(subject: Subject, links: dict[str, Link], standing: str) -> str:
    shape = "double binary trees" if subject.tree else "a ring"
    latencies = sorted({link.latency for link in links.values()})
    return (f"MODEL, not a measurement. {standing} Assumed: a link and processors for each replica, all-reduce by "
            f"{shape}, {' or '.join(f'{1e6 * latency:,.0f}' for latency in latencies)} us a message, the batch of each "
            "replica as measured, one server; no contention in switches, no stragglers. Horizontal line: a step "
            "without synchronisation. Efficiency: that step / the projected one.")
