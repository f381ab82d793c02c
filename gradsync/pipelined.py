"""A synchronous parameter server whose receiving, reducing, updating and sending overlap, chunk by chunk.

The simple server receives everything, then updates, then sends everything: (N-1) M bytes into its link and, after that,
(N-1) M bytes out of it, for N-1 workers and M bytes of parameters. Here a chunk goes back to all workers as soon as
their gradients of it have been averaged, while later chunks are still arriving. Links carry both directions at once,
so the lower bound falls from 2 (N-1) M / B to (N-1) M / B at B bytes/s in each direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.errors import RunError
from gradsync.link import COMMANDS, END_EPOCH, PUSH, Buffer, Request, Transfer
from gradsync.shard_server import ShardServer


class PipelinedServer(ShardServer):
    """Answers every push with the updated parameters; nobody asks for them."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        values = self.values.tensor
        self.gradients = torch.zeros(ctx.num_replicas, len(values), dtype=values.dtype, device=values.device)
        self.received = [Buffer(row, ctx) for row in self.gradients]
        longest = max((piece.stop - piece.start for piece in self.pieces), default=0)
        self.averaged = torch.empty_like(values[:longest])

    def answer_until_epoch_ends(self) -> None:
        while (requests := self.next_requests())[-1].command != END_EPOCH:
            self.exchange(requests)

    def next_requests(self) -> list[Request]:
        """One of every worker. If the first pushes, so must the others: there is room for all chunks from then on."""
        workers, requests = self.ctx.replica_ranks, []
        for worker in workers:
            with self.clock.phase("wait"):
                requests.append(self.link.receive_request(worker))
            if worker == workers[0] and requests[0].command == PUSH:
                self.arriving = [[self.link.start_receiving(buffer, piece, sender) for piece in self.pieces]
                                 for sender, buffer in zip(workers, self.received, strict=True)]
        check_in_step(workers, requests)
        return requests

    @torch.no_grad()
    def exchange(self, requests: list[Request]) -> None:
        """Per chunk: all workers' gradients in, their average, the update, the new parameters out to all of them."""
        overflow = any(request.overflow for request in requests)
        weights = torch.tensor([request.weight for request in requests], dtype=torch.float64).to(self.gradients)
        leaving: list[Transfer] = []
        for number, piece in enumerate(self.pieces):
            with self.clock.phase("receive_gradients"):
                for transfers in self.arriving:
                    transfers[number].wait()
            with self.clock.phase("update"):
                if not overflow:
                    self.optimizer.update(number, self.average(weights, piece))
            with self.clock.phase("send_parameters"):
                leaving += self.link.start_sending(self.values, piece, self.ctx.replica_ranks)
        with self.clock.phase("send_parameters"):
            for transfer in leaving:
                transfer.wait()
            self.count_update(overflow)
            for worker in self.ctx.replica_ranks:
                self.send_scale(worker)

    def average(self, weights: torch.Tensor, piece: slice) -> torch.Tensor:
        """Sum over workers of weight x gradient, in one pass over memory."""
        return torch.mv(self.gradients[:, piece].t(), weights, out=self.averaged[: piece.stop - piece.start])


def check_in_step(workers: Sequence[int], requests: Sequence[Request]) -> None:
    """Raises RunError unless all workers ask for the same."""
    if len({request.command for request in requests}) != 1:
        asked = zip(workers, requests, strict=True)
        raise RunError("the workers are out of step ("
                       + ", ".join(f"rank {worker}: {COMMANDS[request.command]}" for worker, request in asked) + ")")
