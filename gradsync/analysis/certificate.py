"""The equivalence certificate: how far each method's losses and final parameters are from the reference's.

The reference is the single-process run where it made the same updates, else the baseline. The distance of parameters
is that of their sketches (64 sums of the parameters under fixed random signs), relative to the way that the reference
went from its start: for a difference d of all parameters, the squared distance of the sketches is |d|^2 in
expectation, with a relative standard deviation of sqrt(2/64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradsync.analysis import figures
from gradsync.analysis.deviation import Deviation
from gradsync.analysis.load import BASELINE, SINGLE, Run
from gradsync.analysis.message import Text, msg
from gradsync.analysis.trajectory import Kind, compared, judged, seed_noise
from gradsync.analysis.words import NOT_KNOWN, number, percent

# Of the reference's way. Float32 rounding grows to one or two per cent within a hundred steps of a recipe that
# converges; runs from other starts end about as far from each other as from their starts.
SAME_PARAMETERS, AMPLIFIED = 0.01, 0.25
VERDICTS: dict[Kind, Text] = {
    "same": msg("equivalent"),
    "amplified rounding": msg("equivalent up to amplified rounding"),
    "another recipe": msg("not shown: another recipe"),
    "asynchronous": msg("not claimed: asynchronous"),
    "unknown rule": msg("not shown: the update rule is not known"),
    "seed noise": msg("within the noise of the seed"),
    "batch norm": msg("not shown: BatchNorm over other shares"),
    "batch noise": msg("within the noise of batches"),
    "different": msg("not equivalent"),
}


@dataclass(frozen=True)
class Certificate:
    """One row. ``losses``, ``identical`` and ``distance`` are None where a file does not tell."""

    run: Run
    reference: Run
    losses: Deviation | None
    identical: bool | None  # the final parameters, to the last bit
    distance: float | None  # of the final parameters, as a share of the reference's way
    verdict: Text

    @property
    def parameters(self) -> Text:
        if self.identical:
            return msg("identical")
        if self.distance is not None:
            return msg("{share} of the way", share=percent(self.distance) if self.distance >= 0.001 else
                       f"{self.distance:.0e}")
        return NOT_KNOWN if self.identical is None else msg("different, not measured")

    @property
    def largest_loss_difference(self) -> Text:
        if self.losses is None:
            return NOT_KNOWN
        return msg("{value} at step {step}", value=number(self.losses.largest, 2), step=self.losses.place + 1)


def certificates(runs: Sequence[Run], siblings: Sequence[Run] = ()) -> list[Certificate]:
    """One for each run that has a reference with the same updates; empty where there is nothing to compare with."""
    noise = seed_noise([*runs, *siblings])
    runs = figures.without_repeats(runs)
    pairs = [(run, reference) for run in runs if (reference := reference_of(run, runs)) is not None]
    return [_certificate(run, reference, noise) for run, reference in pairs]


def reference_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The single-process run if it consumed the same global batches, else the baseline."""
    if run.name == SINGLE:
        return None
    others = {other.name: other for other in runs if other is not run}
    single = others.get(SINGLE)
    return single if single and _same_updates(run, single) else others.get(BASELINE)


def _same_updates(run: Run, other: Run) -> bool:
    sizes = [(figures.global_batch(each), figures.total_steps(each)) for each in (run, other)]
    return sizes[0] == sizes[1] and None not in sizes[0]


def _certificate(run: Run, reference: Run, noise: float | None) -> Certificate:
    has_losses = bool(run.results.all_losses and reference.results.all_losses)
    losses = compared(run, reference) if has_losses else None
    identical, distance = _identical(run, reference), _distance(run, reference)
    verdict = VERDICTS[judged(run, reference, losses, noise)] if losses else msg("not shown: no losses per step")
    if identical and losses and not losses.largest:
        verdict = msg("identical")
    elif verdict == VERDICTS["same"] and distance is not None and distance > SAME_PARAMETERS:
        verdict = VERDICTS["amplified rounding"] if distance <= AMPLIFIED else msg("same losses, other parameters")
    return Certificate(run, reference, losses, identical, distance, verdict)


def _identical(run: Run, reference: Run) -> bool | None:
    last = [each.results.epochs[-1].fingerprints if each.results.epochs else None for each in (run, reference)]
    return len({*last[0], *last[1]}) == 1 if all(last) else None


def _distance(run: Run, reference: Run) -> float | None:
    """Distance of the final parameters as a share of the reference's way from its start; None without sketches."""
    if not run.results.epochs or not reference.results.epochs:
        return None
    own, other = (_sketch(each.results.epochs[-1], "parameter_sketch") for each in (run, reference))
    begin = _sketch(reference.results, "parameter_sketch")
    if not (own and other and begin) or len({len(own), len(other), len(begin)}) != 1:
        return None
    way = math.dist(other, begin)
    return math.dist(own, other) / way if way else None


def _sketch(section: object, key: str) -> list[float] | None:
    found = getattr(section, key, None)
    return found if isinstance(found, list) and all(isinstance(value, int | float) for value in found) else None
