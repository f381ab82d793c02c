"""How long a replica computes, part by part: the forward pass, each gradient, the update, a compression.

With the sizes of the gradients this is what the cost model needs to know of a model on a machine.
"""

from __future__ import annotations

import math
import statistics
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gradsync.buckets import MIB, cut_into_buckets
from gradsync.compression import make_compression
from gradsync.config import BUCKET_MB
from gradsync.data import Batch
from gradsync.low_rank import rank_worth_sending
from gradsync.method import Method
from gradsync.results import ComputeProfile, GradientGroup
from gradsync.timing import synchronize

ROUNDS = 7
MAX_GROUPS = 64
COMPRESSIONS = ("fp16", "bf16", "powersgd")


def profile_compute(method: Method, batch: Batch, rounds: int = ROUNDS) -> ComputeProfile:
    """Steps without synchronisation, each begun by all replicas at once; the same profile on all of them.

    Hooks note when the forward pass is over and when each gradient is there, so the step itself is that of
    training. It moves parameters and optimizer: discard its effect.
    """
    parameters = [p for p in method.module.parameters() if p.requires_grad]
    marks: dict[Any, Any] = {}
    hooks = [method.module.register_forward_hook(lambda *_: marks.update(forward=method.clock.now()))]
    hooks += [parameter.register_post_accumulate_grad_hook(
        lambda _, index=index: marks.update({index: method.clock.now()})) for index, parameter in enumerate(parameters)]
    found = []
    for _ in range(rounds):
        marks.clear()
        method.ctx.barrier()
        begin = method.clock.now()
        method.local_step(batch)
        end = method.clock.now()
        synchronize(method.ctx.device)
        forward = marks.pop("forward")
        ready = {index: method.clock.seconds(forward, mark) for index, mark in marks.items()}
        backward = max(ready.values())
        # A parameter unused in this step is reduced when backward is over.
        found.append([method.clock.seconds(begin, forward), method.clock.seconds(forward, end) - backward,
                      *(ready.get(index, backward) for index in range(len(parameters)))])
    for hook in hooks:
        hook.remove()
    medians = torch.tensor([statistics.median(values) for values in zip(*found, strict=True)])
    forward, update, *ready = (method.ctx.sum_over_replicas(medians) / method.ctx.num_replicas).tolist()
    return ComputeProfile(rounds=rounds, forward=forward, update=update,
                          gradients=group_gradients(parameters, ready, method.config.powersgd_rank),
                          compression={name: compression_seconds(method, name, rounds) for name in COMPRESSIONS})


def compression_seconds(method: Method, compress: str, rounds: int) -> float:
    """What a compression computes in a step, all of its parts, without sending anything."""
    buckets = cut_into_buckets(list(deepcopy(method.module).parameters())[::-1], BUCKET_MB * MIB)
    compression = make_compression(replace(method.config, compress=compress), buckets, method.updater.scaler)
    seconds = []
    for _ in range(rounds):
        method.ctx.barrier()
        begin = method.clock.now()
        with torch.no_grad():
            for bucket in buckets:
                for _ in compression.rounds(bucket):
                    pass
        end = method.clock.now()
        synchronize(method.ctx.device)
        seconds.append(method.clock.seconds(begin, end))
    total = method.ctx.sum_over_replicas(torch.tensor([statistics.median(seconds)]))
    return total.item() / method.ctx.num_replicas


def group_gradients(parameters: list[nn.Parameter], ready: list[float], rank: int) -> list[GradientGroup]:
    """The gradients in the order of ``ready`` (seconds, one a parameter), at most ``MAX_GROUPS`` equal groups."""
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
