"""The rows of sync_benchmark.py: what is built for each, and how a round of them is measured."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks.side_by_side import Measurement
from check_environment import load_scripts
from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import Launch, ReplicaContext, choose_backend, process_group
from gradsync.errors import UsageError
from gradsync.method import Method
from gradsync.timing import synchronize
from gradsync.variants import num_servers, parse_variant_name

Operation = Callable[[], None]
RPC_SECONDS = 120
# Rows of the rpc server, and the channels that tensors may take; None: whatever rpc finds fastest.
RPC_CHANNELS: dict[str, list[str] | None] = {"rpc": None, "rpc_sockets": ["basic"]}


@dataclass
class Row:
    """What one rank does in one row: ``exchange`` and ``step`` on a replica, ``serve`` on a server; None: nothing."""

    exchange: Operation | None = None
    step: Operation | None = None
    serve: Operation | None = None
    end: Operation | None = None  # of a visit, untimed


class Job:
    """One model on all ranks of this job."""

    def __init__(self, contexts: dict[int, ReplicaContext], model: str, flags: argparse.Namespace) -> None:
        self.name, self.contexts, self.ctx, self.flags = model, contexts, contexts[0], flags
        torch.manual_seed(0)
        self.model = torchvision.models.get_model(model, weights=None, num_classes=10)
        self.config = TrainConfig(bucket_mb=flags.bucket_mb, chunk_mb=flags.chunk_mb, max_steps=1_000_000)
        self.plan = Plan((1_000_000,), self.config.lr, "constant")
        self.rows = {name: self.build(name) for name in flags.rows.split(",") if self.is_possible(name)}

    def is_possible(self, name: str) -> bool:
        """A row that this number of ranks cannot hold is left out: two servers of two ranks."""
        return servers_of(name, self.config) < self.ctx.world_size

    def build(self, name: str) -> Row:
        if name in SPECIAL:
            return SPECIAL[name](self)
        method, config = variant(name, self.config)
        (script,) = load_scripts(((method, {}),))
        return self.row(script.method, script.server, config, num_servers(method, config))

    def row(self, method: type[Method], server: Any, config: TrainConfig, servers: int) -> Row:
        ctx = self.contexts[servers]
        module = self.copy()
        if ctx.is_server:
            serving = server.for_config(config)(module, config, ctx, self.plan)
            return Row(serve=serving.serve_epoch)
        worker, batch = method.for_config(config)(module, config, ctx, self.plan), self.batch(ctx)

        def step() -> None:
            worker.step(batch)
            worker.refresh_parameters()

        def exchange() -> None:
            worker.exchange(batch)
            worker.refresh_parameters()

        return Row(exchange if worker.can_exchange else None, step, end=worker.end_epoch)

    def copy(self) -> nn.Module:
        return deepcopy(self.model).to(self.ctx.device)

    @property
    def num_elements(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def batch(self, ctx: ReplicaContext) -> Batch:
        size, side = self.flags.batch_size, self.flags.image_size
        generator = torch.Generator().manual_seed(ctx.rank)
        images = torch.randn(size, 3, side, side, generator=generator).to(ctx.device)
        labels = torch.randint(0, 10, (size,), generator=generator).to(ctx.device)
        return Batch(images, labels, size, size * ctx.num_replicas)

    def measure(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds of exchange and step by row, a figure a round. The first round is dropped."""
        figures: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
        names = list(self.rows)
        for number in range(self.flags.rounds + 1):
            if self.ctx.rank == 0:
                what = f"round {number} of {self.flags.rounds}" if number else "warm-up"
                print(f"{self.name}, {self.ctx.world_size} ranks: {what}", file=sys.stderr, flush=True)
            for name in names[number % len(names):] + names[: number % len(names)]:
                row = self.rows[name]
                # A full step first: an exchange needs gradients to be there.
                for kind, operation in ((1, row.step), (0, row.exchange)):
                    seconds = self.visit(row, operation)
                    if number and seconds:
                        figures[kind].setdefault(name, []).append(seconds)
        exchange, step = ({name: kind[name] for name in names if name in kind} for kind in figures)
        return exchange, step

    def visit(self, row: Row, operation: Operation | None) -> float:
        """Seconds on the slowest replica; 0 where the row has no such operation."""
        dist.barrier(group=self.ctx.control)
        start = time.perf_counter()
        seconds = 0.0
        if row.serve is not None:
            row.serve()
        elif operation is not None:
            for _ in range(self.flags.steps):
                operation()
            synchronize(self.ctx.device)
            seconds = (time.perf_counter() - start) / self.flags.steps
            if row.end is not None:
                row.end()
        return self.ctx.max_over_replicas(seconds)


def no_synchronisation(job: Job) -> Row:
    method, batch = Method(job.copy(), job.config, job.ctx, job.plan), job.batch(job.ctx)
    return Row(step=lambda: ignore(method.local_step(batch)))


def stock_ddp(job: Job) -> Row:
    """DistributedDataParallel and SGD with their defaults, in the loop of any tutorial."""
    network = DistributedDataParallel(job.copy())
    optimizer = torch.optim.SGD(network.parameters(), lr=job.config.lr, momentum=job.config.momentum,
                                weight_decay=job.config.weight_decay)
    batch = job.batch(job.ctx)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()

    return Row(step=step)


