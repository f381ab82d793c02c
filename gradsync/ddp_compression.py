"""Compression inside DistributedDataParallel, by the communication hooks that come with torch.

The hooks divide by the number of ranks, as DDP itself does, so the same factor on the loss makes shares of unequal
size count by their samples: https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html
"""

# No "from __future__ import annotations" here: DDP refuses a hook whose annotations are strings.

from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from gradsync.config import TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.timing import Traffic

CASTS = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
# The least that torch allows: DDP rearranges its buckets after the first step. Those steps are not compressed.
FIRST_COMPRESSED_STEP = 2
_REMEMBERED = ("iter", "error_dict", "p_memory_dict", "q_memory_dict")


class HookCompression:
    """``--compress fp16|bf16``: the bucket cast to 16 bits. Counts what it hands to all-reduces."""

    def __init__(self, network: DistributedDataParallel, config: TrainConfig, traffic: Traffic) -> None:
        self.cast, self.traffic = CASTS[config.compress], traffic
        network.register_comm_hook(None, self.start)

    def start(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.traffic.bytes_sent += 2 * bucket.buffer().numel()
        self.traffic.messages += 1
        return self.cast(None, bucket)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class HookPowerSGD:
    """``--compress powersgd``. Torch's form of what ``gradsync.low_rank`` describes, in three all-reduces a bucket:
    what is not compressed (which may be nothing), P, Q."""

    def __init__(self, network: DistributedDataParallel, config: TrainConfig, ctx: ReplicaContext,
                 traffic: Traffic) -> None:
        self.traffic, self.one_bucket_at_a_time = traffic, ctx.backend == "gloo"
        self.state = PowerSGDState(
            None, config.powersgd_rank, FIRST_COMPRESSED_STEP, min_compression_rate=1,
            orthogonalization_epsilon=1e-8,  # without it, a column of zeros becomes NaN at ranks 1 and 2
            random_seed=config.seed,
        )
        network.register_comm_hook(None, self.start)

    def start(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        compressed = self.state.iter >= FIRST_COMPRESSED_STEP
        before = self.state.total_numel_after_compression
        future = powerSGD_hook(self.state, bucket)
        sent = self.state.total_numel_after_compression - before if compressed else buffer.numel()
        self.traffic.bytes_sent += sent * buffer.element_size()
        self.traffic.messages += 3 if compressed else 1
        if self.one_bucket_at_a_time:
            # The hook starts its later all-reduces, and waits for them, in callbacks on gloo's two threads. Two
            # buckets in flight could block both, or start them in another order than on another rank.
            future.wait()
        return future

    def state_dict(self) -> dict[str, Any]:
        _, keys, position, *_ = self.state.rng.get_state()
        remembered = {name: getattr(self.state, name) for name in _REMEMBERED}
        return {**remembered, "rng": (torch.from_numpy(keys.astype("int64")), position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _REMEMBERED:
            setattr(self.state, name, deepcopy(state[name]))
        keys, position = state["rng"]
        self.state.rng.set_state(("MT19937", keys.numpy().astype("uint32"), position))


def add_compression(network: DistributedDataParallel, config: TrainConfig, ctx: ReplicaContext,
                    traffic: Traffic) -> HookCompression | HookPowerSGD | None:
    """What ``--compress`` asks for, registered with DDP; None leaves the communication to DDP alone."""
    if config.compress == "none":
        return None
    if config.compress == "powersgd":
        return HookPowerSGD(network, config, ctx, traffic)
    return HookCompression(network, config, traffic)
