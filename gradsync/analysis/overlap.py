"""Messages that travel while the processors compute: who waits for whom, and who slows whom down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A transfer: its seconds when nothing else runs, and of these, those in which it needs all processors."""

    seconds: float
    busy: float


def overlapped(computing: float, ready: Sequence[float], jobs: Sequence[Job]) -> tuple[float, list[float]]:
    """When ``computing`` ends, and when each job does, in seconds from a common start.

    A job starts once ``ready`` seconds of the computing are done and the job before it is. Meanwhile it takes what it
    needs of the processors, job.busy / job.seconds of them, and computing gets the rest.
    """
    now = done = 0.0  # done: seconds of the computing, as if it were alone
    finished = None
    ends: list[float] = []
    for start, job in zip(ready, jobs, strict=True):
        start = min(start, computing)
        if done < start:
            now, done = now + start - done, start
        left = 1 - min(1.0, job.busy / job.seconds) if job.seconds else 1.0
        if finished is None and left * job.seconds > computing - done:
            finished = now + (computing - done) / left
        now, done = now + job.seconds, min(computing, done + left * job.seconds)
        ends.append(now)
    return now + computing - done if finished is None else finished, ends
