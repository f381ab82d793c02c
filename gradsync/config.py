"""The flags of the training scripts: defined once, checked here, frozen afterwards."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from gradsync.errors import UsageError

DATASETS = ("auto", "imagefolder", "cifar10", "digits", "synthetic")
# Flags that say where and how a run executes. Every other flag is part of the recipe: two runs are
# comparable only if those are equal.
EXECUTION_FLAGS = frozenset({"workers", "data_dir", "download", "backend", "output_dir", "timeout", "batch_size",
                             "checkpoint_every", "resume", "profile", "probe_links"})
# Flags that choose a method's variant. Not part of the recipe either: they are what a comparison compares.
METHOD_CHOICES = {
    "variant": ("per-parameter", "flat", "bucketed", "overlapped"),
    "compress": ("none", "fp16", "bf16", "powersgd"),
    "transfer": ("per-parameter", "flat", "pipelined"),
    "mode": ("sync", "async", "ssp"),
}
LR_SCALINGS = ("off", "batch", "replicas")
BUCKET_MB, DDP_BUCKET_MB = 12, 25  # MiB; DDP's is torch's default
METHOD_NUMBERS = ("bucket_mb", "powersgd_rank", "chunk_mb", "num_servers", "staleness")


@dataclass(frozen=True)
class TrainConfig:
    """What the user asked for. ``None`` means: decided from the data set or the number of replicas."""

    epochs: int = 3
    batch_size: int = 64
    global_batch_size: int | None = None
    workers: int | None = None
    data_dir: str | None = None
    dataset: str = "auto"
    download: bool = False
    image_size: int | None = None
    model: str | None = None
    weights: str | None = None
    replace_head: bool = False
    backend: str = "auto"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    lr_schedule: str = "cosine"
    scale_lr: str = "off"
    amp: str = "off"
    channels_last: bool = False
    compile: bool = False
    seed: int = 42
    output_dir: str = "."
    timeout: float = 1800.0
    max_steps: int | None = None
    checkpoint_every: int | None = None  # steps; None: each epoch, 0: never
    resume: bool = False
    profile: bool = False
    probe_links: bool = False
    variant: str = "per-parameter"
    bucket_mb: float | None = None
    compress: str = "none"
    powersgd_rank: int = 4
    transfer: str = "per-parameter"
    chunk_mb: float = 4.0
    num_servers: int = 1
    mode: str = "sync"
    staleness: int = 3

    def global_batch(self, num_replicas: int) -> int:
        """Samples that one optimizer step consumes. Raises UsageError if some replica would never get one."""
        size = self.global_batch_size or self.batch_size * num_replicas
        if size < num_replicas:
            raise UsageError(
                f"--global-batch-size {size}: smaller than the number of replicas ({num_replicas}), "
                "so one of them would never get a sample; use a larger one or fewer ranks"
            )
        return size

    def base_learning_rate(self, global_batch: int, num_replicas: int = 1) -> float:
        """``--lr``; with ``--scale-lr batch`` times global batch / ``--batch-size``; with ``replicas`` times those.

        batch is the linear scaling rule of Goyal et al. 2017 (arXiv:1706.02677): k times the batch, k times the
        rate. They give each replica a batch of its own, so k is also the number of replicas, and many scripts
        multiply by that. Where the global batch stays as it is, that is no longer their rule but another recipe.
        """
        factors = {"off": 1.0, "batch": global_batch / self.batch_size, "replicas": float(num_replicas)}
        return self.lr * factors[self.scale_lr]

    def recipe_flags(self) -> dict[str, Any]:
        """The flags that must be equal for two runs to be comparable."""
        others = EXECUTION_FLAGS.union(METHOD_CHOICES, METHOD_NUMBERS)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}


def learning_rate_factor(schedule: str, step: int, total_steps: int) -> float:
    """Multiple of the base rate at ``step`` (0-based) of ``total_steps``.

    constant: 1. step: 0.1 after each of 50% and 75% of the steps. cosine: (1 + cos(pi step / total)) / 2.
    """
    progress = step / max(1, total_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Plan:
    """How long a run is, and at which rate it starts. The same for every method with the same global batch.

    Unless ``--scale-lr replicas`` asks for a rate that depends on the number of replicas.
    """

    epoch_lengths: tuple[int, ...]  # steps
    learning_rate: float
    schedule: str

    @staticmethod
    def of(config: TrainConfig, train_samples: int, global_batch: int, num_replicas: int = 1) -> Plan:
        """``--max-steps`` ends the run, in the middle of an epoch where it must."""
        per_epoch = -(-train_samples // global_batch)
        total = config.epochs * per_epoch
        if config.max_steps is not None:
            total = min(total, config.max_steps)
        lengths = tuple(min(per_epoch, total - done) for done in range(0, total, per_epoch))
        return Plan(lengths, config.base_learning_rate(global_batch, num_replicas), config.lr_schedule)

    @property
    def total_steps(self) -> int:
        return sum(self.epoch_lengths)

    def learning_rate_at(self, step: int) -> float:
        """Rate of optimizer step ``step`` (0-based) of the run."""
        return self.learning_rate * learning_rate_factor(self.schedule, step, self.total_steps)


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _number(kind: type, low: float, high: float, *, above: bool = False) -> Callable[[str], Any]:
    noun = "whole number" if kind is int else "number"
    bounds = f"{'above' if above else 'at least'} {low:g}" + ("" if math.isinf(high) else f" and at most {high:g}")

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun}; give one {bounds}") from None
        if not math.isfinite(value) or value > high or value < low or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is out of range; give a {noun} {bounds}")
        return value

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all training scripts share."""
    default = TrainConfig()
    count, size = _number(int, 1, 1_000_000), _number(int, 1, 16_777_216)

    group = parser.add_argument_group("data")
    group.add_argument("--data-dir", metavar="DIR", help="directory of the data set (default: ./)")
    group.add_argument("--dataset", choices=DATASETS, default=default.dataset,
                       help="auto takes imagefolder if DIR/train exists, else the embedded digits (default: auto)")
    group.add_argument("--download", action="store_true", help="allow cifar10 to be downloaded into DIR")
    group.add_argument("--image-size", type=_number(int, 8, 4096), metavar="PIXELS",
                       help="side of a training image (default: digits 28, cifar10 32, otherwise 224)")
    group.add_argument("--workers", type=_number(int, 0, 512), metavar="N",
                       help="data-loading processes per rank (default: 0 for data in memory, else by CPU count)")

    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="NAME",
                       help="groupnorm_cnn or a classifier of torchvision "
                            "(default: digits groupnorm_cnn, cifar10 resnet18, otherwise resnet50)")
    group.add_argument("--weights", metavar="FILE", help="local state dict to start from (default: from scratch)")
    group.add_argument("--replace-head", action="store_true",
                       help="with --weights of another number of classes: start the last layer from scratch")

    group = parser.add_argument_group("recipe")
    group.add_argument("--epochs", type=count, default=default.epochs, metavar="N", help="(default: %(default)s)")
    group.add_argument("--batch-size", type=size, default=default.batch_size, metavar="N",
                       help="samples per replica and step (default: %(default)s)")
    group.add_argument("--global-batch-size", type=size, metavar="N",
                       help="samples per step over all replicas (default: batch size x replicas)")
    group.add_argument("--max-steps", type=count, metavar="N", help="end the run after this many optimizer steps")
    group.add_argument("--lr", type=_number(float, 0, 1e6, above=True), default=default.lr, metavar="RATE",
                       help="learning rate of the global batch (default: %(default)s)")
    group.add_argument("--momentum", type=_number(float, 0, 0.999999), default=default.momentum, metavar="M",
                       help="(default: %(default)s)")
    group.add_argument("--weight-decay", type=_number(float, 0, 1e6), default=default.weight_decay, metavar="WD",
                       help="(default: %(default)s)")
    group.add_argument("--lr-schedule", choices=("constant", "step", "cosine"), default=default.lr_schedule,
                       help="over all steps of the run; step: x0.1 at 50%% and 75%% (default: %(default)s)")
    group.add_argument("--scale-lr", nargs="?", choices=LR_SCALINGS, const="batch", default=default.scale_lr,
                       help="batch (or no word): the linear scaling rule, multiply the rate by global batch / "
                            "--batch-size; replicas: multiply it by the number of replicas, whatever the batch "
                            "(default: %(default)s)")
    group.add_argument("--seed", type=_number(int, 0, 2**32 - 1), default=default.seed, metavar="N",
                       help="of weights, data order and augmentation (default: %(default)s)")

    group = parser.add_argument_group("execution")
    group.add_argument("--backend", choices=("auto", "nccl", "gloo"), default=default.backend,
                       help="auto: nccl where each rank has a GPU of its own, else gloo (default: auto)")
    group.add_argument("--amp", choices=("off", "bf16", "fp16"), default=default.amp,
                       help="automatic mixed precision (default: %(default)s)")
    group.add_argument("--channels-last", action="store_true", help="NHWC memory format")
    group.add_argument("--compile", action="store_true", help="torch.compile the model")
    group.add_argument("--output-dir", default=default.output_dir, metavar="DIR",
                       help="for results_*.json and saved_models/ (default: %(default)s)")
    group.add_argument("--timeout", type=_number(float, 0, 604_800, above=True), default=default.timeout,
                       metavar="SECONDS", help="a rank waits this long for another one (default: %(default)g)")
    group.add_argument("--checkpoint-every", type=_number(int, 0, 1_000_000_000), metavar="STEPS",
                       help="write a checkpoint after every so many steps; 0: never (default: after each epoch)")
    group.add_argument("--profile", action="store_true",
                       help="write a Chrome trace of a few steady steps of each rank into DIR/profiles/")
    group.add_argument("--probe-links", action="store_true",
                       help="before training, measure latency and bandwidth between ranks and of all-reduce, and the "
                            "method's exchange alone; takes seconds, on slow links tens of them")
    group.add_argument("--resume", action="store_true",
                       help="go on from the checkpoint in --output-dir; from the beginning where there is none, and "
                            "not at all where the run has finished")


