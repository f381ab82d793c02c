"""Where the time of a step went, by run."""

from __future__ import annotations

from dataclasses import dataclass

from gradsync.analysis import figures
from gradsync.analysis.load import Run

# In the order of a step, which is also the order of the bars. The second name is the key in the file.
PHASES = {
    "data wait": "data_wait",
    "pull": "pull",
    "compute": "forward_backward",
    "all-reduce": "all_reduce",
    "push": "push",
    "optimizer": "optimizer",
}
COMMUNICATION = ("pull", "all-reduce", "push")
FROM_PROBE = "exposed comm. (from the probe)"
INSEPARABLE = "compute + comm. (not separable)"
OTHER = "other"
SEGMENTS = ("data wait", "pull", "compute", INSEPARABLE, FROM_PROBE, "all-reduce", "push", "optimizer", OTHER)


@dataclass(frozen=True)
class Breakdown:
    """Seconds per step of each segment in one epoch, in the order of ``SEGMENTS``; zeros are left out."""

    segments: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.segments.values())


def breakdown(run: Run) -> Breakdown | None:
    """The phases of the epoch of median length, per step; None where the file holds none.

    One epoch, so that the segments add up to a step that took place; the median one, as in the headline.
    Where several replicas communicate inside the backward pass (DDP), the exposed communication of the probe
    is taken out of the computation. What no phase covers is ``other``.
    """
    timed = [(epoch.train_time / count, epoch.phases, count) for epoch in run.results.epochs
             if epoch.phases and epoch.train_time and (count := figures.steps(run, epoch))]
    if not timed:
        return None
    step, phases, count = sorted(timed, key=lambda entry: entry[0])[(len(timed) - 1) // 2]
    seconds = {name: phases.get(key, 0.0) / count for name, key in PHASES.items()}
    if figures.has_peers(run) and not any(seconds[name] for name in COMMUNICATION):
        seconds |= _overlapped(run, seconds["compute"])
    seconds[OTHER] = max(0.0, step - sum(seconds.values()))
    return Breakdown({name: seconds[name] for name in SEGMENTS if seconds.get(name)})


def _overlapped(run: Run, forward_backward: float) -> dict[str, float]:
    exposed = figures.exposed_communication(run)
    if exposed is None:
        return {"compute": 0.0, INSEPARABLE: forward_backward}
    communication = min(max(0.0, exposed.median), forward_backward)
    return {"compute": forward_backward - communication, FROM_PROBE: communication}
