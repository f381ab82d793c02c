"""What every parameter server has: a shard of the parameters, its optimizer, the clock, the record of an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.link import Buffer, Link
from gradsync.position import here
from gradsync.results import ServerEpoch
from gradsync.sharding import FlatParameters, pieces, shard, take_initial_parameters
from gradsync.timing import StepClock


class ShardOptimizer:
    """SGD on each piece of a shard by itself; it is element-wise, so that is SGD on the whole.

    Fused, because it then needs no memory but its momentum. ``applied`` updates make ``applied / per_step`` steps of
    the learning-rate schedule.
    """

    def __init__(self, values: list[torch.Tensor], config: TrainConfig, plan: Plan, per_step: int) -> None:
        self.values, self.plan, self.per_step = values, plan, per_step
        self.optimizers = [
            torch.optim.SGD([value], lr=plan.learning_rate, momentum=config.momentum,
                            weight_decay=config.weight_decay, fused=True) for value in values
        ]
        self.applied = 0

    def update(self, number: int, gradient: torch.Tensor, factor: float = 1.0) -> None:
        """Move piece ``number`` by its gradient, at ``factor`` x the schedule's rate."""
        value, optimizer = self.values[number], self.optimizers[number]
        optimizer.param_groups[0]["lr"] = factor * self.plan.learning_rate_at(self.applied // self.per_step)
        value.grad = gradient
        optimizer.step()
        value.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"applied": self.applied, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.applied = state["applied"]
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


class LossScale:
    """The fp16 loss scale, by the rule of torch.amp.GradScaler, for updates that are decided by all workers together.

    GradScaler looks at the gradients of one process; here each worker looks at its own and says what it found.
    """

    def __init__(self, device: torch.device) -> None:
        rule = torch.amp.GradScaler(device.type)
        self.value, self.calm_updates = rule.get_scale(), 0
        self._growth, self._backoff = rule.get_growth_factor(), rule.get_backoff_factor()
        self._interval = rule.get_growth_interval()

    def update(self, overflow: bool) -> None:
        """Down after an overflow; up after 2,000 updates without one."""
        self.calm_updates = 0 if overflow else self.calm_updates + 1
        if overflow:
            self.value *= self._backoff
        elif self.calm_updates == self._interval:
            self.value, self.calm_updates = self.value * self._growth, 0


class ShardServer:
    """A rank that holds a shard of the parameters and answers workers. Subclasses say in which order and when."""

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        self.module, self.config, self.ctx = module, config, ctx
        flat = FlatParameters(module, gradients=False)
        take_initial_parameters(module)
        self.shards = [flat.values[shard(len(flat.values), ctx.num_servers, s)] for s in range(ctx.num_servers)]
        self.values = Buffer(self.shards[ctx.rank], ctx)
        span = shard(len(flat.values), ctx.num_servers, ctx.rank)
        self.pieces = [slice(piece.start - span.start, piece.stop - span.start)
                       for piece in pieces(span, flat.sizes, flat.values.element_size(), config)]
        self.optimizer = ShardOptimizer([self.values.tensor[piece] for piece in self.pieces], config, plan,
                                        per_step=1 if config.mode == "sync" else ctx.num_replicas)
        self.scale = LossScale(ctx.device) if config.amp == "fp16" else None
        self.link, self.clock = Link(ctx, at_once=config.transfer == "pipelined"), StepClock(ctx.device)
        self.updates = 0  # of this epoch

    def gradient_buffer(self) -> Buffer:
        """Room for one set of the shard's gradients."""
        return Buffer(torch.zeros_like(self.values.tensor), self.ctx)

    def serve_epoch(self) -> ServerEpoch:
        """Answer the workers until all of them end their epoch; the module then holds all parameters.

        Raises RunError if they are out of step, and PeerLost if one of them is gone.
        """
        self.clock.start_epoch()
        self.link.traffic.take()
        self.updates = 0
        self.answer_until_epoch_ends()
        phases, _ = self.clock.finish_epoch()
        self.collect_shards()
        per_update = {name: phases.get(name, 0.0) / max(1, self.updates)
                      for name in ("wait", "send_parameters", "receive_gradients", "update")}
        return ServerEpoch(**per_update, updates=self.updates, **self.link.traffic.take(), **self.asynchrony())

    def answer_until_epoch_ends(self) -> None:
        raise NotImplementedError

    def asynchrony(self) -> dict[str, Any]:
        """What only an asynchronous server has to say about an epoch."""
        return {}

    def count_update(self, overflow: bool) -> None:
        """All pieces have had their update, or have been spared it because of an overflow."""
        self.updates += 1
        self.optimizer.applied += 1
        here.next_step()
        if self.scale is not None:
            self.scale.update(overflow)

    @torch.no_grad()
    def send_parameters(self, worker: int) -> None:
        self.link.send(self.values, self.pieces, worker)
        self.send_scale(worker)

    def send_scale(self, worker: int) -> None:
        """One server's word is enough; all of them hear of the same overflows."""
        if self.scale is not None and self.ctx.rank == 0:
            self.link.send_scale(self.scale.value, worker)

    @torch.no_grad()
    def collect_shards(self) -> None:
        """Take the other servers' shards into the module, outside any clock, so that all ranks' can be compared."""
        for owner, values in enumerate(self.shards):
            copy = values.cpu()
            if owner == self.ctx.rank:
                for server in range(self.ctx.num_servers):
                    if server != owner:
                        self.link.tell(copy, server)
            else:
                values.copy_(self.link.hear(copy, owner))

    def state_dict(self) -> dict[str, Any]:
        scale = None if self.scale is None else (self.scale.value, self.scale.calm_updates)
        return {"optimizer": self.optimizer.state_dict(), "scale": scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scale is not None:
            self.scale.value, self.scale.calm_updates = state["scale"]
