"""What the charts show, in words: their titles, and the figures in them for readers who do not see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradsync.analysis import figures, words
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.conclusions import time_parts
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, clauses, msg
from gradsync.analysis.table import exposed


@dataclass(frozen=True)
class Picture:
    """``describe`` states one run's figures."""

    title: Text
    kind: Text
    describe: Callable[[Run], Text]

    def alternative(self, comparison: Comparison) -> Text:
        """The text that stands for the picture."""
        runs = [msg("{run}: {figures}", run=run.name, figures=msg("invalid, see the audit") if
                    comparison.verdict(run) == "invalid" else self.describe(run)) for run in comparison.runs]
        return msg("{kind}. {figures}.", kind=self.kind, figures=clauses(runs) if runs else msg("no complete run"))


def _spread(measure: Callable[[Run], figures.Spread | None]) -> Callable[[Run], Text]:
    def describe(run: Run) -> Text:
        spread = measure(run)
        if spread is None or spread.n == 1:
            return words.number(spread.median if spread else None)
        return msg("{median} ({low} to {high})", median=words.number(spread.median), low=words.number(spread.low),
                   high=words.number(spread.high))

    return describe


def _losses(run: Run) -> Text:
    losses = run.results.all_losses
    if not losses:
        return words.NOT_KNOWN
    return msg("from {first} at step 1 to {last} in the last epoch", first=words.number(losses[0]),
               last=words.number(figures.final_loss(run)))


def _accuracies(run: Run) -> Text:
    return msg("best {accuracy}", accuracy=words.accuracy(figures.best_accuracy(run),
                                                          figures.accuracy_is_meaningful(run)))


PICTURES: dict[str, Picture] = {
    "throughput_comparison": Picture(
        msg("Throughput"), msg("Bar chart of throughput in img/s, median and range over the epochs"),
        _spread(figures.throughput)),
    "training_time_comparison": Picture(
        msg("Training time"), msg("Bar chart of seconds per epoch, median and range over the epochs"),
        _spread(figures.epoch_time)),
    "loss_curves": Picture(msg("Training loss"), msg("Curves of the training loss per optimizer step"), _losses),
    "accuracy_curves": Picture(
        msg("Validation accuracy"), msg("Curves of the validation accuracy in % after each epoch"), _accuracies),
    "communication_overhead": Picture(
        msg("Communication per step"), msg("Bar chart of exposed communication in ms per step"), exposed),
    "time_breakdown": Picture(
        msg("Where the time of a step went"), msg("Stacked bars of the milliseconds of a step"),
        lambda run: time_parts(run) or words.NOT_KNOWN),
}
