"""Train with a hand-written all-reduce of the gradients.

    torchrun --nproc_per_node=4 all_reduce_train.py
    torchrun --nproc_per_node=4 all_reduce_train.py --epochs 3 --batch-size 64 --workers 16 --data-dir ./ --backend nccl

What DistributedDataParallel does, without its machinery: give every replica the same initial weights, and
after each backward pass average the gradients, one all-reduce per parameter. Since nothing overlaps, the
synchronisation time of each step is a phase of its own. Writes results_all_reduce.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from gradsync.config import Plan, TrainConfig
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

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        broadcast_model(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]

    def step(self, batch: Batch) -> StepOutput:
        output = self.forward_backward(batch)
        with self.clock.phase("all_reduce"):
            average_gradients(self.parameters, batch.weight, self.traffic)
        self.update()
        return output


if __name__ == "__main__":
    sys.exit(run_script(lambda launch: AllReduce, description=__doc__))
