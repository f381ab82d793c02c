"""Who am I, who are the others, and over what do we talk.

The only place that reads the launcher's environment variables. A process that torchrun did not start is
a group of one, so nothing elsewhere needs a special case.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gradsync.errors import RunError, UsageError
from gradsync.hosts import Hosts
from gradsync.interfaces import interface_towards
from gradsync.roll_call import roll_call

STORE_SECONDS = 5.0  # for a store to answer
NCCL_SECONDS = 15.0  # beyond --timeout


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    by_torchrun: bool = False  # or by anything else that sets the same variables
    restarts: int = 0  # by torchrun on this host, so far
    by_agent: bool = False  # of torch elastic, which is this process's parent
    # host:port of the store that launch/torchrun.py keeps on the loopback interface; plain torchrun keeps its own
    launcher_store: str | None = None

    @staticmethod
    def of_host(local_world_size: int, hosts: Hosts | None = None, local_rank: int = 0) -> Launch:
        """That of a rank on this host, each of which starts as many ranks; ``hosts`` None: there are no others."""
        count, index = (hosts.count, hosts.index) if hosts else (1, 0)
        return Launch(index * local_world_size + local_rank, count * local_world_size, local_rank, local_world_size,
                      by_torchrun=True)

    @property
    def num_hosts(self) -> int:
        return max(1, self.world_size // self.local_world_size)


def read_launch(environment: dict[str, str] | os._Environ[str] = os.environ) -> Launch:
    """The launch from RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or a launch of one."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Launch()
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    return Launch(
        rank=rank,
        world_size=world_size,
        local_rank=int(environment.get("LOCAL_RANK", rank)),
        local_world_size=int(environment.get("LOCAL_WORLD_SIZE", world_size)),
        by_torchrun=True,
        restarts=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)),
        by_agent="TORCHELASTIC_RUN_ID" in environment,
        launcher_store=environment.get("GRADSYNC_STORE"),
    )


