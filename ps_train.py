"""Train with a parameter server: rank 0 serves, the other ranks work.

    torchrun --nproc_per_node=4 ps_train.py
    torchrun --nproc_per_node=4 ps_train.py --epochs 3 --batch-size 64 --workers 16 --data-dir ./ --backend nccl

Per step, the server sends its parameters to each worker (pull), the workers compute gradients and send them
back (push), and the server averages them and updates. One send/recv per parameter. The server loads no data
and runs no forward pass, so 4 ranks are 3 replicas. Writes results_ps.json.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.errors import RunError
from gradsync.main import run_script
from gradsync.method import Method, StepOutput, Updater
from gradsync.position import here
from gradsync.results import ServerEpoch
from gradsync.timing import StepClock, Traffic

SERVER = 0
PULL, PUSH, END_EPOCH = range(3)
COMMANDS = ("pull", "push", "end of epoch")


def as_it_lies(tensor: torch.Tensor) -> torch.Tensor:
    """A flat view of a dense tensor's memory, in memory order: send and recv refuse channels-last strides."""
    return tensor.as_strided((tensor.numel(),), (1,))


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient, in its parameter's memory layout; zeros where this forward pass did not use it."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.stride() != parameter.stride():
        return torch.empty_like(parameter).copy_(parameter.grad)
    return parameter.grad


class Link:
    """Tensors to and from one peer at a time, counted. The receiver names its peer, so a dead one is noticed."""

    def __init__(self, ctx: ReplicaContext) -> None:
        self.ctx, self.traffic = ctx, Traffic()

    def send(self, tensor: torch.Tensor, peer: int) -> None:
        wire = as_it_lies(tensor)
        dist.send(wire.cpu() if self.ctx.stages_through_cpu else wire, dst=peer)
        self.traffic.sent(tensor)

    def receive(self, tensor: torch.Tensor, peer: int) -> None:
        """Fill ``tensor``, which must have the sender's shape, type and layout: the wire carries bytes only."""
        wire = as_it_lies(tensor)
        if self.ctx.stages_through_cpu:
            staged = torch.empty_like(wire, device="cpu")
            dist.recv(staged, src=peer)
            wire.copy_(staged)
        else:
            dist.recv(wire, src=peer)
        self.traffic.received(tensor)

    def send_request(self, command: int, samples: int) -> None:
        """Tell the server what comes next. Not counted: 16 bytes beside the parameters."""
        dist.send(torch.tensor([command, samples]), dst=SERVER, group=self.ctx.control)

    def receive_request(self, worker: int) -> tuple[int, int]:
        """(command, samples) from ``worker``; blocks until it has something to say."""
        request = torch.zeros(2, dtype=torch.int64)
        dist.recv(request, src=worker, group=self.ctx.control)
        command, samples = request.tolist()
        return command, samples


class ParameterServerWorker(Method):
    """Pull, forward and backward, push. The optimizer that counts is the server's."""

    name = "ps"
    title = "Parameter Server"
    num_servers = 1
    synchronisation_phases = ("pull", "push")

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.link = Link(ctx)
        self.traffic = self.link.traffic
        self.parameters_are_current = False
        self.refresh_parameters()

    def step(self, batch: Batch) -> StepOutput:
        self.refresh_parameters()
        output = self.forward_backward(batch)
        with self.clock.phase("push"):
            self.push(batch.num_samples)
        return output

    def refresh_parameters(self) -> None:
        """Pull, unless there has been no push since the last pull.

        An epoch ends with a pull, so that its last update is in its time and in its evaluation; the next
        epoch's first step then has the parameters already. So there is one pull per step, as there must be.
        """
        if not self.parameters_are_current:
            with self.clock.phase("pull"):
                self.pull()
            self.parameters_are_current = True

    @torch.no_grad()
    def pull(self) -> None:
        self.link.send_request(PULL, 0)
        for parameter in self.module.parameters():
            self.link.receive(parameter, SERVER)
        if self.updater.scaler.is_enabled():
            scale = torch.empty((), device=self.ctx.device)
            self.link.receive(scale, SERVER)
            self.updater.scaler.update(new_scale=scale)

    @torch.no_grad()
    def push(self, samples: int) -> None:
        self.link.send_request(PUSH, samples)
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                self.link.send(gradient_of(parameter), SERVER)
        self.parameters_are_current = False

    def end_epoch(self) -> None:
        self.link.send_request(END_EPOCH, 0)


class ParameterServer:
    """Rank 0: holds the parameters and the optimizer, and answers the workers in rank order."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        self.module, self.ctx = module, ctx
        self.link, self.clock = Link(ctx), StepClock(ctx.device)
        self.updater = Updater(module.parameters(), config, plan, ctx.device)
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.received = [torch.empty_like(p) for p in self.trained]
        self.updates = self.samples = 0
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.answer_round()  # the workers' first pull: all start from these weights

    def serve_epoch(self) -> ServerEpoch:
        """Answer the workers until all of them end their epoch. Raises RunError if they are out of step."""
        self.clock.start_epoch()
        self.link.traffic.take()
        self.updates = 0
        while self.answer_round() != END_EPOCH:
            pass
        phases, _ = self.clock.finish_epoch()
        per_step = {name: seconds / max(1, self.updates) for name, seconds in phases.items()}
        return ServerEpoch(
            wait=per_step["wait"], send_parameters=per_step["send_parameters"],
            receive_gradients=per_step["receive_gradients"], update=per_step["update"],
            updates=self.updates, **self.link.traffic.take(),
        )

    def answer_round(self) -> int:
        """One request of every worker; returns the command, which all must share."""
        commands = []
        for worker in self.ctx.replica_ranks:
            with self.clock.phase("wait"):
                command, samples = self.link.receive_request(worker)
            if command == PULL:
                with self.clock.phase("send_parameters"):
                    self.send_parameters(worker)
            elif command == PUSH:
                with self.clock.phase("receive_gradients"):
                    self.receive_gradients(worker, samples)
            commands.append(command)
        if len(set(commands)) != 1:
            asked = ", ".join(f"{w}: {COMMANDS[c]}" for w, c in zip(self.ctx.replica_ranks, commands, strict=True))
            raise RunError(f"the workers are out of step ({asked})")
        if commands[0] == PUSH:
            with self.clock.phase("update"):
                self.update()
        return commands[0]

    @torch.no_grad()
    def send_parameters(self, worker: int) -> None:
        for parameter in self.module.parameters():
            self.link.send(parameter, worker)
        if self.updater.scaler.is_enabled():
            self.link.send(torch.tensor(self.updater.scaler.get_scale(), device=self.ctx.device), worker)

    @torch.no_grad()
    def receive_gradients(self, worker: int, samples: int) -> None:
        """Add ``samples`` x the worker's mean gradient to the sums."""
        for parameter, received in zip(self.trained, self.received, strict=True):
            self.link.receive(received, worker)
            parameter.grad.add_(received, alpha=samples)
        self.samples += samples

    @torch.no_grad()
    def update(self) -> None:
        """Average the sums over the global batch's samples, step the optimizer, and start anew."""
        for parameter in self.trained:
            parameter.grad.div_(self.samples)
        self.updater.step()
        for parameter in self.trained:
            parameter.grad.zero_()
        self.samples, self.updates = 0, self.updates + 1
        here.next_step()


if __name__ == "__main__":
    sys.exit(run_script(lambda launch: ParameterServerWorker, server=ParameterServer, description=__doc__))
