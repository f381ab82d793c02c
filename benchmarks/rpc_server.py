"""A synchronous parameter server written with torch.distributed.rpc: what one would write without this project.

The pattern of PyTorch's own batch-updating parameter server
(https://docs.pytorch.org/tutorials/intermediate/rpc_async_execution.html): a worker's call hands over its gradients
and returns the new parameters as soon as the last worker's gradients have come in. It exists to be measured; note
that rpc pickles what it sends.
"""

from __future__ import annotations

import threading

import torch
import torch.distributed.rpc as rpc
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.method import Method, StepOutput, Updater

SERVER = "rank0"
_server: RpcServer | None = None  # on the server's rank: remote calls find it here


class RpcServer:
    """Parameters and optimizer; answers all workers at once when the last of them has pushed."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.updater = Updater(self.parameters, config, plan, ctx.device)
        self.num_workers, self.arrived, self.samples = ctx.num_replicas, 0, 0
        self.lock, self.answer = threading.Lock(), torch.futures.Future()
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        global _server
        _server = self

    @torch.no_grad()
    def add(self, gradients: list[torch.Tensor], samples: int) -> torch.futures.Future[list[torch.Tensor]]:
        with self.lock:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad.add_(gradient, alpha=samples)
            self.arrived, self.samples = self.arrived + 1, self.samples + samples
            answer = self.answer
            if self.arrived == self.num_workers:
                self.update()
                answer.set_result([parameter.detach() for parameter in self.parameters])
        return answer

    def update(self) -> None:
        for parameter in self.parameters:
            parameter.grad.div_(self.samples)
        self.updater.step()
        for parameter in self.parameters:
            parameter.grad.zero_()
        self.arrived, self.samples, self.answer = 0, 0, torch.futures.Future()


@rpc.functions.async_execution
def push_and_fetch(gradients: list[torch.Tensor], samples: int) -> torch.futures.Future[list[torch.Tensor]]:
    """Runs on the server's rank."""
    assert _server is not None
    return _server.add(gradients, samples)


class RpcWorker(Method):
    """Forward and backward, then one remote call."""

    name, title = "rpc", "torch.distributed.rpc"

    def step(self, batch: Batch) -> StepOutput:
        output = self.forward_backward(batch)
        self.exchange(batch)
        return output

    @torch.no_grad()
    def exchange(self, batch: Batch) -> None:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        new = rpc.rpc_sync(SERVER, push_and_fetch, args=([p.grad for p in parameters], batch.num_samples))
        for parameter, value in zip(parameters, new, strict=True):
            parameter.copy_(value)
