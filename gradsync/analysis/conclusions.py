"""What follows from the figures, in sentences: who won and by how much, at what loss, and where the time went.

Nothing here is said of runs that may not be ranked, and no winner is named where the ranges over the epochs overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.analysis import figures, words
from gradsync.analysis.breakdown import breakdown
from gradsync.analysis.comparison import Comparison, difference_shows
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, enumerated, joined, msg, term

WORTH_NAMING = 0.10  # share of a step


def conclusions(comparison: Comparison, standard_error: tuple[float, int] | None) -> list[Text]:
    """``standard_error``: of a best accuracy in points, and the validation samples behind it."""
    if len(comparison.ranking) < 2:
        return []
    return [*_fastest(comparison.ranking), *_price(comparison.ranking, standard_error), *_time(comparison.ranking)]


def _fastest(runs: Sequence[Run]) -> list[Text]:
    """First and last place, each only where it differs from every other run."""
    first, last = runs[0], runs[-1]
    best = figures.throughput(first)
    rivals = [run for run in runs[1:] if difference_shows(best, figures.throughput(run)) is not True]
    found = [_level([first, *rivals]) if rivals else _ahead(first, runs[1])]
    slowest = figures.throughput(last)
    if len(runs) > 2 and all(difference_shows(figures.throughput(run), slowest) for run in runs[:-1]):
        found.append(msg("{name} is the slowest: {speed} img/s, {share} of the throughput of {other}.", name=last.name,
                         speed=words.number(slowest.median), share=words.percent(slowest.median / best.median),
                         other=first.name))
    return found


def _level(runs: Sequence[Run]) -> Text:
    """Why the fastest of ``runs`` is not called the winner."""
    best, names = figures.throughput(runs[0]), joined([run.name for run in runs])
    if any(difference_shows(best, figures.throughput(run)) is None for run in runs[1:]):
        return msg("No winner can be named: the ranges of {names} are not all known, so their differences cannot be "
                   "judged.", names=names)
    return msg("No winner is shown: {names} differ by no more than their epoch-to-epoch ranges.", names=names)


def _ahead(winner: Run, runner_up: Run) -> Text:
    best, second = figures.throughput(winner), figures.throughput(runner_up)
    return msg("{name} is the fastest: {speed} img/s, {gain} more than {other} ({other_speed} img/s).",
               name=winner.name, speed=words.number(best.median), gain=words.percent(best.median / second.median - 1),
               other=runner_up.name, other_speed=words.number(second.median))


def _price(runs: Sequence[Run], standard_error: tuple[float, int] | None) -> list[Text]:
    """What the speed bought: the losses and accuracies that the ranked runs reached."""
    found: list[Text] = []
    losses = [loss for run in runs if (loss := figures.final_loss(run)) is not None]
    if len(losses) == len(runs):
        low, high = words.number(min(losses)), words.number(max(losses))
        found.append(msg("All ended at a training loss of {loss}.", loss=low) if low == high else
                     msg("They ended at training losses from {low} to {high}.", low=low, high=high))
    reached = [best for run in runs if figures.accuracy_is_meaningful(run)
               and (best := figures.best_accuracy(run)) is not None]
    if len(reached) == len(runs) and standard_error:
        found.append(_accuracies(reached, standard_error[0]))
    return found


def _accuracies(reached: Sequence[float], error: float) -> Text:
    gap = max(reached) - min(reached)
    facts = {"gap": words.number(gap, 2), "error": words.number(error, 2)}
    if gap == 0:
        return msg("All reached a best validation accuracy of {accuracy} %.", accuracy=f"{reached[0]:.2f}")
    if gap <= error:
        return msg("Best validation accuracies differ by {gap} points, no more than one standard error ({error} "
                   "points): no difference shown.", **facts)
    return msg("Best validation accuracies differ by {gap} points; one standard error is {error} points.", **facts)


def _time(runs: Sequence[Run]) -> list[Text]:
    return [msg("{run}: {figures}.", run=run.name, figures=parts) for run in runs if (parts := time_parts(run))]


def time_parts(run: Run) -> Text | None:
    """The segments that take a tenth of a step or more, largest first; None where the file holds no phases."""
    found = breakdown(run)
    if found is None:
        return None
    named = sorted(((seconds, name) for name, seconds in found.segments.items()
                    if seconds >= WORTH_NAMING * found.total), reverse=True)
    parts = [msg("{share} {segment}", share=words.percent(seconds / found.total), segment=term(name))
             for seconds, name in named]
    return msg("a step takes {step} ms: {parts}", step=words.milliseconds(found.total), parts=enumerated(parts))
