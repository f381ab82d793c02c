"""The table of all runs, as aligned plain text."""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.analysis import figures
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.load import BASELINE, Run
from gradsync.analysis.words import NOT_KNOWN, accuracy, milliseconds, number, shortened

NAME_WIDTH = 18
HEADER = (
    ("Method", "Replicas", "Through-", "Time per", "Step", "Exposed", "Speed-up", "Final", "Best val", "Verdict"),
    ("", "(ranks)", "put img/s", "epoch s", "ms", "comm. ms", "", "train loss", "acc. %", ""),
)


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), gap: str = "  ") -> list[str]:
    """Columns as wide as their widest cell; those in ``left`` are flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        gap.join(cell.ljust(width) if column in left else cell.rjust(width)
                 for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def comparison_table(comparison: Comparison) -> list[str]:
    """Speed beside convergence, one line a run, failed runs last; at most about 110 characters wide."""
    rows = [*HEADER, *(_row(comparison, run) for run in comparison.runs)]
    rows += [(shortened(run.name, NAME_WIDTH), *["-"] * 8, "failed") for run in comparison.loaded.failed]
    lines = aligned(rows, left=(0, len(HEADER[0]) - 1))
    rule = "-" * max(map(len, lines))
    return [*lines[: len(HEADER)], rule, *lines[len(HEADER) :]]


def _row(comparison: Comparison, run: Run) -> tuple[str, ...]:
    speed, time = figures.throughput(run), figures.epoch_time(run)
    return (
        shortened(run.name, NAME_WIDTH),
        _replicas(run),
        number(speed.median if speed else None),
        number(time.median if time else None),
        milliseconds(figures.step_time(run)),
        exposed(run),
        speedup(comparison, run),
        number(figures.final_loss(run)),
        accuracy(figures.best_accuracy(run), figures.accuracy_is_meaningful(run)),
        comparison.verdict(run),
    )


def _replicas(run: Run) -> str:
    count, world = figures.replicas(run), run.results.world_size
    return f"{count if count else '?'} ({world if world else '?'})"


def exposed(run: Run) -> str:
    """Exposed communication in ms."""
    if not figures.has_peers(run):
        return "none"
    spread = figures.exposed_communication(run)
    return milliseconds(spread.median) if spread else NOT_KNOWN


def speedup(comparison: Comparison, run: Run) -> str:
    """``1.23``, with ``~`` where no difference is shown and ``?`` where the spread is not known."""
    if comparison.withheld:
        return "withheld"
    found = comparison.speedup(run)
    if found is None:
        return "-"
    if run.name == BASELINE:
        return "1.00"
    return f"{found.ratio:.2f}" + {True: "", False: " ~", None: " ?"}[found.shown]
