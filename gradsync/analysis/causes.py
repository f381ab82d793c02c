"""Why a synchronous run left the reference's loss curve: the known mistakes, ranked by what the figures say of each.

Every mistake has a signature. Other weights or other data show at step 1, a wrong average from the first update
on (step 2), an unweighted one after the first unequal shares, another schedule late. What a file rules out
(fingerprints that agree, recipes that are equal) is not suspected at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradsync.analysis import figures
from gradsync.analysis.deviation import Deviation
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, clauses, msg, reasons
from gradsync.analysis.words import count, number

SHOWN = 3
SAME_LOSS = 1e-6  # relative: the same weights on the same samples, in float32
SLOWER = 0.05  # of the first losses: what counts as a higher end


@dataclass(frozen=True)
class Facts:
    """What the causes are judged by. ``None``: the files do not tell."""

    run: Run
    reference: Run
    figures: Deviation
    shared: bool | None  # all replicas held the same parameters
    same_start: bool | None  # as the reference
    same_recipe: bool | None

    @property
    def first_agrees(self) -> bool:
        return self.figures.first <= self.figures.rounding

    @property
    def worse(self) -> bool:
        return self.figures.end > SLOWER * self.figures.scale

    @property
    def from_first_update(self) -> bool:
        """Whether steps agree until the first update, and not after it. Momentum needs a step to show."""
        return self.figures.onset in (1, 2)


@dataclass(frozen=True)
class Suspicion:
    weight: float
    cause: Text
    reasons: list[Text]


def facts(run: Run, reference: Run, found: Deviation, same_recipe: bool | None) -> Facts:
    prints = [run.results.initial_fingerprints, *(epoch.fingerprints for epoch in run.results.epochs)]
    shared = None if not any(prints) else all(len(set(each)) == 1 for each in prints if each)
    starts = [each.results.initial_fingerprints for each in (run, reference)]
    same_start = starts[0][0] == starts[1][0] if all(starts) else None
    return Facts(run, reference, found, shared, same_start, same_recipe)


def ranked_causes(known: Facts) -> Text:
    """The most likely causes, best supported first, each with its evidence."""
    suspected = [suspicion for judge in CAUSES if (suspicion := judge(known)) and suspicion.weight >= 1]
    suspected.sort(key=lambda suspicion: -suspicion.weight)
    if not suspected:
        return msg("the runs do not compute the same updates")
    texts = [msg("({place}) {cause}: {reasons}", place=place, cause=each.cause, reasons=reasons(each.reasons))
             for place, each in enumerate(suspected[:SHOWN], start=1)]
    return msg("most likely first: {causes}", causes=clauses(texts)) if len(texts) > 1 else msg(
        "most likely: {cause}", cause=texts[0])


def _weigh(cause: Text, evidence: list[tuple[bool, float, Text]]) -> Suspicion:
    held = [(weight, text) for holds, weight, text in evidence if holds]
    return Suspicion(sum(weight for weight, _ in held), cause, [text for _, text in held])


def _step_1(known: Facts) -> Text:
    return msg("step 1 differs already, by {share} of the loss", share=number(known.figures.first, 2))


def _step_2(known: Facts) -> Text:
    return msg("step 1 agrees and step {step} does not", step=(known.figures.onset or 0) + 1)


def _pace(known: Facts) -> Text:
    return msg("the loss then falls {pace} times as fast with {count} replicas", pace=number(known.figures.pace, 2),
               count=count(figures.replicas(known.run)))


def weights_not_shared(known: Facts) -> Suspicion | None:
    """Each replica trains a network of its own with gradients averaged over different ones: it learns badly."""
    if known.shared or (figures.replicas(known.run) or 2) < 2:
        return None
    chance = figures.chance_loss(known.run)
    both_untrained = chance is not None and figures.chance_loss(known.reference) is not None
    return _weigh(msg("the replicas never got the same initial weights"), [
        (known.shared is False, 6, msg("the fingerprints of the replicas differ")),
        (both_untrained and known.worse, 3,
         msg("both runs begin near ln {classes} = {chance}, as untrained networks do, but this one ends {end} higher",
             classes=chance[0] if chance else "", chance=number(chance[1] if chance else None, 3),
             end=number(known.figures.end, 2))),
        (not known.first_agrees, 0.5, _step_1(known)),
    ])


def another_start(known: Facts) -> Suspicion | None:
    if known.same_start:
        return None
    far = known.figures.first > 0.25
    return _weigh(msg("another start than the reference: seed, pretrained weights or model"), [
        (known.same_start is False, 5, msg("the fingerprints of the two starts differ")),
        (far, 3, _step_1(known)),
        (not known.first_agrees and not far and not known.figures.significant, 1.5,
         msg("step 1 differs, and the curves then keep together")),
    ])


def gradient_summed(known: Facts) -> Suspicion | None:
    replicas, pace = figures.replicas(known.run) or 0, known.figures.pace
    if replicas == 1 or (pace is not None and 0 <= pace < 1) or (known.same_recipe and not known.first_agrees):
        return None
    return _weigh(msg("the gradients are summed, not averaged, as if the learning rate were multiplied by the number "
                      "of replicas"), [
        (known.from_first_update, 2, _step_2(known)),
        (pace is not None and pace > 1.5, 2, _pace(known)),
        (known.figures.unrest > 2, 1.5,
         msg("it is {unrest} times as unsteady", unrest=number(known.figures.unrest, 2))),
        (known.from_first_update and pace is not None and pace < 0, 1, msg("the loss rises at once")),
    ])


def gradient_too_small(known: Facts) -> Suspicion | None:
    replicas, pace = figures.replicas(known.run) or 0, known.figures.pace
    if replicas == 1 or (pace is not None and pace > 1) or (known.same_recipe and not known.first_agrees):
        return None
    slower = pace is not None and replicas > 1 and 0.5 / replicas <= pace <= 1.6 / replicas
    return _weigh(msg("the gradients are divided twice, or only one replica's are applied"), [
        (known.from_first_update, 1.5 if known.figures.first <= SAME_LOSS else 0.5, _step_2(known)),
        (slower, 1.5, _pace(known)),
        (known.worse and known.from_first_update and not known.figures.unrest > 2, 0.5,
         msg("it ends {end} higher", end=number(known.figures.end, 2))),
    ])


def unweighted_average(known: Facts) -> Suspicion | None:
    """Shares of unequal size that count alike: always, or only where the last global batch is short."""
    batch, replicas = figures.global_batch(known.run), figures.replicas(known.run)
    steps, samples = known.run.results.steps_per_epoch, known.run.results.samples_per_epoch
    if replicas == 1 or (known.same_recipe and not known.first_agrees):
        return None
    uneven = bool(batch and replicas and batch % replicas)
    last = bool(batch and replicas and samples and samples % batch % replicas)
    if batch and replicas and samples and not uneven and not last:
        return None
    after_last = bool(steps) and known.figures.onset in (steps, steps + 1) and not uneven
    return _weigh(msg("shares of unequal size are averaged as if they were equal"), [
        (after_last, 4, msg("the runs agree until the short last batch of epoch 1, and not after it")),
        (uneven and known.from_first_update, 1.75,
         msg("a global batch of {batch} does not divide by {count} replicas", batch=batch, count=replicas)),
        (uneven and known.from_first_update and not known.figures.significant, 1,
         msg("the difference stays within the noise of batches")),
    ])


def other_data(known: Facts) -> Suspicion | None:
    correlation = known.figures.correlation
    same_weights = bool(known.same_start) and known.shared is not False and not known.first_agrees
    if known.same_recipe and not same_weights:
        return None
    return _weigh(msg("another order of the data, or other transforms"), [
        (same_weights, 3, msg("step 1 differs, by {share} of the loss, though the weights are the same",
                              share=number(known.figures.first, 2))),
        (correlation is not None and correlation < 0.5, 2,
         msg("the ups and downs of the two curves hardly agree (correlation {correlation})",
             correlation=number(correlation, 2))),
        (not same_weights and not known.first_agrees and known.figures.first <= 0.25, 0.75, _step_1(known)),
    ])


def another_schedule(known: Facts) -> Suspicion | None:
    if known.same_recipe:
        return None
    onset, length = known.figures.onset, figures.steps(known.run, known.run.results.epochs[0])
    late = onset is not None and onset > 9
    boundary = late and bool(length) and min(onset % length, -onset % length) <= 2
    return _weigh(msg("another learning-rate schedule, weight decay or momentum"), [
        (late, 2, msg("the curves part only at step {step}", step=(onset or 0) + 1)),
        (boundary, 1.5, msg("that is where an epoch begins")),
    ])


CAUSES: tuple[Callable[[Facts], Suspicion | None], ...] = (
    weights_not_shared, another_start, gradient_summed, gradient_too_small, unweighted_average, other_data,
    another_schedule,
)