def remote_procedure_calls(job: Job) -> Row:
    from benchmarks.rpc_server import RpcServer, RpcWorker

    ctx = job.contexts[1]
    if ctx.is_server:
        RpcServer(job.copy(), job.config, ctx, job.plan)  # lives on, and is called from outside
        return Row()
    worker, batch = RpcWorker(job.copy(), job.config, ctx, job.plan), job.batch(ctx)
    return Row(lambda: worker.exchange(batch), lambda: ignore(worker.step(batch)))


def raw_all_reduce(job: Job) -> Row:
    buffer = torch.zeros(job.num_elements, device=job.ctx.device)
    return Row(exchange=lambda: ignore(dist.all_reduce(buffer)))


def raw_point_to_point(job: Job) -> Row:
    """Every worker's gradients to rank 0 while rank 0's parameters go to every worker."""
    peers = range(1, job.ctx.world_size) if job.ctx.rank == 0 else (0,)
    device = torch.device("cpu") if job.ctx.stages_through_cpu else job.ctx.device
    sent = torch.zeros(job.num_elements, device=device)
    received = {peer: torch.zeros(job.num_elements, device=device) for peer in peers}

    def exchange() -> None:
        arriving = [dist.irecv(buffer, src=peer) for peer, buffer in received.items()]
        leaving = [dist.isend(sent, dst=peer) for peer in peers]
        for work in arriving + leaving:
            work.wait()

    return Row(exchange)


def ignore(_: object) -> None:
    """An operation returns nothing."""


SPECIAL: dict[str, Callable[[Job], Row]] = {
    "none": no_synchronisation, "stock_ddp": stock_ddp, **dict.fromkeys(RPC_CHANNELS, remote_procedure_calls),
    "raw_all_reduce": raw_all_reduce, "raw_p2p": raw_point_to_point,
}


def run_job(launch: Launch, flags: argparse.Namespace) -> list[Measurement]:
    """All models in turn; the measurements on rank 0, nothing on the others."""
    rpc_rows = [name for name in flags.rows.split(",") if name in RPC_CHANNELS]
    backend, device = choose_backend("auto", launch)
    with process_group(launch, backend, device, 0, RPC_SECONDS) as ctx:
        contexts = contexts_by_servers(ctx, flags.rows.split(","))
        with rpc_agents(ctx, rpc_rows):
            measurements = [measure_model(contexts, model, flags) for model in flags.models.split(",")]
    return measurements if launch.rank == 0 else []


def contexts_by_servers(ctx: ReplicaContext, rows: Iterable[str]) -> dict[int, ReplicaContext]:
    """What a rank is where the first 0, 1 ... ranks serve: as many as any of the rows needs and the job can hold."""
    most = max(servers_of(name, TrainConfig()) for name in rows)
    contexts = {0: ctx}
    for servers in range(1, min(max(most, 1), ctx.world_size - 1) + 1):
        replicas = dist.new_group(list(range(servers, ctx.world_size)), backend="gloo")
        contexts[servers] = replace(ctx, num_servers=servers, replicas=replicas)
    return contexts


def variant(name: str, config: TrainConfig) -> tuple[str, TrainConfig]:
    """The method and the flags of a row that is a variant. Raises UsageError for a name that is none."""
    try:
        method, settings = parse_variant_name(name)
    except ValueError:
        raise UsageError(f"--rows {name}: unknown; give variants or {', '.join(SPECIAL)}") from None
    if method == "baseline_ddp":  # its own default; --bucket-mb is for the buckets made by hand
        settings = {"bucket_mb": None, **settings}
    return method, replace(config, **settings)


def servers_of(name: str, config: TrainConfig) -> int:
    """Server ranks of a row, as its name says."""
    return 0 if name in SPECIAL else num_servers(*variant(name, config))


@contextmanager
def rpc_agents(ctx: ReplicaContext, rows: list[str]) -> Iterator[None]:
    """torch.distributed.rpc on all ranks for its row, if there is one; over the same interface as everything else."""
    if not rows:
        yield
        return
    import torch.distributed.rpc as rpc

    os.environ.setdefault("TP_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", "lo"))
    host = os.environ["MASTER_ADDR"]
    with socket.socket() as free:  # the launcher's own port is taken
        free.bind(("", 0))
        port = ctx.gather_records({"port": free.getsockname()[1]})[0]["port"]
    # Of its transports, shared memory polls: with more ranks than cores everything else then takes seconds.
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://{host}:{port}", rpc_timeout=RPC_SECONDS,
                                              _transports=["uv"], _channels=RPC_CHANNELS[rows[0]])
    rpc.init_rpc(f"rank{ctx.rank}", rank=ctx.rank, world_size=ctx.world_size, rpc_backend_options=options)
    yield
    rpc.shutdown()


def measure_model(contexts: dict[int, ReplicaContext], model: str, flags: argparse.Namespace) -> Measurement:
    job = Job(contexts, model, flags)
    exchange, step = job.measure()
    return Measurement(
        model=model, ranks=job.ctx.world_size, hosts=job.ctx.launch.num_hosts, batch_size=flags.batch_size,
        image_size=flags.image_size, gradient_bytes=4 * job.num_elements, threads=torch.get_num_threads(),
        torch=torch.__version__, exchange=exchange, step=step,
    )
