"""An epoch in segments: a checkpoint ends one, and stops the clock until the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradsync.method import Tally
from gradsync.results import ServerEpoch


class EpochRecord:
    """What one replica has measured of an epoch so far, over all its segments, also those of an interrupted run."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.tally = Tally(steps, device)
        self.seconds = 0.0
        self.phases: dict[str, float] = {}
        self.step_times: list[float] = []

    def add(self, seconds: float, phases: dict[str, float], step_times: list[float]) -> None:
        """One more segment: its wall time, and what the clock says of it."""
        self.seconds += seconds
        self.phases = {name: self.phases.get(name, 0.0) + phases.get(name, 0.0) for name in {**self.phases, **phases}}
        self.step_times += step_times

    def state_dict(self) -> dict[str, Any]:
        return {"tally": self.tally.state_dict(), "seconds": self.seconds, "phases": self.phases,
                "step_times": self.step_times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tally.load_state_dict(state["tally"])
        self.seconds, self.phases, self.step_times = state["seconds"], state["phases"], state["step_times"]


def merged(parts: Sequence[ServerEpoch]) -> ServerEpoch:
    """A server's epoch from its segments: seconds per step weigh by updates, counts add up."""
    updates = sum(part.updates for part in parts)
    dumps = [part.model_dump() for part in parts]
    values: dict[str, float | int] = {}
    for name, value in dumps[0].items():
        if isinstance(value, float):
            values[name] = sum(dump[name] * dump["updates"] for dump in dumps) / max(1, updates)
        else:
            values[name] = sum(dump[name] for dump in dumps)
    return ServerEpoch.model_validate(values)
