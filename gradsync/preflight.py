"""Start N ranks on this machine, let them try what training will do, and collect what they found.

The ranks are processes of a fork server, so that torch is imported once for all of them, and they meet at a
file, so no port is opened to the outside. A rank that fails, dies or hangs is named; none is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gradsync.config import TrainConfig
from gradsync.datasets import ImageData
from gradsync.distributed import Launch, ReplicaContext, process_group
from gradsync.errors import RunError, UsageError
from gradsync.main import Prepared
from gradsync.measure import measure, time_verified_all_reduce
from gradsync.method import Method
from gradsync.training import Server

PEER_SECONDS = 60.0  # a rank waits this long for another one


@dataclass(frozen=True)
class Script:
    """A training script: its file, the method that it defines, and the settings that choose a variant of it."""

    file: str
    method: type[Method]
    server: type[Server] | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    def prepare(self, launch: Launch, config: TrainConfig, data: ImageData | None = None) -> Prepared:
        """Raises UsageError as ``Prepared`` does."""
        return Prepared(self.method, self.server, launch, replace(config, **dict(self.settings)), data)


@dataclass(frozen=True)
class Request:
    """What the ranks shall try. It travels to them by pickle, so it holds classes and plain values."""

    config: TrainConfig
    scripts: tuple[Script, ...]
    num_ranks: int
    threads: int
    nccl_ranks: int  # 0: do not try nccl

    @property
    def num_processes(self) -> int:
        """At least two, for an all-reduce that deserves the name."""
        return max(2, self.num_ranks, self.nccl_ranks)


Finding = tuple[str, Any]  # ("gloo" or "nccl", seconds), (method name, Measured) or ("failed", text)


def run_ranks(request: Request, time_limit: float) -> Iterator[Finding]:
    """Let N ranks carry out the request; yields what they found, as it comes, up to the first failure."""
    context = multiprocessing.get_context("forkserver")
    deadline = time.monotonic() + time_limit
    with tempfile.TemporaryDirectory(prefix="gradsync-check-") as meeting_place:
        ranks: dict[Connection, tuple[int, Any]] = {}
        try:
            for rank in range(request.num_processes):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_rank_main, args=(rank, request, meeting_place, theirs))
                process.start()
                theirs.close()
                ranks[ours] = (rank, process)
            yield from _collect(ranks, deadline)
        finally:
            for _, process in ranks.values():
                _end(process)


def _collect(ranks: dict[Connection, tuple[int, Any]], deadline: float) -> Iterator[Finding]:
    """Ends when all ranks have, or after the first failure."""
    running = set(ranks)
    while running:
        ready = wait(running, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            yield "failed", f"rank {', '.join(sorted(str(ranks[pipe][0]) for pipe in running))} did not finish in time"
            return
        for pipe in ready:
            rank, process = ranks[pipe]
            try:
                finding = pipe.recv()
            except EOFError:
                running.discard(pipe)
                process.join()
                if process.exitcode == 0:
                    continue
                finding = "failed", f"rank {rank} ended with exit code {process.exitcode}"
            yield finding
            if finding[0] == "failed":
                return


def _end(process: Any) -> None:
    """End a rank, and with its group the data-loading processes that it may have started."""
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()  # it may have been too young to lead a group
    process.join()


def _rank_main(rank: int, request: Request, meeting_place: str, pipe: Connection) -> None:
    os.setpgid(0, 0)  # out of the terminal's reach: whoever started us ends us
    # A child of a fork server would start one of its own for loading data, and nobody would end that.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(request.threads)
    try:
        for finding in _carry_out(rank, request, Path(meeting_place)):
            pipe.send(finding)
    except (RunError, UsageError, OSError, RuntimeError) as error:
        # A data-loading process wraps the error in its own trace; the last line is the error itself.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause = lines[-1 if isinstance(error, RunError) else 0].removeprefix("gradsync.errors.RunError: ")
        pipe.send(("failed", f"rank {rank}: {cause[:300]}"))
        # Leaving would make the other ranks fail as well. Whoever started us ends us all.
        time.sleep(PEER_SECONDS)


def _carry_out(rank: int, request: Request, meeting_place: Path) -> Iterator[Finding]:
    """One rank's part of the request."""
    if rank < request.nccl_ranks:
        gpu = torch.device("cuda", rank)
        with _group(rank, request.nccl_ranks, "nccl", gpu, 0, meeting_place / "nccl.store"):
            seconds = time_verified_all_reduce(gpu)
        if rank == 0:
            yield "nccl", seconds
    with _group(rank, request.num_processes, "gloo", torch.device("cpu"), 0, meeting_place / "gloo.store"):
        seconds = time_verified_all_reduce(torch.device("cpu"))
    if rank == 0:
        yield "gloo", seconds
    if rank >= request.num_ranks:
        return
    data = None
    for script in request.scripts:
        launch = _launch(rank, request.num_ranks)
        prepared = script.prepare(launch, request.config, data)
        data, store = prepared.data, meeting_place / f"{prepared.name}.store"
        backend, device = prepared.backend, prepared.device
        with _group(rank, request.num_ranks, backend, device, prepared.num_servers, store) as ctx:
            measured = measure(prepared, ctx)
            if measured is not None and ctx.is_recorder:
                yield prepared.name, measured


def _launch(rank: int, size: int) -> Launch:
    return Launch(rank, size, rank, size, by_torchrun=True)


def _group(rank: int, size: int, backend: str, device: torch.device, num_servers: int,
           store: Path) -> AbstractContextManager[ReplicaContext]:
    meeting = dist.FileStore(str(store), size)
    return process_group(_launch(rank, size), backend, device, num_servers, PEER_SECONDS, meeting)
