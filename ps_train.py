"""Train with a parameter server: the first ranks serve, the others work.

    torchrun --nproc_per_node=4 ps_train.py
    torchrun --nproc_per_node=4 ps_train.py --epochs 3 --batch-size 64 --workers 16 --data-dir ./ --backend nccl
    torchrun --nproc_per_node=4 ps_train.py --transfer pipelined
    torchrun --nproc_per_node=5 ps_train.py --num-servers 2
    torchrun --nproc_per_node=4 ps_train.py --mode ssp --staleness 1

Per step, the server sends its parameters to each worker (pull), the workers compute gradients and send them
back (push), and the server averages them and updates. A server loads no data and runs no forward pass, so 4 ranks
with one server are 3 replicas. Writes results_ps.json.

The simplest form stands here: synchronous, one send/recv per parameter (--transfer per-parameter) or per server
(flat). gradsync/pipelined.py overlaps the transfers; gradsync/asynchronous.py applies each push at once.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from gradsync.asynchronous import AsynchronousServer
from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.link import END_EPOCH, PULL, PUSH, SETTLED_PULL, Buffer, Link, Request, Transfer
from gradsync.main import run_script
from gradsync.method import Method, StepOutput
from gradsync.pipelined import PipelinedServer, check_in_step
from gradsync.shard_server import ShardServer
from gradsync.sharding import FlatParameters, pieces, shard, take_initial_parameters


class ParameterServerWorker(Method):
    """Pull, forward and backward, push. The optimizer that counts is the servers'."""

    name = "ps"
    title = "Parameter Server"
    synchronisation_phases = ("pull", "push")
    can_exchange = True

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.flat = FlatParameters(module, gradients=True)
        take_initial_parameters(module)
        self.link = Link(ctx, at_once=config.transfer == "pipelined")
        self.traffic = self.link.traffic
        self.values, self.gradients = Buffer(self.flat.values, ctx), Buffer(self.flat.gradients, ctx)
        total, element_size = len(self.flat.values), self.flat.values.element_size()
        self.pieces = [pieces(shard(total, ctx.num_servers, server), self.flat.sizes, element_size, config)
                       for server in range(ctx.num_servers)]
        self.parameters_are_current = True

    @classmethod
    def for_config(cls, config: TrainConfig) -> type[Method]:
        return PipelinedWorker if config.transfer == "pipelined" and config.mode == "sync" else cls

    def step(self, batch: Batch) -> StepOutput:
        self.bring_up_to_date(PULL)
        output = self.forward_backward(batch)
        with self.clock.phase("push"):
            self.push(batch)
        return output

    def exchange(self, batch: Batch) -> None:
        """The communication of a step alone: push whatever gradients there are, and pull."""
        self.push(batch)
        self.refresh_parameters()

    def refresh_parameters(self) -> None:
        """Pull what the parameters are after the last push of all workers."""
        self.bring_up_to_date(SETTLED_PULL)

    def bring_up_to_date(self, command: int) -> None:
        """Pull, unless there has been no push since the last pull.

        An epoch ends with a pull, so that its last update is in its time and in its evaluation; the next
        epoch's first step then has the parameters already. So there is one pull per step, as there must be.
        """
        if not self.parameters_are_current:
            with self.clock.phase("pull"):
                self.pull(command)
            self.parameters_are_current = True

    @torch.no_grad()
    def pull(self, command: int) -> None:
        for server, theirs in enumerate(self.pieces):
            self.link.send_request(Request(command), server)
            for _ in self.link.receive(self.values, theirs, server):
                pass
            if server == 0:
                self.take_scale()

    @torch.no_grad()
    def push(self, batch: Batch) -> None:
        request = Request(PUSH, batch.num_samples, batch.global_samples, self.unscale_gradients())
        for server, theirs in enumerate(self.pieces):
            self.link.send_request(request, server)
            self.link.send(self.gradients, theirs, server)
        self.parameters_are_current = False

    def unscale_gradients(self) -> bool:
        """Undo the fp16 loss scale; whether the gradients overflowed, which the servers must know of all workers."""
        if not self.updater.scaler.is_enabled():
            return False
        largest = torch.linalg.vector_norm(self.flat.gradients, ord=torch.inf)  # NaN if any is
        self.flat.gradients.div_(self.updater.scaler.get_scale())
        return not torch.isfinite(largest).item()

    def take_scale(self) -> None:
        if self.updater.scaler.is_enabled():
            self.updater.scaler.update(new_scale=self.link.receive_scale(0))

    def clear_gradients(self) -> None:
        """They live in one buffer, from which they are sent."""
        self.flat.gradients.zero_()

    def end_epoch(self) -> None:
        for server in range(self.ctx.num_servers):
            self.link.send_request(Request(END_EPOCH), server)


