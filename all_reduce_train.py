"""Train with a hand-written all-reduce of the gradients.

    torchrun --nproc_per_node=4 all_reduce_train.py
    torchrun --nproc_per_node=4 all_reduce_train.py --epochs 3 --batch-size 64 --workers 16 --data-dir ./ --backend nccl
    torchrun --nproc_per_node=4 all_reduce_train.py --variant overlapped --bucket-mb 4
    torchrun --nproc_per_node=4 all_reduce_train.py --variant overlapped --compress powersgd --powersgd-rank 4

What DistributedDataParallel does, without its machinery: give every replica the same initial weights, and
average the gradients of each backward pass. The plain form makes one all-reduce per parameter after backward; the
variants all-reduce one flat buffer, or buckets, or buckets while backward goes on.
Writes results_all_reduce.json, or results_all_reduce_<variant>.json.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradsync.buckets import MIB, Bucket, cut_into_buckets
from gradsync.compression import make_compression
from gradsync.config import BUCKET_MB, Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.main import run_script
from gradsync.method import Method, StepOutput
from gradsync.timing import Traffic


@torch.no_grad()
def broadcast_model(module: nn.Module, source: int = 0) -> None:
    """Give every replica the parameters and buffers of rank ``source``."""
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor, src=source)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], weight: float, traffic: Traffic) -> None:
    """Replace each gradient by the mean over the global batch: the sum over replicas of weight x gradient.

    ``weight`` is the replica's part of the global batch's samples; the weights of all replicas sum to 1.
    """
    for parameter in parameters:
        if parameter.grad is None:  # unused in this forward pass; the other replicas still wait for it
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.mul_(weight)
        dist.all_reduce(parameter.grad)
        traffic.sent(parameter.grad)


class AllReduce(Method):
    """One all-reduce per parameter, after backward."""

    name = "all_reduce"
    title = "All-Reduce"
    synchronisation_phases = ("all_reduce",)
    can_exchange = True

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        broadcast_model(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    @classmethod
    def for_config(cls, config: TrainConfig) -> type[Method]:
        if config.variant == "overlapped":
            return OverlappedAllReduce
        return AllReduce if (config.variant, config.compress) == ("per-parameter", "none") else BucketedAllReduce

    def step(self, batch: Batch) -> StepOutput:
        output = self.forward_backward(batch)
        with self.clock.phase("all_reduce"):
            self.exchange(batch)
        self.update()
        return output

    def exchange(self, batch: Batch) -> None:
        average_gradients(self.parameters, batch.weight, self.traffic)


class BucketedAllReduce(AllReduce):
    """One all-reduce per bucket, after backward.

    flat: one bucket holds everything. bucketed: all buckets are in flight at once. per-parameter (compressed): a
    bucket each, one after the other.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        limits = {"per-parameter": 0, "flat": math.inf}
        limit = limits.get(config.variant, (config.bucket_mb or BUCKET_MB) * MIB)
        # Backward computes the last layer's gradient first.
        self.buckets = cut_into_buckets(self.parameters[::-1], limit)
        self.compression = make_compression(config, self.buckets, self.updater.scaler)
        self.in_flight: list[tuple[Iterator[torch.Tensor], dist.Work]] = []

    def step(self, batch: Batch) -> StepOutput:
        # Weighted by its samples, each replica's gradient is a summand of the global mean.
        output = self.forward_backward(batch, loss_factor=batch.weight)
        with self.clock.phase("all_reduce"):
            self.exchange(batch)
        self.update()
        return output

    def exchange(self, batch: Batch) -> None:
        for bucket in self.buckets:
            self.start(bucket)
            if self.config.variant == "per-parameter":
                self.finish()
        self.finish()

    def clear_gradients(self) -> None:
        for bucket in self.buckets:  # not set to None: the gradients live in the buckets
            bucket.flat.zero_()

    @torch.no_grad()
    def start(self, bucket: Bucket) -> None:
        """Begin to sum the bucket over the replicas."""
        rounds = self.compression.rounds(bucket)
        self.in_flight.append((rounds, self.all_reduce(next(rounds))))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait until the buckets that were started hold their sums.

        A compression may need another all-reduce after the first. Every replica goes through the buckets in the
        same order, so that these meet too.
        """
        while self.in_flight:
            started, self.in_flight = self.in_flight, []
            for rounds, work in started:
                work.wait()
                if (more := next(rounds, None)) is not None:
                    self.in_flight.append((rounds, self.all_reduce(more)))

    def all_reduce(self, tensor: torch.Tensor) -> dist.Work:
        self.traffic.sent(tensor)
        return dist.all_reduce(tensor, async_op=True)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "compression": self.compression.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.compression.load_state_dict(state["compression"])


class OverlappedAllReduce(BucketedAllReduce):
    """A bucket's all-reduce starts while backward goes on: as soon as its gradients are there.

    Only what is not done when backward ends is waited for in the phase ``all_reduce``.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.to_start: deque[Bucket] = deque()  # empty in a local step, whose hooks therefore start nothing
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self.gradient_is_there(bucket))

    def step(self, batch: Batch) -> StepOutput:
        self.to_start.extend(self.buckets)
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)
        output = self.forward_backward(batch, loss_factor=batch.weight)
        with self.clock.phase("all_reduce"):
            while self.to_start:  # a parameter unused in this forward pass counts as zero: others may have used it
                self.start(self.to_start.popleft())
            self.finish()
        self.update()
        return output

    def gradient_is_there(self, bucket: Bucket) -> None:
        """Called by backward, once per parameter. All replicas start the buckets in one order, or they would mix."""
        bucket.missing -= 1
        while self.to_start and not self.to_start[0].missing:
            self.start(self.to_start.popleft())


if __name__ == "__main__":
    sys.exit(run_script(lambda launch: AllReduce, description=__doc__))
