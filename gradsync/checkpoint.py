"""Checkpoints: all that a run needs to go on, on the disk, wholly old or wholly new over all ranks.

    checkpoints/<name>/manifest.json             how far the run is, its results so far, each file's checksum
    checkpoints/<name>/generation_7.rank_0.pt    one a rank: its model, and all else that is its own

Every rank writes its file of a new generation. When all are on the disk, the recorder replaces the manifest, and
from that moment the new generation counts; then the older one is removed. Ranks of several hosts must see the same
directory. What ``--resume`` makes of it is in ``gradsync.resume``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from gradsync.config import Plan
from gradsync.distributed import ReplicaContext
from gradsync.errors import JobError, RunError
from gradsync.files import remove_stale_temporaries, write_bytes_atomically
from gradsync.position import here
from gradsync.probe import Stateful
from gradsync.results import CheckpointWriting, RunResults
from gradsync.screen import say
from gradsync.section import Count, Section

MANIFEST = "manifest.json"
SHARED = "with several hosts, --output-dir must be a directory that all of them share"
_FILE = "generation_{}.rank_{}.pt"


class FileRecord(Section):
    """What a rank's file must be, to the bit."""

    bytes: Count
    digest: str


class Manifest(Section):
    """``step`` steps of epoch ``epoch`` are done. ``files`` are by rank."""

    format: Literal[1] = 1
    generation: Count
    epoch: Annotated[int, Field(ge=1)]
    step: Count
    results: RunResults
    files: list[FileRecord]

    def encode(self) -> bytes:
        return signed(self.model_dump(mode="json"))


def signed(content: dict[str, Any]) -> bytes:
    """``content`` as JSON, with its checksum: the one way to write it, so that any other byte is damage."""
    text = json.dumps(content, allow_nan=False)
    return json.dumps({"digest": digest(text.encode()), "manifest": content}).encode()


def digest(data: bytes | memoryview) -> str:
    """128 bits, hex. It finds damage; it does not stop forgery, against which loading is safe by itself."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def rank_file(folder: Path, generation: int, rank: int) -> Path:
    return folder / _FILE.format(generation, rank)


@dataclass(frozen=True)
class DataPosition:
    """A place in the data order: ``step`` steps of epoch ``epoch`` (from 1) are done."""

    epoch: int = 1
    step: int = 0


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found whole, as one rank reads it."""

    manifest: Manifest
    state: dict[str, Any]

    @property
    def position(self) -> DataPosition:
        return DataPosition(self.manifest.epoch, self.manifest.step)


