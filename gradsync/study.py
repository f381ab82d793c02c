"""The speed-up study: how much do N devices give? Its flags, its named presets, and the runs that it consists of.

Nothing here imports torch, so that bad flags are refused before that takes its seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsync.config import OneLineParser, Plan, TrainConfig
from gradsync.errors import UsageError

if TYPE_CHECKING:
    from gradsync.hosts import Hosts
    from gradsync.main import Prepared
    from gradsync.method import Method
    from gradsync.preflight import Script

# Each is no more than flags: those that a user gives beside it come later, and so prevail.
STUDIES: dict[str, tuple[str, ...]] = {
    # The usual first experiment with data parallelism: a single device against two.
    "classic": (
        "--scaling", "1,2", "--methods", "baseline_ddp", "--dataset", "cifar10", "--image-size", "224",
        "--model", "resnet18", "--global-batch-size", "512", "--epochs", "1", "--lr", "0.01", "--scale-lr", "replicas",
        "--momentum", "0.9", "--weight-decay", "0", "--lr-schedule", "constant"),
}


@dataclass(frozen=True)
class Scaling:
    """Numbers of ranks to compare, ascending. Strong: one global batch; weak: one batch per replica."""

    ranks: tuple[int, ...]
    weak: bool = False

    def check(self, config: TrainConfig, nproc: int | None, hosts: Hosts | None = None) -> None:
        """Raises UsageError where other flags contradict the study."""
        if hosts is not None:
            raise UsageError(f"--nnodes {hosts.count}: a study of several numbers of ranks runs on one host; leave out "
                             "--scaling or --study, and compare runs with other numbers of hosts by hand")
        if nproc is not None:
            raise UsageError(f"--nproc {nproc}: --scaling says already how many ranks there are; leave one of them out")
        if self.weak and config.global_batch_size is not None:
            raise UsageError(f"--global-batch-size {config.global_batch_size}: with --weak the batch of each replica "
                             "stays the same, so the global one grows; give --batch-size instead")


@dataclass(frozen=True)
class Planned:
    """One training run that the one-shot script will start, without its model: a study has many of them.

    ``folder`` is relative to the output directory; ``ranks`` 0 means without torchrun, on a single device.
    """

    folder: str
    ranks: int
    file: str
    name: str
    method: type[Method]
    config: TrainConfig
    plan: Plan
    replicas: int
    share: int  # samples of the largest replica's part of a global batch

    @staticmethod
    def of(ranks: int, script: Script, prepared: Prepared, folder: str = "") -> Planned:
        replicas = prepared.launch.world_size - prepared.num_servers
        return Planned(folder, ranks, script.file, prepared.name, prepared.method, prepared.config, prepared.plan,
                       replicas, -(-prepared.global_batch // replicas))


def expanded(argv: Sequence[str]) -> list[str]:
    """The flags with those of ``--study`` in its place, before all others."""
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--study", choices=tuple(STUDIES))
    chosen, others = parser.parse_known_args(argv)
    return [*STUDIES.get(chosen.study, ()), *others]


def rank_counts(text: str, highest: int) -> tuple[int, ...]:
    """``1,2,4`` as numbers, ascending, each once. Raises ArgumentTypeError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= highest for word in words):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers of ranks; give whole numbers from 1 to {highest}, such as 1,2,4")
    return tuple(sorted({int(word) for word in words}))
