"""Train on a single device, or on all GPUs of this machine with nn.DataParallel.

    python cifar10/data_parallel_train.py --epochs 10 --batch-size 128 --device gpu
    python cifar10/data_parallel_train.py --epochs 10 --batch-size 128 --device gpu --use-parallel
    python cifar10/data_parallel_train.py --dataset digits --epochs 2 --device cpu     # no GPU, no data set needed

Writes results_single.json or results_data_parallel.json. nn.DataParallel splits each batch over the GPUs, copies the
network to all of them in every step, and gathers the outputs on the first one: simple, and slower than one process per
GPU (baseline_multi_card.py), which is why PyTorch recommends the latter.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from cifar10.one_process import (
    OneProcessConfig,
    OneProcessMethod,
    SingleDevice,
    config_of,
    find_devices,
    make_parser,
    run_one,
)
from gradsync.config import Plan
from gradsync.distributed import ReplicaContext


class DataParallel(OneProcessMethod):
    """nn.DataParallel: the loss is that of the whole batch, so the gradient is the single device's."""

    name = "data_parallel"
    title = "Data-Parallel"
    most_devices = sys.maxsize

    def __init__(self, module: nn.Module, config: OneProcessConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        devices = find_devices(config, self.most_devices)
        if len(devices) > 1:
            self.network = nn.DataParallel(module, device_ids=devices)

    @classmethod
    def remark(cls, config: OneProcessConfig, devices: list[torch.device]) -> str:
        if len(devices) > 1:
            return ""
        return f"no parallel effect: nn.DataParallel needs two GPUs, so it is left out and all runs on {devices[0]}"


def choose(argv: list[str] | None = None) -> tuple[type[OneProcessMethod], OneProcessConfig]:
    parser = make_parser(__doc__)
    parser.add_argument("--use-parallel", action="store_true", help="nn.DataParallel over all GPUs")
    flags = parser.parse_args(argv)
    return DataParallel if flags.use_parallel else SingleDevice, config_of(flags)


if __name__ == "__main__":
    sys.exit(run_one(choose))