class Checkpoints:
    """The checkpoints of one run, as one rank sees them. Without arguments: a run that neither has nor writes any.

    ``every``: steps between two; None: each epoch's end, after its evaluation; 0: never.
    """

    def __init__(self, ctx: ReplicaContext, plan: Plan, folder: Path = Path(), every: int | None = 0,
                 saved: Saved | None = None) -> None:
        self.ctx, self.plan, self.folder, self.every, self.saved = ctx, plan, folder, every, saved
        self.start = saved.position if saved else DataPosition()
        self.generation = 0

    def agree(self) -> None:
        """All ranks go on from the same checkpoint, or none does. Raises JobError where they do not see the same."""
        seen = self.saved.manifest.generation if self.saved else None
        newest = max(self._generations(), default=0)
        records = self.ctx.gather_records({"seen": seen, "newest": newest})
        others = [str(rank) for rank, record in enumerate(records) if record["seen"] != records[0]["seen"]]
        if others:
            raise JobError(f"--resume: rank {', '.join(others)} and rank 0 do not find the same checkpoint in "
                           f"{self.folder}; {SHARED}")
        self.generation = max(record["newest"] for record in records)
        if self.ctx.is_recorder:
            remove_stale_temporaries(self.folder)
            if seen is not None:
                self._remove_all_but(seen)

    def restore(self, trainer: Stateful) -> dict[str, Any]:
        """Load the checkpoint, if there is one, into ``trainer``; returns the rest of what was saved, or {}."""
        if self.saved is None:
            return {}
        state = self.saved.state  # taken out, so that the run does not carry a second model around
        trainer.module.load_state_dict(state.pop("module"))
        trainer.load_state_dict(state.pop("trainer"))
        return state.pop("rest")

    def restore_random_state(self) -> None:
        """Set torch's generators to where the checkpoint has them, if there is one."""
        if self.saved is None:
            return
        states = self.saved.state["random"]
        torch.set_rng_state(states["cpu"])
        if self.ctx.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.ctx.device)

    def first_step(self, epoch: int) -> int:
        """Steps of ``epoch`` that were done before this process began."""
        return self.start.step if epoch == self.start.epoch else 0

    def within(self, epoch: int) -> list[int]:
        """Steps after which a checkpoint is due before ``epoch`` ends, counted from its beginning."""
        if not self.every:
            return []
        before, length = sum(self.plan.epoch_lengths[: epoch - 1]), self.plan.epoch_lengths[epoch - 1]
        return [step for step in range(self.first_step(epoch) + 1, length) if (before + step) % self.every == 0]

    def due_after(self, epoch: int) -> bool:
        """Whether a checkpoint is due once ``epoch`` is over and evaluated."""
        if self.every is None:
            return True
        return self.every > 0 and sum(self.plan.epoch_lengths[:epoch]) % self.every == 0

    def save(self, position: DataPosition, trainer: Stateful, rest: dict[str, Any],
             results: RunResults | None = None) -> None:
        """Write a checkpoint, together with all other ranks; the recorder brings the run's ``results`` so far.

        ``rest`` holds tensors, numbers, strings, lists and dictionaries, so that no code is ever loaded with it.
        Returns when the new checkpoint counts. Raises RunError that names the file which cannot be written.
        """
        start = time.perf_counter()
        here.begin("checkpoint")
        self.generation += 1
        random = {"cpu": torch.get_rng_state()}
        if self.ctx.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.ctx.device)
        content = io.BytesIO()
        torch.save({"module": trainer.module.state_dict(), "trainer": trainer.state_dict(), "random": random,
                    "rest": rest}, content)
        data = content.getbuffer()
        _write(rank_file(self.folder, self.generation, self.ctx.rank), data)
        records = self.ctx.gather_records({"bytes": data.nbytes, "digest": digest(data)})
        counts = False
        if self.ctx.is_recorder:
            assert results is not None
            files = [FileRecord.model_validate(record) for record in records]
            counts = self._replace_manifest(position, results, files)
            _count(results, time.perf_counter() - start, files)
        # Waiting for this, or the manifest's time would be in somebody's next step.
        if not any(record["counts"] for record in self.ctx.gather_records({"counts": counts})):
            rank_file(self.folder, self.generation, self.ctx.rank).unlink(missing_ok=True)

    def _replace_manifest(self, position: DataPosition, results: RunResults, files: list[FileRecord]) -> bool:
        """Whether the new generation counts now, because all its files are where the recorder sees them."""
        paths = [rank_file(self.folder, self.generation, rank) for rank in range(len(files))]
        hidden = [str(rank) for rank, path in enumerate(paths) if not path.is_file()]
        if hidden:
            say(f"Note: no checkpoint at epoch {position.epoch}, step {position.step}: the files of rank "
                f"{', '.join(hidden)} are not in {self.folder} as this host sees it; {SHARED}")
            return False
        manifest = Manifest(generation=self.generation, epoch=position.epoch, step=position.step, results=results,
                            files=files)
        _write(self.folder / MANIFEST, manifest.encode())
        self._remove_all_but(self.generation)
        return True

    def remove(self) -> None:
        """Remove the checkpoint, now that the run has finished."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._remove_all_but(None)
        for directory in (self.folder, self.folder.parent):
            with suppress(OSError):  # not there, or of use to others
                directory.rmdir()

    def _remove_all_but(self, generation: int | None) -> None:
        for path, number in self._files():
            if number != generation:
                path.unlink(missing_ok=True)

    def _generations(self) -> Iterator[int]:
        return (number for _, number in self._files())

    def _files(self) -> Iterator[tuple[Path, int]]:
        """The ranks' files that are there, each with its generation."""
        for path in self.folder.glob(_FILE.format("*", "*")):
            if match := re.fullmatch(_FILE.format("([0-9]{1,18})", "[0-9]+"), path.name):
                yield path, int(match[1])


def _count(results: RunResults, seconds: float, files: list[FileRecord]) -> None:
    before = results.checkpoints or CheckpointWriting(written=0, seconds=0.0, bytes=0)
    results.checkpoints = CheckpointWriting(written=before.written + 1, seconds=before.seconds + seconds,
                                            bytes=sum(file.bytes for file in files))


def _write(path: Path, data: bytes | memoryview) -> None:
    try:
        write_bytes_atomically(path, data)
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be written ({error.strerror}); the one before it is as it was, "
                       "and --resume goes on from there") from error
