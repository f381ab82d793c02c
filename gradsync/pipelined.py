"""A synchronous parameter server whose receiving, reducing, updating and sending overlap, chunk by chunk.

The simple server receives everything, then updates, then sends everything: (N-1) M bytes into its link and, after that,
(N-1) M bytes out of it, for N-1 workers and M bytes of parameters. Here a chunk goes back to all workers as soon as
their gradients of it have been averaged, while later chunks are still arriving. Links carry both directions at once,
so the lower bound falls from 2 (N-1) M / B to (N-1) M / B at B bytes/s in each direction.
"""

from __future__ import annotations

import torch
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.errors import RunError
from gradsync.link import COMMANDS, END_EPOCH, PUSH, Request, Transfer
from gradsync.shard_server import ShardServer


class PipelinedServer(ShardServer):
    """Answers every push with the updated parameters; nobody asks for them."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.received = {worker: self.gradient_buffer() for worker in ctx.replica_ranks}

    def answer_until_epoch_ends(self) -> None:
        while (requests := self.next_requests())[self.ctx.world_size - 1].command != END_EPOCH:
            self.exchange(requests)

    def next_requests(self) -> dict[int, Request]:
        """One of every worker, the same of all. A worker's chunks may arrive as soon as it has said that they come."""
        requests: dict[int, Request] = {}
        self.arriving: dict[int, list[Transfer]] = {}
        for worker, buffer in self.received.items():
            with self.clock.phase("wait"):
                requests[worker] = self.link.receive_request(worker)
            if requests[worker].command == PUSH:
                self.arriving[worker] = [self.link.start_receiving(buffer, piece, worker) for piece in self.pieces]
        check_in_step(requests)
        return requests

    @torch.no_grad()
    def exchange(self, requests: dict[int, Request]) -> None:
        """Per chunk: all workers' gradients in, their average, the update, the new parameters out to all of them."""
        overflow = any(request.overflow for request in requests.values())
        leaving: list[Transfer] = []
        for number, piece in enumerate(self.pieces):
            with self.clock.phase("receive_gradients"):
                for transfers in self.arriving.values():
                    transfers[number].wait()
            with self.clock.phase("update"):
                if not overflow:
                    self.optimizer.update(number, self.average(requests, piece))
            with self.clock.phase("send_parameters"):
                leaving += self.link.start_sending(self.values, piece, self.ctx.replica_ranks)
        with self.clock.phase("send_parameters"):
            for transfer in leaving:
                transfer.wait()
            self.count_update(overflow)
            for worker in self.ctx.replica_ranks:
                self.send_scale(worker)

    def average(self, requests: dict[int, Request], piece: slice) -> torch.Tensor:
        """Sum over workers of weight x gradient, made in the first worker's buffer."""
        first, *others = self.ctx.replica_ranks
        average = self.received[first].tensor[piece].mul_(requests[first].weight)
        for worker in others:
            average.add_(self.received[worker].tensor[piece], alpha=requests[worker].weight)
        return average


def check_in_step(requests: dict[int, Request]) -> None:
    """Raises RunError unless all workers ask for the same."""
    if len({request.command for request in requests.values()}) != 1:
        asked = ", ".join(f"rank {worker}: {COMMANDS[request.command]}" for worker, request in requests.items())
        raise RunError(f"the workers are out of step ({asked})")
