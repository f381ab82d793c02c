"""What all charts share: a quiet matplotlib without a display, sizes, colours, and the way to PNG bytes.

Charts are in English whatever the language of the report, since fonts for other scripts may be missing.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsync.analysis import figures
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.layout import shortened
from gradsync.analysis.load import METHODS, Run
from gradsync.analysis.words import accuracy, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.5  # inches: one column of a page, where 6 to 8 points are read without a lens
DPI = 300
INK, FAINT = "#222222", "#6b6b6b"
# Okabe and Ito, "Color Universal Design" (2008): told apart by readers with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#555555"
VERMILION, SKY, PURPLE, YELLOW = "#D55E00", "#56B4E9", "#CC79A7", "#F0E442"
METHOD_COLOURS = dict(zip(METHODS, (BLUE, ORANGE, GREEN, GREY), strict=True))
FURTHER_COLOURS = (PURPLE, SKY, VERMILION, YELLOW)
STYLE = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a method's name may hold a dollar sign
}


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Charts inside this block need no display, no home directory, and print no warnings."""
    _find_writable_configuration()
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as a glyph that no font has
        yield


def _find_writable_configuration() -> None:
    """matplotlib warns and is slow where it cannot write its cache; it gets a temporary directory there."""
    try:
        for place in _configuration_directories():
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
    except (OSError, RuntimeError):  # RuntimeError: no home at all
        temporary = tempfile.mkdtemp(prefix="matplotlib-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["MPLCONFIGDIR"] = temporary


def _configuration_directories() -> list[Path]:
    """Where matplotlib would write; raises RuntimeError where there is no home."""
    if os.environ.get("MPLCONFIGDIR"):
        return [Path(os.environ["MPLCONFIGDIR"])]
    places = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
    return [Path(os.environ.get(key) or Path.home() / name) / "matplotlib" for key, name in places.items()]


def new_chart(height: float, title: str, caption: str, rows: Sequence[float] = (1,), columns: int = 1
              ) -> tuple[Figure, list[Axes]]:
    """A figure with a title, a caption below, and axes of relative heights ``rows``, row by row.

    It is one column of a page wide, or two where there are ``columns`` of axes.
    """
    from matplotlib.figure import Figure

    pages = min(2, columns)
    caption_lines = textwrap.wrap(caption, 76 * pages)
    figure = Figure(figsize=(WIDTH * pages, height + 0.11 * len(caption_lines)), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.02, ha="left", fontsize=8.5, fontweight="bold", color=INK)
    if caption_lines:
        figure.supxlabel("\n".join(caption_lines), x=0.02, ha="left", fontsize=5.8, color=FAINT, linespacing=1.25)
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey="row", height_ratios=rows)
    return figure, list(axes.flat)


def legend_in(row: Sequence[Axes], handles: Sequence[Any], columns: int = 1) -> None:
    """Use the last row of axes as room for a legend of the whole figure.

    It shares the x axis, so the row above it has to ask for its tick labels (``labelbottom``).
    """
    for axes in row:
        axes.set_axis_off()
    legend = row[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=columns)
    legend.set_in_layout(False)


def to_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def say_instead(axes: Axes, text: str) -> None:
    """A sentence where a chart would be empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 48), transform=axes.transAxes, ha="center", va="center", color=FAINT)


def colour(comparison: Comparison, run: Run) -> str:
    others = [other.name for other in comparison.runs if other.name not in METHODS]
    return METHOD_COLOURS.get(run.name) or FURTHER_COLOURS[others.index(run.name) % len(FURTHER_COLOURS)]


def label(run: Run, width: int = 18) -> str:
    """The title of a run in about three lines; legends drop names that begin with an underscore."""
    title = shortened(str(run.title).lstrip("_") or "?", 48)
    breakable = " ".join(word.replace("_", "_ ") if len(word) > width else word for word in title.split())
    return textwrap.fill(breakable, width).replace("_ ", "_")


def convergence(run: Run) -> str:
    """What the speed bought: it stands beside every bar that shows a speed."""
    best = str(accuracy(figures.best_accuracy(run), figures.accuracy_is_meaningful(run)))
    return f"loss {number(figures.final_loss(run), 3)}, acc. {best}" + (" %" if best[0].isdigit() else "")


def standing(comparison: Comparison) -> str:
    """The caption's last word on why the bars must not be ranked."""
    checks = sorted({finding.check for finding in comparison.withheld})
    return f"Not comparable because of: {', '.join(checks)} (see the report)." if checks else ""
