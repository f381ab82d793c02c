"""Train with DistributedDataParallel, or on a single device.

    torchrun --nproc_per_node=4 baseline_multi_card.py                  # DDP: results_baseline_ddp.json
    torchrun --nproc_per_node=4 baseline_multi_card.py --data-dir ./    # on ImageNet in ./train and ./val
    python baseline_multi_card.py                                       # one device: results_single.json

DDP averages gradients while backward runs: it groups them into buckets and starts a bucket's all-reduce as
soon as its last gradient is there. Nothing of that is visible in the step below, which is DDP's point.
"""

from __future__ import annotations

import inspect
import sys

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
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
            **NO_BUFFER_SYNC,
        )

    def step(self, batch: Batch) -> StepOutput:
        # DDP averages over replicas; shares of unequal size must count by their samples.
        output = self.forward_backward(batch, loss_factor=batch.weight * self.ctx.num_replicas)
        self.update()
        return output

    def local_step(self, batch: Batch) -> StepOutput:
        with self.network.no_sync():
            return super().local_step(batch)

    def bytes_per_step(self, steps: int) -> float:
        # DDP communicates by itself; every gradient goes into exactly one bucket.
        return float(sum(p.nbytes for p in self.module.parameters() if p.requires_grad))

    def messages_per_step(self, steps: int) -> float | None:
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
