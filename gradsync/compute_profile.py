"""How long a replica computes, part by part: the forward pass, each gradient, the update, a compression.

With the sizes of the gradients this is what the cost model needs to know of a model on a machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradsync.buckets import MIB, cut_into_buckets
from gradsync.compression import Uncompressed, make_compression
from gradsync.config import BUCKET_MB
from gradsync.data import Batch
from gradsync.low_rank import rank_worth_sending
from gradsync.method import Method
from gradsync.probe import discarded
from gradsync.probed import ComputeProfile, GradientGroup
from gradsync.timing import synchronize

MAX_GROUPS = 64
MIN_ROUNDS, MAX_ROUNDS = 3, 9
MAX_SECONDS = 15.0
COMPRESSIONS = ("fp16", "bf16", "powersgd")


def profile_compute(method: Method, batch: Batch) -> ComputeProfile:
    """Observe a few steps whose effect is discarded; the same profile on all replicas."""
    profiler = ComputeProfiler(method)
    begin = time.perf_counter()
    with discarded(method):
        while len(profiler.seen) < MAX_ROUNDS:
            profiler.observe(batch)
            # All replicas must agree on the number of rounds.
            if (method.ctx.max_over_replicas(time.perf_counter() - begin) > MAX_SECONDS
                    and len(profiler.seen) >= MIN_ROUNDS):
                break
    method.clock.start_epoch()
    return profiler.finish()


class ComputeProfiler:
    """Observes steps without synchronisation, which all replicas begin at once; ``finish`` says what it has seen.

    Hooks note when the forward pass is over and when each gradient is there, so the step itself is that of
    training. It moves parameters and optimizer: discard its effect.
    """

    def __init__(self, method: Method) -> None:
        self.method, self.clock = method, method.clock
        self.parameters = [p for p in method.module.parameters() if p.requires_grad]
        self.marks: dict[Any, Any] = {}
        self.hooks = [method.module.register_forward_hook(lambda *_: self.mark("forward"))]
        self.hooks += [parameter.register_post_accumulate_grad_hook(lambda _, index=index: self.mark(index))
                       for index, parameter in enumerate(self.parameters)]
        # Buckets take hold of their parameters' gradients, so these are of copies.
        copies = [nn.Parameter(parameter.detach().clone()) for parameter in self.parameters[::-1]]
        self.buckets = cut_into_buckets(copies, BUCKET_MB * MIB)
        self.compressions = {
            name: make_compression(replace(method.config, compress=name), self.buckets, method.updater.scaler)
            for name in COMPRESSIONS}
        self.seen: list[list[float]] = []

    def mark(self, what: Any) -> None:
        self.marks[what] = self.clock.now()

    def observe(self, batch: Batch) -> None:
        """One step of all replicas, and one round of each compression."""
        self.marks.clear()
        self.method.ctx.barrier()
        begin = self.clock.now()
        self.method.local_step(batch)
        end = self.clock.now()
        synchronize(self.method.ctx.device)
        forward = self.clock.seconds(begin, self.marks.pop("forward"))
        ready = {index: self.clock.seconds(begin, mark) for index, mark in self.marks.items()}
        backward = max(ready.values())
        self.seen.append([
            forward, self.clock.seconds(begin, end),
            *(self.compression_seconds(compression) for compression in self.compressions.values()),
            # A parameter unused in this step is sent when backward is over.
            *(ready.get(index, backward) for index in range(len(self.parameters)))])

    @torch.no_grad()
    def compression_seconds(self, compression: Uncompressed) -> float:
        """What it computes in a step, all of its parts, without sending anything."""
        self.method.ctx.barrier()
        begin = self.clock.now()
        for bucket in self.buckets:
            for _ in compression.rounds(bucket):
                pass
        end = self.clock.now()
        synchronize(self.method.ctx.device)
        return self.clock.seconds(begin, end)

    def finish(self) -> ComputeProfile:
        """The same on all replicas: the moment at which the last of them is so far, since that is when all can go on.

        Of replicas that share processors, one may be through before another has begun.
        """
        for hook in self.hooks:
            hook.remove()
        latest = torch.tensor(self.seen, dtype=torch.float64)
        dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=self.method.ctx.replicas)
        forward, end, *rest = latest.quantile(0.5, dim=0).tolist()
        compression, ready = rest[: len(COMPRESSIONS)], rest[len(COMPRESSIONS) :]
        return ComputeProfile(
            rounds=len(self.seen), forward=forward, update=max(0.0, end - max(ready)),
            gradients=group_gradients(self.parameters, [max(0.0, at - forward) for at in ready],
                                      self.method.config.powersgd_rank),
            compression=dict(zip(COMPRESSIONS, compression, strict=True)))


def group_gradients(parameters: list[nn.Parameter], ready: list[float], rank: int) -> list[GradientGroup]:
    """The gradients in the order of ``ready`` (seconds, one a parameter), in at most ``MAX_GROUPS`` groups."""
    in_order = sorted(range(len(parameters)), key=lambda index: ready[index])
    size = math.ceil(len(parameters) / MAX_GROUPS)
    groups = []
    for start in range(0, len(parameters), size):
        members = in_order[start : start + size]
        factors, dense = zip(*(_compressed_bytes(parameters[index], rank) for index in members), strict=True)
        groups.append(GradientGroup(tensors=len(members), bytes=sum(parameters[index].nbytes for index in members),
                                    factor_bytes=sum(factors), dense_bytes=sum(dense), ready=ready[members[-1]]))
    return groups


def _compressed_bytes(parameter: nn.Parameter, rank: int) -> tuple[int, int]:
    """Bytes of the factors that PowerSGD would send, and of what it would send as it is."""
    rows = parameter.shape[0] if parameter.dim() > 1 else 1
    columns = parameter.numel() // max(1, rows)
    kept = rank_worth_sending(rows, columns, rank)
    return ((rows + columns) * kept * parameter.element_size(), 0) if kept else (0, parameter.nbytes)
