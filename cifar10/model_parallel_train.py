"""Train on a single device, or with the network split over two.

    python cifar10/model_parallel_train.py --epochs 10 --batch-size 128 --device gpu
    python cifar10/model_parallel_train.py --epochs 10 --batch-size 128 --device gpu --use-model-parallel
    python cifar10/model_parallel_train.py --epochs 10 --batch-size 128 --use-model-parallel --chunks 4
    OMP_NUM_THREADS=1 python cifar10/model_parallel_train.py --dataset digits --epochs 2 --device cpu \\
        --use-model-parallel --chunks 4            # two cores stand in for two devices

Writes results_single.json, results_model_parallel.json or results_pipeline.json. The textbook version makes room for
larger networks and is no faster than one device: one part waits while the other works. With --chunks both work at
once, on different micro-batches of one batch; the gradient stays the same.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.nn import functional

from cifar10.one_process import (
    OneProcessConfig,
    OneProcessMethod,
    SingleDevice,
    add_chunks,
    config_of,
    find_devices,
    make_parser,
    run_one,
)
from gradsync.config import Plan
from gradsync.data import Batch
from gradsync.distributed import ReplicaContext
from gradsync.errors import UsageError
from gradsync.method import StepOutput
from gradsync.timing import synchronize


class SplitNetwork(nn.Sequential):
    """The two parts of a network on a device each; images come from, and outputs return to, the first one."""

    def __init__(self, network: nn.Sequential, first: torch.device, second: torch.device) -> None:
        super().__init__(OrderedDict(first=network.first.to(first), second=network.second.to(second)))
        self.devices = first, second

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = self.devices
        return self.second(self.first(images).to(second)).to(first)


class ModelParallel(OneProcessMethod):
    """The textbook version: forward through the first part, then the second; autograd goes back the same way."""

    name = "model_parallel"
    title = "Model-Parallel"
    most_devices = 2

    def __init__(self, module: nn.Sequential, config: OneProcessConfig, ctx: ReplicaContext, plan: Plan) -> None:
        devices = find_devices(config, self.most_devices)
        super().__init__(SplitNetwork(module, devices[0], devices[-1]), config, ctx, plan)

    @classmethod
    def remark(cls, config: OneProcessConfig, devices: list[torch.device]) -> str:
        if len(devices) > 1:
            return ""
        return f"no parallel effect: only one device, so both parts are on {devices[0]}"

    def refresh_parameters(self) -> None:
        synchronize(self.module.devices[1])  # the epoch ends when the second device is done, too


class Pipeline(ModelParallel):
    """The same step in micro-batches, so that the first part is at the next one while the second is at this one.

    The second part, in a thread of its own, goes forward and straight back through each micro-batch as it comes; the
    first part goes forward through all of them, then back as their gradients arrive. With equal parts M micro-batches
    take (M + 1) / 2M of the time of one device: the bubble of GPipe for two devices (Huang et al. 2019,
    arXiv:1811.06965), at fewer activations on the second. A micro-batch's loss is a sum divided by the size of the
    whole batch, so gradients add up to the unsplit batch's, however unequal the micro-batches are.
    """

    name = "pipeline"
    title = "Pipeline"

    def __init__(self, module: nn.Sequential, config: OneProcessConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.second_part = ThreadPoolExecutor(max_workers=1, thread_name_prefix="second part")

    @classmethod
    def remark(cls, config: OneProcessConfig, devices: list[torch.device]) -> str:
        if devices[0].type != "cpu":
            return super().remark(config, devices)
        threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
        if 2 * threads > cores:
            return (f"no parallel effect: both parts share the CPU, threads: {threads} a part, cores: {cores}; "
                    "with fewer, set by OMP_NUM_THREADS, half of the cores stand in for a device")
        return f"cores stand in for devices: each part has as many threads ({threads}) as the single device has in all"

    def forward_backward(self, batch: Batch, loss_factor: float = 1.0) -> StepOutput:
        with self.clock.phase("forward_backward"):
            self.updater.optimizer.zero_grad(set_to_none=True)
            self.module.train()
            chunks = min(self.config.chunks, len(batch.images))
            micro_batches = zip(batch.images.tensor_split(chunks), batch.labels.tensor_split(chunks), strict=True)
            under_way = []
            for images, labels in micro_batches:
                features = self.module.first(images)
                answer = self.second_part.submit(
                    self.forward_backward_second, features.detach(), labels, loss_factor / len(batch.images))
                under_way.append((features, answer))
            outputs = []
            for features, answer in under_way:
                gradient, output = answer.result()
                features.backward(gradient)
                outputs.append(output)
        return StepOutput(sum(output.loss for output in outputs), sum(output.correct for output in outputs))

    def forward_backward_second(self, features: torch.Tensor, labels: torch.Tensor,
                                weight: float) -> tuple[torch.Tensor, StepOutput]:
        """The second part's gradient of ``weight`` x the summed loss of a micro-batch.

        Returns the gradient by its features, and the weighted loss and correct samples, all on the first device.
        """
        first, second = self.module.devices
        features, labels = features.to(second).requires_grad_(), labels.to(second)
        outputs = self.module.second(features)
        loss = functional.cross_entropy(outputs, labels, reduction="sum") * weight
        loss.backward()
        correct = (outputs.detach().argmax(dim=1) == labels).sum()
        assert features.grad is not None
        return features.grad.to(first), StepOutput(loss.detach().to(first), correct.to(first))


def choose(argv: list[str] | None = None) -> tuple[type[OneProcessMethod], OneProcessConfig]:
    parser = make_parser(__doc__)
    parser.add_argument("--use-model-parallel", action="store_true", help="split the network over two devices")
    add_chunks(parser, 1, "1 is the textbook version")
    flags = parser.parse_args(argv)
    config = config_of(flags)
    if not flags.use_model_parallel:
        if config.chunks > 1:
            raise UsageError(f"--chunks {config.chunks}: only with --use-model-parallel; add that or leave this out")
        return SingleDevice, config
    return Pipeline if config.chunks > 1 else ModelParallel, config


if __name__ == "__main__":
    sys.exit(run_one(choose))
