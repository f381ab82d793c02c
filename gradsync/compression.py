"""What of a bucket goes over the wire: all of it, 16 bits a number, or low-rank factors.

A compression answers ``rounds(bucket)``: a generator that yields each tensor to be summed over the replicas, is
resumed when the sum stands in that tensor, and leaves the sum of the gradients in the bucket. Its buffers are
made once, in the beginning. ``state_dict`` holds what it remembers from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gradsync.buckets import Bucket
from gradsync.config import TrainConfig
from gradsync.low_rank import LowRankBucket


class Uncompressed:
    """The bucket as it is."""

    def rounds(self, bucket: Bucket) -> Iterator[torch.Tensor]:
        yield bucket.flat

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class SixteenBit(Uncompressed):
    """The bucket in half precision: cast, summed in 16 bits, cast back.

    fp16 holds magnitudes from 6e-8 to 65504. Late in training most gradients, weighted by their share, are near
    the lower end, where digits are lost and then whole numbers. So they are multiplied by ``FP16_SCALE`` before
    the cast and divided after it, which is exact, and sums of up to 64 fit. A larger sum becomes infinite, alike on
    all replicas, and ends the run with a loss that is not finite: it is not clipped, which nobody would notice.
    Under ``--amp fp16`` the loss scaler does all that already, and lowers its scale where a sum overflows.
    bf16 has the range of float32 and needs no scale.

    There is no error feedback: what rounding drops is of random sign and at most 2^-11 (fp16) or 2^-8 (bf16) of
    each number, far below the noise of the samples; it does not drop the same directions in every step, as a
    low-rank approximation does, and a residual would cost as much memory as the gradients.
    """

    FP16_SCALE = 1024.0

    def __init__(self, buckets: Sequence[Bucket], dtype: torch.dtype, loss_is_scaled: bool) -> None:
        self.scale = self.FP16_SCALE if dtype == torch.float16 and not loss_is_scaled else 1.0
        self.wires = {id(bucket): torch.empty_like(bucket.flat, dtype=dtype) for bucket in buckets}

    def rounds(self, bucket: Bucket) -> Iterator[torch.Tensor]:
        wire = self.wires[id(bucket)]
        wire.copy_(bucket.flat if self.scale == 1.0 else bucket.flat.mul_(self.scale))
        yield wire
        bucket.flat.copy_(wire)
        if self.scale != 1.0:
            bucket.flat.mul_(1 / self.scale)


class PowerSGD(Uncompressed):
    """Low-rank factors of each matrix, with error feedback; see ``LowRankBucket``."""

    def __init__(self, buckets: Sequence[Bucket], rank: int, scaler: torch.amp.GradScaler, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)  # the same factors to start from on all replicas
        self.low_rank = {id(bucket): LowRankBucket(bucket, rank, scaler, generator) for bucket in buckets}

    def rounds(self, bucket: Bucket) -> Iterator[torch.Tensor]:
        return self.low_rank[id(bucket)].rounds()

    def state_dict(self) -> dict[str, Any]:
        return {"buckets": [{"errors": bucket.errors, "q": bucket.second} for bucket in self.low_rank.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for bucket, saved in zip(self.low_rank.values(), state["buckets"], strict=True):
            bucket.second.copy_(saved["q"])
            for error, value in zip(bucket.errors, saved["errors"], strict=True):
                error.copy_(value)


def make_compression(config: TrainConfig, buckets: Sequence[Bucket], scaler: torch.amp.GradScaler) -> Uncompressed:
    """What ``--compress`` asks for."""
    if config.compress == "none":
        return Uncompressed()
    if config.compress == "powersgd":
        return PowerSGD(buckets, config.powersgd_rank, scaler, config.seed)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.compress]
    return SixteenBit(buckets, dtype, loss_is_scaled=scaler.is_enabled())