def choose_backend(requested: str, launch: Launch) -> tuple[str, torch.device]:
    """Backend and device of this rank. Raises UsageError where the request cannot be met.

    With gloo, ranks share the GPUs there are; nccl needs one GPU per rank.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "nccl" and gpus == 0:
        raise UsageError("--backend nccl: no GPU on this host; use --backend gloo (or leave it out)")
    if requested == "nccl" and launch.local_world_size > gpus:
        raise UsageError(
            f"--backend nccl: {launch.local_world_size} ranks on a host with {gpus} GPU(s), and NCCL needs one each; "
            f"use --nproc_per_node={gpus}, or --backend gloo to share them"
        )
    one_gpu_each = 0 < launch.local_world_size <= gpus
    backend = requested if requested != "auto" else ("nccl" if one_gpu_each and launch.by_torchrun else "gloo")
    device = torch.device("cuda", launch.local_rank % gpus) if gpus else torch.device("cpu")
    return backend, device


def share_bounds(total: int, parts: int, part: int) -> tuple[int, int]:
    """Start and stop of contiguous share ``part``; the sizes of all shares differ by at most one."""
    base, extra = divmod(total, parts)
    start = part * base + min(part, extra)
    return start, start + base + (part < extra)


@dataclass(frozen=True)
class ReplicaContext:
    """This process's place in the job. Formulas use the replica fields, never the world size.

    ``control`` spans all ranks and ``replicas`` the replicas; both are gloo groups for small tensors on the
    CPU (metrics, requests, barriers), so that they cost the accelerator nothing. Gradients and parameters
    go over the default group.
    """

    launch: Launch
    backend: str
    device: torch.device
    num_servers: int
    control: dist.ProcessGroup
    replicas: dist.ProcessGroup

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def world_size(self) -> int:
        return self.launch.world_size

    @property
    def num_replicas(self) -> int:
        return self.world_size - self.num_servers

    @property
    def is_server(self) -> bool:
        return self.rank < self.num_servers

    @property
    def replica_rank(self) -> int | None:
        return None if self.is_server else self.rank - self.num_servers

    @property
    def replica_ranks(self) -> range:
        return range(self.num_servers, self.world_size)

    @property
    def is_recorder(self) -> bool:
        """The one rank that draws the progress bar, prints and writes files."""
        return self.replica_rank == 0

    @property
    def stages_through_cpu(self) -> bool:
        """gloo's send and recv know no GPU memory."""
        return self.backend == "gloo" and self.device.type != "cpu"

    def barrier(self) -> None:
        """Wait for all replicas."""
        self.max_over_replicas(0.0)

    def max_over_replicas(self, value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.replicas)
        return tensor.item()

    def sum_over_replicas(self, tensor: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over replicas, as float64 on the CPU."""
        total = tensor.detach().to("cpu", torch.float64).clone()
        dist.all_reduce(total, group=self.replicas)
        return total

    def gather_records(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The record of every rank, by rank, on every rank. JSON, so that no pickle is ever loaded."""
        encoded = torch.frombuffer(bytearray(json.dumps(record).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([encoded.numel()]), group=self.control)
        longest = int(max(size.item() for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: encoded.numel()] = encoded
        gathered = [torch.zeros_like(padded) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.control)
        return [json.loads(bytes(data[: int(size)].tolist())) for data, size in zip(gathered, sizes, strict=True)]


def choose_interface(launch: Launch) -> None:
    """Tell gloo and NCCL which network to use, unless the user has: loopback on one host, else towards the first.

    They would otherwise look up the host's name, which fails or leaves the machine on some hosts. And nothing of a
    job on one host needs to listen to others.
    """
    if launch.num_hosts == 1:
        name = "lo" if os.path.isdir("/sys/class/net/lo") else None
    else:
        name = interface_towards(os.environ.get("MASTER_ADDR", ""))
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": this one, not those whose names begin so


def own_store(launch: Launch) -> dist.Store:
    """A connection to the job's store beside the process group's, whose calls may block for long.

    Raises RunError if the launcher, which keeps the store, is gone.
    """
    if not launch.by_torchrun:
        return dist.HashStore()
    host, port = _store_address(launch)
    store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
    return dist.PrefixStore(f"gradsync/{_attempt(launch)}", store)


def _store_address(launch: Launch) -> tuple[str, int]:
    if launch.launcher_store:
        host, _, port = launch.launcher_store.rpartition(":")
        return host, int(port)
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _check_meeting_point(launch: Launch) -> None:
    """Find out at once what joining the group would find out after ``--timeout``, or not clearly.

    Raises RunError if the launcher that keeps the store is gone, and UsageError if this rank is to keep it at a
    port that is taken.
    """
    host, port = _store_address(launch)
    if launch.launcher_store or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        give_up = time.monotonic() + STORE_SECONDS
        while True:
            try:
                socket.create_connection((host, port), timeout=STORE_SECONDS).close()
                return
            except OSError as error:
                if time.monotonic() > give_up or (isinstance(error, ConnectionRefusedError) and launch.num_hosts == 1):
                    raise RunError(f"the launcher's store at {host}:{port} does not answer ({error}); "
                                   "has the launcher ended?") from error
                time.sleep(0.2)
    elif launch.rank == 0:
        try:
            socket.create_server(("", port), reuse_port=False).close()
        except OSError as error:
            raise UsageError(f"MASTER_PORT {port}: cannot be listened at ({error.strerror}); choose another, "
                             "or leave it out, and torchrun finds a free one") from error


def _job_store(launch: Launch, limit: timedelta) -> dist.Store:
    """Where the ranks meet."""
    if not launch.by_torchrun:
        return dist.HashStore()
    _check_meeting_point(launch)
    if launch.launcher_store:
        store = dist.TCPStore(*_store_address(launch), is_master=False, timeout=limit)
    else:
        store = next(rendezvous("env://", timeout=limit))[0]
    # The launcher's store outlives a restart: a rank could read the address of a dead one, before the living one has
    # written its own.
    return dist.PrefixStore(f"restart_{_attempt(launch)}", store)


@cache
def _attempt(launch: Launch) -> str:
    """What tells this attempt of the job from those that torchrun has restarted; the same on all ranks.

    On one host torchrun counts them. Several hosts count differently: the one whose rank has failed counts, another
    may only follow it.
    """
    if launch.num_hosts == 1 or launch.launcher_store or not launch.by_agent:
        return str(launch.restarts)
    _check_meeting_point(launch)
    store = dist.TCPStore(*_store_address(launch), is_master=False, timeout=timedelta(seconds=STORE_SECONDS))
    return roll_call(dist.PrefixStore("gradsync/roll call", store), launch.rank, launch.world_size)


@contextmanager
def process_group(
    launch: Launch, backend: str, device: torch.device, num_servers: int, timeout: float,
    store: dist.Store | None = None,
) -> Iterator[ReplicaContext]:
    """Join the job for the duration of the block. ``store`` replaces the launcher's rendezvous (tests)."""
    choose_interface(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout)
    # Past its limit NCCL aborts the process without a word, so the watchdog must come first.
    patience = limit + timedelta(seconds=NCCL_SECONDS) if backend == "nccl" else limit
    dist.init_process_group(backend, timeout=patience, store=store or _job_store(launch, limit), rank=launch.rank,
                            world_size=launch.world_size)
    control = dist.new_group(backend="gloo", timeout=limit)
    replica_ranks = list(range(num_servers, launch.world_size))
    replicas = dist.new_group(replica_ranks, backend="gloo", timeout=limit)
    yield ReplicaContext(launch, backend, device, num_servers, control, replicas)
    # Only on success: after a failure the peers may be gone, and leaving is what tells them.
    dist.barrier(group=control)
    dist.destroy_process_group()
