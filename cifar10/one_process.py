"""What the scripts of this folder share: their flags, and a run in one process on one or several devices.

Data, loop, clock, evaluation and results are those of ``gradsync``: a run here is a run of one replica.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from cifar10.network import NAME, two_part_cnn
from gradsync.config import OneLineParser, Plan, TrainConfig, number_in
from gradsync.data import Batch
from gradsync.datasets import ImageData, open_dataset
from gradsync.distributed import Launch, read_launch
from gradsync.errors import UsageError
from gradsync.main import Prepared, exit_code
from gradsync.method import Method, StepOutput, Updater
from gradsync.screen import say

NOT_OF_THE_RECIPE = ("device", "chunks", "momentum", "weight_decay")  # of Adam as it is used here


@dataclass(frozen=True)
class OneProcessConfig(TrainConfig):
    """The flags of this folder under the names of ``TrainConfig``. ``chunks``: micro-batches of a step."""

    epochs: int = 10
    batch_size: int = 128
    workers: int | None = 2
    data_dir: str | None = "./data"
    dataset: str = "cifar10"
    lr: float = 1e-3
    lr_schedule: str = "constant"
    output_dir: str = "cifar10_results"
    checkpoint_every: int | None = 0
    device: str = "gpu"
    chunks: int = 1

    def recipe_flags(self) -> dict[str, Any]:
        return {name: value for name, value in super().recipe_flags().items() if name not in NOT_OF_THE_RECIPE}


def make_parser(description: str | None) -> OneLineParser:
    """A parser with the flags that all scripts of this folder share."""
    parser = OneLineParser(description=description, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    default = OneProcessConfig()
    count = number_in(int, 1, 1_000_000)
    parser.add_argument("--data-root", dest="data_dir", default=default.data_dir, metavar="DIR",
                        help="holds CIFAR-10 in torchvision's layout, cifar-10-batches-py/ (default: %(default)s)")
    parser.add_argument("--dataset", choices=("cifar10", "digits"), default=default.dataset,
                        help="digits come with the project (default: %(default)s)")
    parser.add_argument("--download", action="store_true", help="allow CIFAR-10 to be downloaded into DIR (170 MB)")
    parser.add_argument("--epochs", type=count, default=default.epochs, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=number_in(int, 1, 16_777_216), default=default.batch_size, metavar="N",
                        help="samples per step, over all devices (default: %(default)s)")
    parser.add_argument("--max-steps", type=count, metavar="N", help="end the run after this many optimizer steps")
    parser.add_argument("--lr", type=number_in(float, 0, 1e6, above=True), default=default.lr, metavar="RATE",
                        help="learning rate of Adam (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default=default.device,
                        help="gpu falls back to the CPU where there is none, and says so (default: %(default)s)")
    parser.add_argument("--seed", type=number_in(int, 0, 2**32 - 1), default=default.seed, metavar="N",
                        help="of weights, data order and augmentation (default: %(default)s)")
    parser.add_argument("--num-workers", dest="workers", type=number_in(int, 0, 512), default=default.workers,
                        metavar="N", help="data-loading processes (default: %(default)s)")
    parser.add_argument("--output-dir", default=default.output_dir, metavar="DIR",
                        help="for the results and saved_models/ (default: ./%(default)s)")
    return parser


def add_chunks(parser: OneLineParser, default: int, extra: str) -> None:
    parser.add_argument("--chunks", type=number_in(int, 1, 65_536), default=default, metavar="M",
                        help=f"micro-batches into which model parallelism cuts a batch, so that both devices work at "
                             f"once; {extra} (default: %(default)s)")


def config_of(flags: argparse.Namespace) -> OneProcessConfig:
    """The frozen flags. Raises UsageError where ``--chunks`` does not fit the batch."""
    names = {field.name for field in dataclasses.fields(OneProcessConfig)}
    config = OneProcessConfig(**{name: value for name, value in vars(flags).items() if name in names})
    if config.chunks > config.batch_size:
        raise UsageError(f"--chunks {config.chunks}: more than the {config.batch_size} samples of --batch-size; "
                         "a chunk needs at least one")
    return config


def find_devices(config: OneProcessConfig, most: int) -> list[torch.device]:
    """Up to ``most`` GPUs if ``--device gpu`` and there are any, else the CPU, which is one device."""
    gpus = torch.cuda.device_count() if config.device == "gpu" and torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(min(gpus, most))] or [torch.device("cpu")]


class AdamUpdater(Updater):
    """Adam with its usual constants; the rate stays as it is."""

    def make_optimizer(self, parameters: list[nn.Parameter], config: TrainConfig, plan: Plan) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=plan.learning_rate)


class OneProcessMethod(Method):
    """A method whose devices all belong to this process, so that no gradient crosses a process boundary."""

    synchronises = False
    updater_type = AdamUpdater
    most_devices: ClassVar[int]
    config: OneProcessConfig

    @classmethod
    def remark(cls, config: OneProcessConfig, devices: list[torch.device]) -> str:
        """What a reader must know about the parallelism on these devices, above all where there is none; or ""."""
        return ""

    def step(self, batch: Batch) -> StepOutput:
        return self.local_step(batch)


class SingleDevice(OneProcessMethod):
    """The reference: the whole network and the whole batch on one device."""

    name = "single"
    title = "Single-Device"
    most_devices = 1


class OneProcessRun(Prepared):
    """A checked run of one method. Raises UsageError; ``data`` saves opening the data set once more."""

    method: type[OneProcessMethod]
    config: OneProcessConfig

    def __init__(self, method: type[OneProcessMethod], config: OneProcessConfig, data: ImageData | None = None) -> None:
        if read_launch().by_torchrun:
            raise UsageError("this script is one process with all devices: start it with python, not with torchrun")
        self.devices = find_devices(config, method.most_devices)
        super().__init__(method, None, Launch(), config, data or open_data(config))
        self.results.parallelism = {
            "devices": [str(device) for device in self.devices], "chunks": config.chunks,
            "remark": method.remark(config, self.devices),
        }

    def choose_backend(self) -> tuple[str, torch.device]:
        return "gloo", self.devices[0]

    def choose_model(self) -> str:
        return NAME

    def build_model(self, name: str) -> nn.Module:
        torch.manual_seed(self.config.seed)
        return two_part_cnn(self.data.info.num_classes, self.data.info.image_shape[0])

    def recipe(self, model: str) -> dict[str, Any]:
        return {**super().recipe(model), "optimizer": "adam"}

    def run(self) -> None:
        if self.config.device == "gpu" and self.device.type == "cpu":
            say("Note: --device gpu: there is no GPU here, so this runs on the CPU")
        if remark := self.results.parallelism["remark"]:
            say(f"Note: {remark}")
        super().run()


def open_data(config: OneProcessConfig) -> ImageData:
    """The data set. Raises UsageError that names the directory and offers what works at once."""
    return open_dataset(config, grey=True, flag="--data-root")


def run_one(choose: Callable[[], tuple[type[OneProcessMethod], OneProcessConfig]]) -> int:
    """Run what ``choose`` makes of the flags; returns the exit code: 0 done, 2 refused input, 1 failed."""
    return exit_code(Launch(), lambda: OneProcessRun(*choose()))
