"""The table of all runs, as aligned plain text."""

from __future__ import annotations

from gradsync.analysis import figures
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.layout import ruled, shortened
from gradsync.analysis.load import BASELINE, Run
from gradsync.analysis.message import ENGLISH, Language, Text, msg, term
from gradsync.analysis.words import NOT_KNOWN, accuracy, milliseconds, number

NAME_WIDTH = 18
HEADER: tuple[tuple[Text, ...], ...] = (
    (msg("Method"), msg("Replicas"), msg("Through-"), msg("Time per"), msg("Step"), msg("Exposed"), msg("Speed-up"),
     msg("Final"), msg("Best val"), msg("Verdict")),
    ("", msg("(ranks)"), msg("put img/s"), msg("epoch s"), "ms", msg("comm. ms"), "", msg("train loss"), msg("acc. %"),
     ""),
)


def comparison_table(comparison: Comparison, language: Language = ENGLISH) -> list[str]:
    """Speed beside convergence, one line a run, failed runs last; at most about 110 columns wide."""
    rows = [*HEADER, *(row(comparison, run) for run in comparison.runs)]
    rows += [(shortened(run.name, NAME_WIDTH), *["-"] * 8, msg("failed")) for run in comparison.loaded.failed]
    return ruled([[language(cell) for cell in row] for row in rows], (0, len(HEADER[0]) - 1), len(HEADER))


def row(comparison: Comparison, run: Run) -> tuple[Text, ...]:
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
        term(comparison.verdict(run)),
    )


def _replicas(run: Run) -> str:
    count, world = figures.replicas(run), run.results.world_size
    return f"{count if count else '?'} ({world if world else '?'})"


def exposed(run: Run) -> Text:
    """Exposed communication in ms."""
    if not figures.has_peers(run):
        return msg("none")
    spread = figures.exposed_communication(run)
    return milliseconds(spread.median) if spread else NOT_KNOWN


def speedup(comparison: Comparison, run: Run) -> Text:
    """``1.23``, with ``~`` where no difference is shown and ``?`` where the spread is not known."""
    if comparison.withheld:
        return msg("withheld")
    found = comparison.speedup(run)
    if found is None:
        return "-"
    if run.name == BASELINE:
        return "1.00"
    return f"{found.ratio:.2f}" + {True: "", False: " ~", None: " ?"}[found.shown]
