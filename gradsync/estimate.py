"""How long a comparison will take: an estimate from measured steps, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradsync.datasets import ImageData
from gradsync.measure import Measured, estimated_seconds, rescaled
from gradsync.study import Planned


def seconds_of_methods(runs: Sequence[Planned], measured: Mapping[str, Measured], data: ImageData,
                       import_seconds: float, cores: int) -> dict[str, float]:
    """Seconds of all runs of each method. A run whose method was not measured is taken for one of the first's."""
    seconds: dict[str, float] = {}
    for run in runs:
        one = rescaled(measured.get(run.name) or next(iter(measured.values())), run.share)
        # torchrun imports torch, and then its ranks do, as many at a time as there are cores.
        startup = import_seconds * (1 + max(1.0, run.ranks / cores) if run.ranks else 1)
        estimate = estimated_seconds(one, run.plan, data, run.replicas, startup)
        seconds[run.name] = seconds.get(run.name, 0.0) + estimate
    return seconds


def in_words(seconds: float) -> str:
    """40 s, 1 min 20 s, 3 h 5 min, 2 days 4 h: two units, which is more than an estimate deserves."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {second} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"