class PipelinedWorker(ParameterServerWorker):
    """Pushes all chunks at once, having made room for their updated parameters, for which it waits where it pulls."""

    @torch.no_grad()
    def push(self, batch: Batch) -> None:
        request = Request(PUSH, batch.num_samples, batch.global_samples, self.unscale_gradients())
        self.under_way: list[Transfer] = []
        for server in range(self.ctx.num_servers):
            self.under_way.append(self.link.start_request(request, server))
        for server, theirs in enumerate(self.pieces):
            self.under_way += [self.link.start_receiving(self.values, piece, server) for piece in theirs]
        for server, theirs in enumerate(self.pieces):
            for piece in theirs:
                self.under_way += self.link.start_sending(self.gradients, piece, [server])
        self.parameters_are_current = False

    @torch.no_grad()
    def pull(self, command: int) -> None:
        for transfer in self.under_way:
            transfer.wait()
        self.take_scale()


class ParameterServer(ShardServer):
    """Holds a shard of the parameters and their optimizer, and answers the workers in rank order."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.received, self.sums = self.gradient_buffer(), self.gradient_buffer().tensor

    @classmethod
    def for_config(cls, config: TrainConfig) -> type[ShardServer]:
        """The server that does what the flags ask for."""
        if config.mode != "sync":
            return AsynchronousServer
        return PipelinedServer if config.transfer == "pipelined" else cls

    def answer_until_epoch_ends(self) -> None:
        while self.answer_round() != END_EPOCH:
            pass

    def answer_round(self) -> int:
        """One request of every worker; returns the command, which all must share."""
        requests = []
        for worker in self.ctx.replica_ranks:
            with self.clock.phase("wait"):
                request = self.link.receive_request(worker)
            requests.append(request)
            if request.command in (PULL, SETTLED_PULL):
                with self.clock.phase("send_parameters"):
                    self.send_parameters(worker)
            elif request.command == PUSH:
                with self.clock.phase("receive_gradients"):
                    self.receive_gradients(worker, request.weight)
        check_in_step(self.ctx.replica_ranks, requests)
        if request.command == PUSH:
            with self.clock.phase("update"):
                self.update(overflow=any(request.overflow for request in requests))
        return request.command

    @torch.no_grad()
    def receive_gradients(self, worker: int, weight: float) -> None:
        """Add ``weight`` x the worker's mean gradient to the sums; the weights of all workers sum to 1."""
        for number in self.link.receive(self.received, self.pieces, worker):
            piece = self.pieces[number]
            self.sums[piece].add_(self.received.tensor[piece], alpha=weight)

    @torch.no_grad()
    def update(self, overflow: bool) -> None:
        """Move the parameters by the averaged gradient, and start a new one."""
        if not overflow:
            for number, piece in enumerate(self.pieces):
                self.optimizer.update(number, self.sums[piece])
        self.sums.zero_()
        self.count_update(overflow)


if __name__ == "__main__":
    sys.exit(run_script(lambda launch: ParameterServerWorker, server=ParameterServer, description=__doc__))
