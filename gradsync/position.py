"""Where a process is in its run, said so cheaply (about a microsecond) that every phase of every step can say it.

The main thread writes it into memory that the other processes of this host map. So it can be read when the process
is stopped or gone, and a thread of its own is not needed for it.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from gradsync.process import memory_file

STAGES = ("start-up", "link probe", "warm-up", "training", "validation", "end of epoch", "writing the results",
          "leaving")
LAYOUT = struct.Struct("<4q32s")  # stage, epoch, step, moves, phase


@dataclass
class Position:
    """A stage of the run and, where it has them, epoch and step (from 1; 0 means none) and the phase of the step."""

    stage: str = STAGES[0]
    epoch: int = 0
    step: int = 0
    phase: str = ""
    moves: int = 0  # since the stage began

    def enter(self, stage: str, epoch: int = 0, step: int = 0) -> None:
        self.stage, self.epoch, self.step, self.phase, self.moves = stage, epoch, step, "", -1
        self.moved()

    def next_step(self) -> None:
        self.step, self.phase = self.step + 1, ""
        self.moved()

    def finish_steps(self) -> None:
        """What looked like the beginning of one more step was the end of the last: there is no batch for it."""
        self.step -= 1
        self.begin("after the last step")

    def begin(self, phase: str) -> None:
        self.phase = phase
        self.moved()

    def moved(self) -> None:
        self.moves += 1

    @property
    def progress(self) -> tuple[bool, int, int, int]:
        """Sorts positions of one run: all but the last stages come again in each epoch."""
        return self.stage in STAGES[-2:], self.epoch, STAGES.index(self.stage), self.moves

    def __str__(self) -> str:
        parts = [f"{self.stage} ({self.phase})" if self.phase else self.stage]
        parts += [f"{name} {number}" for name, number in (("epoch", self.epoch), ("step", self.step)) if number]
        return ", ".join(parts)


class SharedPosition(Position):
    """A position that other processes can read once it is shared."""

    _memory: mmap.mmap | None = None

    def share(self) -> int:
        """A descriptor; ``PeerPosition`` takes it, with this process's id, in another process of the same user."""
        descriptor = memory_file()
        os.ftruncate(descriptor, LAYOUT.size)
        self._memory = mmap.mmap(descriptor, LAYOUT.size)
        self.moved()
        return descriptor

    def moved(self) -> None:
        super().moved()
        if self._memory is not None:
            LAYOUT.pack_into(self._memory, 0, STAGES.index(self.stage), self.epoch, self.step, self.moves,
                             self.phase.encode())


class PeerPosition:
    """What another process of this host has shared; it stays readable when that process has ended."""

    def __init__(self, pid: int, descriptor: int) -> None:
        """Raises OSError if the process is gone or does not let this one look."""
        file = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY)
        self._memory = mmap.mmap(file, LAYOUT.size, access=mmap.ACCESS_READ)
        os.close(file)

    def read(self) -> Position:
        """Fields written at the very moment of reading may be those of two neighbouring positions."""
        stage, epoch, step, moves, phase = LAYOUT.unpack_from(self._memory)
        return Position(STAGES[stage], epoch, step, phase.rstrip(b"\0").decode(), moves)


here = SharedPosition()  # of this process