def add_method_arguments(parser: argparse.ArgumentParser, flags: Iterable[str]) -> None:
    """Add those of the flags that choose a method's variant which are in ``flags``."""
    default, megabytes = TrainConfig(), _number(float, 0, 4096, above=True)
    settings: dict[str, dict[str, Any]] = {
        "variant": {"help": "how gradients are all-reduced; overlapped: in buckets, while backward runs"},
        "bucket_mb": {"type": megabytes, "metavar": "MB",
                      "help": f"bucket size in MiB (default: DDP {DDP_BUCKET_MB}, otherwise {BUCKET_MB})"},
        "compress": {"help": "gradients on the wire: 16 bits a number, or low-rank factors (PowerSGD)"},
        "powersgd_rank": {"type": _number(int, 1, 1024), "metavar": "R", "help": "rank of PowerSGD's factors"},
        "transfer": {"help": "one message per parameter, one in all, or chunks whose receiving, reducing, updating "
                             "and sending overlap"},
        "chunk_mb": {"type": megabytes, "metavar": "MB", "help": "chunk size of --transfer pipelined, in MiB"},
        "num_servers": {"type": _number(int, 1, 1024), "metavar": "S",
                        "help": "server ranks; the parameters are sharded over them by bytes"},
        "mode": {"help": "sync: one update a step; async: one a push, at once; ssp: async with bounded staleness"},
        "staleness": {"type": _number(int, 0, 1_000_000), "metavar": "K",
                      "help": "with --mode ssp: steps that the fastest worker may be ahead of the slowest"},
    }
    group = parser.add_argument_group("method")
    for flag, options in settings.items():
        if flag in flags:
            if flag in METHOD_CHOICES:
                options["choices"] = METHOD_CHOICES[flag]
            shown = "" if "default:" in options["help"] else " (default: %(default)s)"
            group.add_argument(f"--{flag.replace('_', '-')}", default=getattr(default, flag),
                               **{**options, "help": options["help"] + shown})


def parse_config(argv: list[str] | None, description: str | None, method_flags: Iterable[str] = ()) -> TrainConfig:
    """The frozen flags of one run. Raises UsageError that names the flag; exits 0 after ``--help``."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    add_arguments(parser)
    add_method_arguments(parser, method_flags)
    return TrainConfig(**vars(parser.parse_args(argv)))
