"""Train with DistributedDataParallel, or on a single device.

    torchrun --nproc_per_node=4 baseline_multi_card.py                  # DDP: results_baseline_ddp.json
    torchrun --nproc_per_node=4 baseline_multi_card.py --data-dir ./    # on ImageNet in ./train and ./val
    torchrun --nproc_per_node=4 baseline_multi_card.py --bucket-mb 4 --compress fp16
    python baseline_multi_card.py                                       # one device: results_single.json

DDP averages gradients while backward runs: it groups them into buckets and starts a bucket's all-reduce as
soon as its last gradient is there. Nothing of that is visible in the step below, which is DDP's point.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.ddp_compression import add_compression
from gradsync.distributed import Launch, ReplicaContext
from gradsync.main import run_script
from gradsync.method import Method, StepOutput

# BatchNorm statistics are averaged before evaluation, as in every method, and not broadcast in each forward
# pass. The option has a new name since torch 2.15.
_OPTIONS = inspect.signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC = {"forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False}


class Baseline(Method):
    """DistributedDataParallel: buckets, overlapped with backward."""

    name = "baseline_ddp"
    title = "DistributedDataParallel"

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.network = DistributedDataParallel(  # broadcasts rank 0's parameters and buffers
            module,
            device_ids=[ctx.device.index] if ctx.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            bucket_cap_mb=config.bucket_mb,  # None is more than a default of 25: the first bucket is then 1 MiB
            **NO_BUFFER_SYNC,
        )
        self.compression = add_compression(self.network, config, ctx, self.traffic)

    def step(self, batch: Batch) -> StepOutput:
        # DDP averages over replicas; shares of unequal size must count by their samples.
        output = self.forward_backward(batch, loss_factor=batch.weight * self.ctx.num_replicas)
        self.update()
        return output

    def local_step(self, batch: Batch) -> StepOutput:
        with self.network.no_sync():
            return super().local_step(batch)

    def state_dict(self) -> dict[str, Any]:
        remembered = {"compression": self.compression.state_dict()} if self.compression else {}
        return {**super().state_dict(), **remembered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.compression:
            self.compression.load_state_dict(state["compression"])

    def bytes_per_step(self, steps: int) -> float | None:
        if self.compression:  # which counts what its hook sends
            return super().bytes_per_step(steps)
        # DDP communicates by itself; every gradient goes into exactly one bucket.
        return float(sum(p.nbytes for p in self.module.parameters() if p.requires_grad))

    def messages_per_step(self, steps: int) -> float | None:
        if self.compression:
            return super().messages_per_step(steps)
        logged = self.network._get_ddp_logging_data()  # the only place that knows the buckets
        sizes = logged.get("rebuilt_bucket_sizes") or logged.get("bucket_sizes")
        return float(len(sizes.split(","))) if sizes else None


class SingleDevice(Method):
    """The reference: one device, no synchronisation."""

    name = "single"
    title = "Single-Device"
    synchronises = False

    def step(self, batch: Batch) -> StepOutput:
        return self.local_step(batch)


def choose_method(launch: Launch) -> type[Method]:
    return Baseline if launch.by_torchrun else SingleDevice


if __name__ == "__main__":
    sys.exit(run_script(choose_method, description=__doc__))
