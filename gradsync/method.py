"""What every synchronisation method starts from: the local half of a step, and the update of parameters."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from gradsync.config import Plan, TrainConfig, learning_rate_factor
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.timing import StepClock, Traffic

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepOutput(NamedTuple):
    """Two scalars on the replica's device; reading them would make the host wait, so nothing in a step does."""

    loss: torch.Tensor  # mean over the replica's share
    correct: torch.Tensor  # samples of the share that were classified correctly


class Tally:
    """One replica's running record of an epoch, kept on its device and read when the epoch is over."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.losses = torch.zeros(steps, dtype=torch.float64, device=device)  # per step, mean over the share
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.shares: list[int] = []  # samples of this replica, per step
        self.global_batches: list[int] = []  # samples of all replicas, per step

    def add(self, output: StepOutput, batch: Batch) -> None:
        if batch.num_samples:
            self.losses[self.steps] = output.loss
            self.correct += output.correct
        self.shares.append(batch.num_samples)
        self.global_batches.append(batch.global_samples)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "correct": self.correct, "shares": self.shares,
                "global_batches": self.global_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.copy_(state["losses"])
        self.correct.copy_(state["correct"])
        self.shares, self.global_batches = state["shares"], state["global_batches"]

    @property
    def steps(self) -> int:
        return len(self.shares)

    @property
    def local_samples(self) -> int:
        return sum(self.shares)

    @property
    def global_samples(self) -> int:
        return sum(self.global_batches)


class Updater:
    """Turns averaged gradients into new parameters: SGD, its learning-rate schedule, the fp16 gradient scaler."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainConfig, plan: Plan,
                 device: torch.device) -> None:
        self.optimizer = self.make_optimizer(list(parameters), config, plan)
        self.schedule = LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(plan.schedule, step, plan.total_steps)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.scaler.scale(torch.zeros((), device=device))  # creates the scale, which it otherwise does lazily

    def make_optimizer(self, parameters: list[nn.Parameter], config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=plan.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay,
            fused=True,  # one pass over parameters, gradients and momenta instead of four
        )

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


class Method:
    """A replica's side of one synchronisation method. Subclasses write ``step`` and ``__init__``.

    ``module`` is the bare network; ``network`` is what forward calls (DDP wraps it). After ``__init__`` all
    replicas hold the parameters of rank 0.
    """

    name: ClassVar[str]  # of the plain form; gradsync.variants adds what a variant is called
    title: ClassVar[str]
    synchronises: ClassVar[bool] = True
    can_exchange: ClassVar[bool] = False  # communication can be had apart from the rest of a step
    synchronisation_phases: ClassVar[tuple[str, ...]] = ()  # those that hold communication and nothing else
    updater_type: ClassVar[type[Updater]] = Updater

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        self.module = self.network = module
        self.config, self.ctx = config, ctx
        self.clock, self.traffic = StepClock(ctx.device), Traffic()
        self.updater = self.updater_type(module.parameters(), config, plan, ctx.device)

    @classmethod
    def for_config(cls, config: TrainConfig) -> type[Method]:
        """The class that does what the flags ask for, where a method's variants have one each."""
        return cls

    def step(self, batch: Batch) -> StepOutput:
        """One optimisation step of the whole job, as this replica sees it."""
        raise NotImplementedError

    def exchange(self, batch: Batch) -> None:
        """The communication of a step alone, with whatever gradients the parameters hold."""
        raise NotImplementedError

    def refresh_parameters(self) -> None:
        """Make this replica's parameters those after the last update; they are, unless a server holds them."""

    def local_step(self, batch: Batch) -> StepOutput:
        """The same step without synchronisation: forward, backward, update with the replica's own gradient."""
        output = self.forward_backward(batch)
        self.update()
        return output

    def forward_backward(self, batch: Batch, loss_factor: float = 1.0) -> StepOutput:
        """Leave the gradient of ``loss_factor`` x the mean loss of the share in the parameters."""
        with self.clock.phase("forward_backward"):
            self.clear_gradients()
            # A borrowed sample (weight 0) must not move BatchNorm's running statistics.
            if self.module.training != (batch.num_samples > 0):  # setting it walks through all modules
                self.module.train(batch.num_samples > 0)
            with self.autocast():
                outputs = self.network(batch.images)
                loss = functional.cross_entropy(outputs, batch.labels)
            scaled = loss if loss_factor == 1.0 else loss * loss_factor
            self.updater.scaler.scale(scaled).backward()
            correct = (outputs.detach().argmax(dim=1) == batch.labels).sum()
        return StepOutput(loss.detach(), correct)

    def clear_gradients(self) -> None:
        """Before each backward pass, which adds to what is there."""
        self.updater.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Optimizer step on this replica's parameters, from the gradients they hold."""
        with self.clock.phase("optimizer"):
            self.updater.step()

    def end_epoch(self) -> None:
        """Tell whoever serves this replica that the epoch is over."""

    def state_dict(self) -> dict[str, Any]:
        """What this replica needs, beside parameters and buffers, to go on as if nothing had come between."""
        return self.updater.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.load_state_dict(state)

    def bytes_per_step(self, steps: int) -> float | None:
        """Bytes handed to communication calls, mean over the ``steps`` since the counts were last taken."""
        return (self.traffic.bytes_sent + self.traffic.bytes_received) / steps

    def messages_per_step(self, steps: int) -> float | None:
        """Communication calls, likewise."""
        return self.traffic.messages / steps

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for a forward pass, as ``--amp`` says."""
        if self.config.amp == "off":
            return nullcontext()
        return torch.autocast(self.ctx.device.type, AMP_DTYPES[self.config.amp])
