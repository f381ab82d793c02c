"""Where the time of a step goes at each number of ranks: four parts that mean the same for every method.

``breakdown`` shows the phases that a method has. Here methods and numbers of ranks are compared, so a part must be
one thing for all: the wait for data as measured in training, computing and exposed communication as the probe found
them before it. They come from different steps, so what they leave over, ``rest``, is part of the answer.
"""

from __future__ import annotations

import statistics
from dataclasses import astuple, dataclass

from gradsync.analysis import figures
from gradsync.analysis.load import SINGLE, Run

PARTS = ("data wait", "compute", "exposed communication", "rest")


@dataclass(frozen=True)
class StepParts:
    """Seconds of one step. None: not known, and then ``rest`` is not known either; ``rest`` may be negative."""

    step: float
    data_wait: float | None
    compute: float | None
    exposed: float | None

    @property
    def rest(self) -> float | None:
        known = (self.data_wait, self.compute, self.exposed)
        return None if None in known else self.step - sum(known)

    @property
    def by_name(self) -> dict[str, float | None]:
        return dict(zip(PARTS, (self.data_wait, self.compute, self.exposed, self.rest), strict=True))


def step_parts(run: Run) -> StepParts | None:
    """The parts of a run's step; None where it has no step time.

    compute is the probe's median step without synchronisation, with its update. A single device has no probe: there it
    is the phases of computing and of the update, which are that same step, and exposed communication is 0.
    """
    step = figures.step_time(run)
    if step is None:
        return None
    waiting = figures.phase_share(run, "data_wait")
    data_wait = None if waiting is None else waiting * step
    exposed = figures.exposed_communication(run)
    probe = run.results.probe
    if probe and probe.local_step_times:
        return StepParts(step, data_wait, statistics.median(probe.local_step_times), exposed and exposed.median)
    if run.name != SINGLE:
        return StepParts(step, data_wait, None, exposed and exposed.median)
    shares = [figures.phase_share(run, phase) for phase in ("forward_backward", "optimizer")]
    return StepParts(step, data_wait, None if None in shares else step * sum(shares), 0.0)


def median_parts(found: list[StepParts]) -> StepParts | None:
    """Part by part the median over the repeats that know it."""
    columns = zip(*(astuple(parts) for parts in found), strict=True)
    spreads = [figures.spread_of(column) for column in columns]
    return StepParts(*(spread and spread.median for spread in spreads)) if found else None


@dataclass(frozen=True)
class Lost:
    """Where efficiency went, as shares of the step: what exceeds a perfect split of the single device's step.

    ``shares`` (in the order of ``PARTS``; None: not known) add up to ``total``, which is 1 - efficiency: the last one
    is what the others leave, as in a step, and here also what medians of ratios and of times differ by.
    """

    total: float
    shares: dict[str, float | None]


def lost(parts: StepParts, single: StepParts, work: float, efficiency: float) -> Lost:
    """``work``: samples of a replica's share here / those of the single device's batch.

    A perfect step would take ``work`` times the single device's, each part of it alike.
    """
    total = 1 - efficiency
    pairs = {name: (parts.by_name[name], single.by_name[name]) for name in PARTS[:-1]}
    shares = {name: None if None in pair else (pair[0] - work * pair[1]) / parts.step for name, pair in pairs.items()}
    rest = None if None in shares.values() else total - sum(shares.values())
    return Lost(total, shares | {PARTS[-1]: rest})
