"""The rows of the report's tables, a header first, for plain text and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.analysis import figures, words
from gradsync.analysis.breakdown import COMMUNICATION, SEGMENTS, breakdown
from gradsync.analysis.certificate import certificates
from gradsync.analysis.comparison import Comparison, difference_shows, groups_without_difference
from gradsync.analysis.layout import shortened
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, msg, term
from gradsync.analysis.table import exposed, speedup

Rows = list[tuple[Text, ...]]


def ranking_rows(comparison: Comparison) -> Rows:
    """Fastest first, with spread and convergence; runs without a shown difference share a rank."""
    rows: Rows = [("", msg("Method"), "img/s", msg("min - max"), "n", msg("Speed-up"), msg("Train loss"),
                   msg("Best val acc. %"), "")]
    place = 1
    for group in groups_without_difference(comparison.ranking):
        for run in group:
            speed = figures.throughput(run)
            shows = difference_shows(figures.throughput(group[0]), speed)
            remark = msg("no difference shown") if shows is False else msg("spread not known")
            rows.append((
                f"{place}.", shortened(run.name, 22), words.number(speed.median),
                f"{words.number(speed.low)} - {words.number(speed.high)}", str(speed.n), speedup(comparison, run),
                words.number(figures.final_loss(run)), _accuracy(run), "" if run is group[0] else remark,
            ))
        place += len(group)
    return rows


def _accuracy(run: Run) -> Text:
    return words.accuracy(figures.best_accuracy(run), figures.accuracy_is_meaningful(run))


def convergence_rows(runs: Sequence[Run]) -> Rows:
    """Losses and accuracies of each run."""
    rows: Rows = [(msg("Method"), msg("First loss"), msg("Final train loss"), msg("Final val loss"),
                   msg("Final train acc. %"), msg("Best val acc. %"), msg("Steps"))]
    for run in runs:
        losses, last = run.results.all_losses, run.results.epochs[-1] if run.results.epochs else None
        rows.append((
            shortened(run.name, 28),
            words.number(losses[0] if losses else None),
            words.number(figures.final_loss(run)),
            words.number(last.val_loss if last else None),
            words.accuracy(last.train_accuracy if last else None, figures.accuracy_is_meaningful(run)),
            _accuracy(run),
            words.count(figures.total_steps(run)),
        ))
    return rows


def equivalence_rows(runs: Sequence[Run], siblings: Sequence[Run] = ()) -> Rows:
    """The certificate of each run that has a reference."""
    rows: Rows = [(msg("Method"), msg("Reference"), msg("Replicas"), msg("Largest loss difference"),
                   msg("Final parameters"), msg("Verdict"))]
    for found in certificates(runs, siblings):
        rows.append((shortened(found.run.name, 24), shortened(found.reference.name, 24),
                     words.count(figures.replicas(found.run)), found.largest_loss_difference, found.parameters,
                     found.verdict))
    return rows


def time_rows(runs: Sequence[Run]) -> Rows:
    """Milliseconds per step of each segment, and its share."""
    known = [(run, parts) for run in runs if (parts := breakdown(run))]
    if not known:
        return []
    rows: Rows = [(msg("ms per step"), *(shortened(run.name, 24) for run, _ in known))]
    for segment in SEGMENTS:
        values = [parts.segments.get(segment) for _, parts in known]
        if any(values):
            rows.append((term(segment), *(f"{words.milliseconds(value)} ({value / parts.total:4.0%})" if value else "-"
                                    for value, (_, parts) in zip(values, known, strict=True))))
    rows.append((msg("step"), *(f"{words.milliseconds(parts.total)} (100%)" for _, parts in known)))
    return rows


def communication_rows(runs: Sequence[Run]) -> Rows:
    """Exposed communication, measured phases, and volume per step."""
    rows: Rows = [(msg("Method"), msg("Exposed ms"), msg("quartiles"), msg("of the step"), msg("Pull ms"),
                   msg("All-reduce ms"), msg("Push ms"), msg("MB/replica"), msg("MB/server"))]
    for run in runs:
        spread, step = figures.exposed_communication(run), figures.step_time(run)
        phases = figures.communication_phases(run)
        sent = run.results.communication
        rows.append((
            shortened(run.name, 22),
            exposed(run),
            f"{words.milliseconds(spread.low)} - {words.milliseconds(spread.high)}" if spread else "-",
            words.percent(spread.median / step) if spread and step else "-",
            *(words.milliseconds(phases[phase]) if phase in phases else "-" for phase in COMMUNICATION),
            *(words.number(volume / 1e6) if volume is not None else "-" for volume in (
                sent and sent.replica_bytes_per_step, sent and sent.server_bytes_per_step)),
        ))
    return rows
