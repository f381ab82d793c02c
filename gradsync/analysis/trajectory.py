"""Whether synchronous methods followed one loss curve: the deviation against rounding, batch noise and seed noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from gradsync.analysis import figures
from gradsync.analysis.causes import facts, ranked_causes
from gradsync.analysis.deviation import EARLY_STEPS, Deviation, deviation
from gradsync.analysis.finding import COMPARISON, Finding
from gradsync.analysis.load import BASELINE, SINGLE, Run
from gradsync.analysis.message import Text, clauses, msg
from gradsync.analysis.words import number

# Rounding cannot reach 1% of the loss in ten steps; afterwards training amplifies it.
SAME_TRAJECTORY = 0.01
# Runs that differ by rounding alone stay within this share of the first losses of each other, a stretch of steps at
# a time.
SAME_END = 0.05
# BatchNorm over shares of another size moves single losses and the end by no more than this.
WITH_BATCHNORM = 0.10
# A few pairs of seeds do not show the largest difference that a seed can make.
SEED_MARGIN = 2.0
# Relative differences of step 1's loss that mean nothing: the order of float32 sums; other kernels and TF32 on a
# GPU (whose mantissa has 10 bits), which is also assumed where the file does not tell; bfloat16 (7 bits), float16.
FLOAT32, TF32, HALF = 1e-4, 2e-3, 2e-2

Kind = Literal["same", "amplified rounding", "another recipe", "asynchronous", "unknown rule", "seed noise",
               "batch norm", "batch noise", "different"]
HARMLESS: dict[Kind, tuple[Text, Text]] = {
    "amplified rounding": (msg("rounding, amplified by training: same early steps, same course, same end"), ""),
    "another recipe": (msg("the recipes differ, so the curves need not agree"), ""),
    "asynchronous": (msg("an asynchronous method makes other updates; it is judged by where it ends"), ""),
    "unknown rule": (msg("another update rule, or a fault: whether this method is synchronous is not known"), ""),
    "seed noise": (msg("more than rounding, but of the size that another seed makes"), ""),
    "batch norm": (msg("the numbers of replicas differ: BatchNorm statistics are per replica"),
                   msg("compare a model without BatchNorm to tell this from a fault")),
    "batch noise": (msg("no more than the noise of single batches; whether both saw the same ones is not known"), ""),
}


def trajectory(runs: Sequence[Run], siblings: Sequence[Run] = ()) -> list[Finding]:
    """Synchronous methods follow the loss of the baseline (or of the single device) step by step."""
    candidates = [run for run in figures.without_repeats(runs) if run.results.all_losses]
    reference = next((run for name in (BASELINE, SINGLE) for run in candidates if run.name == name),
                     candidates[0] if candidates else None)
    if reference is None or len(candidates) < 2:
        return [Finding("trajectory", "not known", COMPARISON, msg("fewer than two files hold losses per step"))]
    noise = seed_noise([*runs, *siblings])
    return [against(run, reference, noise) for run in candidates if run is not reference]


def compared(run: Run, reference: Run) -> Deviation:
    """The deviation of two runs, both of which hold losses."""
    return deviation(run.results.all_losses, reference.results.all_losses, max(rounding(run), rounding(reference)))


def rounding(run: Run) -> float:
    """Relative difference of one loss, same weights and same batch, that another order of sums explains."""
    if (run.results.recipe or {}).get("amp", "off") != "off":
        return HALF
    machine = run.results.environment
    return FLOAT32 if machine and machine.device.lower().startswith("cpu") else TF32


def seed_noise(runs: Sequence[Run]) -> float | None:
    """Largest mean difference of a stretch between runs of one method under several seeds; None without such."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.results.all_losses:
            groups.setdefault(run.results.method, []).append(run)
    pairs = [pair for group in groups.values() for pair in itertools.combinations(group[:5], 2)
             if figures.is_repeat(*pair)]
    return max((abs(compared(*pair).persistent) for pair in pairs), default=None)


def against(run: Run, reference: Run, noise: float | None) -> Finding:
    """``run`` beside ``reference`` as a finding."""
    found = compared(run, reference)
    text, kind = _figures(found, reference, noise), judged(run, reference, found, noise)
    if kind == "same":
        return Finding("trajectory", "pass", run.name, text)
    if kind != "different":
        cause, action = HARMLESS[kind]
        return Finding("trajectory", "note", run.name, text, cause, action)
    known = facts(run, reference, found, figures.same_recipe(run, reference))
    return Finding("trajectory", "suspect", run.name, text, ranked_causes(known),
                   msg("compare the parameters before step 1, then the averaged gradient of step 1, with {name}'s",
                       name=reference.name))


def judged(run: Run, reference: Run, found: Deviation, noise: float | None) -> Kind:
    """What the deviation is: the first of these that holds."""
    early, end, stretch = (abs(value) / found.scale for value in (found.early, found.end, found.persistent))
    if found.largest <= SAME_TRAJECTORY * found.scale:
        return "same"
    if early <= SAME_TRAJECTORY and max(end, stretch) <= SAME_END:
        return "amplified rounding"
    alike = figures.same_recipe(run, reference)
    if alike is False:
        return "another recipe"
    if figures.is_synchronous(run) is not True:
        return "asynchronous" if figures.is_synchronous(run) is False else "unknown rule"
    if noise is not None and abs(found.persistent) <= SEED_MARGIN * noise:
        return "seed noise"
    if _batch_norm_explains(run, reference) and max(early, end) <= WITH_BATCHNORM:
        return "batch norm"
    if alike is None and _within_batch_noise(found):
        return "batch noise"
    return "different"


def _batch_norm_explains(run: Run, reference: Run) -> bool:
    models = [each.results.model for each in (run, reference)]
    may_have = all(model is None or model.batch_norm is not False for model in models)
    return may_have and figures.replicas(run) != figures.replicas(reference)


def _within_batch_noise(found: Deviation) -> bool:
    return not found.significant or abs(found.persistent) <= SAME_END * found.scale


def _figures(found: Deviation, reference: Run, noise: float | None) -> Text:
    text = msg("largest loss difference from {name}: {largest} at step {step} of {steps}; {early} in the first "
               "{count} steps, {end} between the means of the last {tail}", name=reference.name,
               largest=number(found.largest, 2), step=found.place + 1, steps=found.steps, early=number(found.early, 2),
               count=min(found.steps, EARLY_STEPS), end=number(abs(found.end), 2), tail=found.tail)
    if found.largest <= SAME_TRAJECTORY * found.scale:
        return text
    yardstick = msg("rounding explains {rounding} at step 1, where it is {first}",
                    rounding=number(found.rounding * found.scale, 2), first=number(found.first * found.scale, 2))
    batches = msg("worst stretch {persistent}, noise of batches {noise}", persistent=number(abs(found.persistent), 2),
                  noise=number(found.noise, 2))
    seeds = msg("noise of the seed {noise}", noise=number(noise, 2))
    return clauses([text, yardstick, batches, seeds])
