"""Start N ranks on this machine, let them try what training will do, and collect what they found.

The ranks are processes of a fork server, so that torch is imported once for all of them. On one host they meet at a
file, so no port is opened to the outside; on several, in the store of the hosts' meeting. A rank that fails, dies or
hangs is named; none is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gradsync.config import TrainConfig
from gradsync.datasets import ImageData
from gradsync.distributed import Launch, ReplicaContext, process_group
from gradsync.errors import RunError, UsageError
from gradsync.hosts import Hosts
from gradsync.main import Prepared
from gradsync.measure import Measured, measure, time_verified_all_reduce
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
    num_ranks: int  # on this host
    threads: int
    nccl_ranks: int  # on this host; 0: do not try nccl
    hosts: Hosts | None = None
    store: tuple[str, int] | None = None  # where the ranks of several hosts meet

    @property
    def num_hosts(self) -> int:
        return self.hosts.count if self.hosts else 1

    @property
    def num_processes(self) -> int:
        """On this host. At least two in all, for an all-reduce that deserves the name."""
        return max(2 if self.hosts is None else 1, self.num_ranks, self.nccl_ranks)


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
    """One rank's part of the request; ``rank`` is that on this host, the first of which speaks for all."""
    if request.store:
        os.environ["MASTER_ADDR"] = request.store[0]  # towards which ranks choose their network
    if rank < request.nccl_ranks:
        gpu = torch.device("cuda", rank)
        with _group("nccl", rank, request.nccl_ranks, "nccl", gpu, 0, request, meeting_place):
            seconds = time_verified_all_reduce(gpu)
        if rank == 0:
            yield "nccl", seconds
    with _group("gloo", rank, request.num_processes, "gloo", torch.device("cpu"), 0, request, meeting_place):
        seconds = time_verified_all_reduce(torch.device("cpu"))
    if rank == 0:
        yield "gloo", seconds
    if rank >= request.num_ranks:
        return
    data = None
    for script in request.scripts:
        launch = Launch.of_host(request.num_ranks, request.hosts, rank)
        prepared = script.prepare(launch, request.config, data)
        data = prepared.data
        with _group(prepared.name, rank, request.num_ranks, prepared.backend, prepared.device, prepared.num_servers,
                    request, meeting_place) as ctx:
            measured = measure(prepared, ctx)
            # The recorder's figures, which may be another host's; every host's user wants to read them.
            records = ctx.gather_records(asdict(measured) if measured and ctx.is_recorder else {})
            if rank == 0:
                yield prepared.name, Measured(**records[prepared.num_servers])


def _group(name: str, rank: int, size: int, backend: str, device: torch.device, num_servers: int, request: Request,
           meeting_place: Path) -> AbstractContextManager[ReplicaContext]:
    """The group of ``size`` ranks of each host that meet under this name."""
    launch = Launch.of_host(size, request.hosts, rank)
    if request.store:
        host, port = request.store
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=PEER_SECONDS))
        meeting: dist.Store = dist.PrefixStore(name, store)
    else:
        meeting = dist.FileStore(str(meeting_place / f"{name}.store"), size)
    return process_group(launch, backend, device, num_servers, PEER_SECONDS, meeting)
