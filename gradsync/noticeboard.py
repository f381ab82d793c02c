"""What the ranks of a job tell each other beside their collectives: where they are, and what went wrong first.

It lies in the launcher's store, which outlives the ranks. A call to a store may block for as long as a link is
down, so one thread makes all of them, and nobody else waits longer than it wants to.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.distributed as dist

from gradsync.position import Position, here
from gradsync.process import host_identity

BEAT_SECONDS = 0.5
ANSWER_SECONDS = 3.0  # to claim a cause; a store that does not answer in this time is given up


@dataclass(frozen=True)
class Cause:
    """Why the job ends: its line, the rank to blame (None: no single one), and whether a rank has said it.

    ``status`` is the exit code of all ranks. An unspoken cause is left to the launcher, who knows more.
    """

    line: str
    rank: int | None = None
    spoken: bool = True
    status: int = 1
    by: int = 0  # the rank that has named it


@dataclass
class Sighting:
    """The last that was seen of a rank. Times are those of this rank's monotonic clock."""

    position: Position
    beat: int
    seen: float
    moved: float


class Noticeboard:
    """One rank's connection to the board. ``sightings`` are kept fresh for the ranks in ``watched``."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.cause: Cause | None = None
        self.sightings: dict[int, Sighting] = {}
        self.watched: Iterable[int] = [(rank + 1) % world_size]
        self.answered = time.monotonic()
        self._store, self._rank, self._world_size, self._beat = store, rank, world_size, 0
        self._claim: Cause | None = None
        self._decided, self._wake, self._closing = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._exchange, name="noticeboard", daemon=True)

    def meet(self, *about: int) -> dict[int, list[int]]:
        """Wait for all ranks; what the others on this host say ``about`` themselves, by rank. Call before ``start``."""
        host = host_identity()
        self._store.set(f"process/{self._rank}", json.dumps([host, *about]))
        processes = [json.loads(self._store.get(f"process/{rank}")) for rank in range(self._world_size)]
        return {rank: rest for rank, (theirs, *rest) in enumerate(processes) if theirs == host and rank != self._rank}

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._thread.join(ANSWER_SECONDS)

    def watch_all(self) -> None:
        """From now on keep an eye on every rank; one suffices while all is well."""
        self.watched = range(self._world_size)

    def claim(self, cause: Cause) -> bool:
        """Name the cause of the job's end. False if another rank has named one before, which is in ``cause``."""
        self._claim = replace(cause, by=self._rank)
        self._wake.set()
        self._decided.wait(ANSWER_SECONDS)
        if self.cause is None:  # the store is gone, so nobody can contradict
            self.cause = self._claim
        return self.cause == self._claim

    def _exchange(self) -> None:
        while not self._closing:
            try:
                self._tell()
                self._listen()
                self.answered = time.monotonic()
            except RuntimeError:
                pass  # no answer, perhaps only for now; for how long that may go on is the watchdog's decision
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()

    def _tell(self) -> None:
        self._beat += 1
        self._store.set(f"beat/{self._rank}", json.dumps({"beat": self._beat, "position": asdict(here)}))
        if self._claim is not None and self.cause is None:
            self._decide(self._store.compare_set("cause", "", json.dumps(asdict(self._claim))))

    def _listen(self) -> None:
        if self.cause is None and self._store.check(["cause"]):
            self._decide(self._store.get("cause"))
        for rank in self.watched:
            if self._store.check([f"beat/{rank}"]):
                self._see(rank, json.loads(self._store.get(f"beat/{rank}")))

    def _decide(self, first: bytes) -> None:
        self.cause = Cause(**json.loads(first))
        self._decided.set()

    def _see(self, rank: int, notice: dict[str, Any]) -> None:
        now, position, last = time.monotonic(), Position(**notice["position"]), self.sightings.get(rank)
        seen = last.seen if last and last.beat == notice["beat"] else now
        moved = last.moved if last and last.position.progress == position.progress else now
        self.sightings[rank] = Sighting(position, notice["beat"], seen, moved)
