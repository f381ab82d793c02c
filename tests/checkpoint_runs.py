"""Runs that are killed and taken up again, each as its script would run it, on the ranks of one launch."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

import all_reduce_train
import baseline_multi_card
import ps_train
from gradsync import main, probe, training
from gradsync.checkpoint import Checkpoints
from gradsync.data import GlobalBatchSampler
from gradsync.distributed import Launch
from gradsync.method import Tally
from gradsync.results import read_results

METHODS = {"baseline_ddp": (baseline_multi_card.Baseline, None), "all_reduce": (all_reduce_train.AllReduce, None),
           "ps": (ps_train.ParameterServerWorker, ps_train.ParameterServer),
           "single": (baseline_multi_card.SingleDevice, None)}
# 26 images in global batches of 8: on three replicas shares of 3, 3, 2, and at last 1, 1, 0.
PER_CLASS, CLASSES, GLOBAL_BATCH, STEPS_PER_EPOCH, EPOCHS = 13, 2, 8, 4, 3
FLAGS = ["--global-batch-size", str(GLOBAL_BATCH), "--epochs", str(EPOCHS), "--image-size", "16", "--lr", "0.05"]


class NoWatchdog:
    """Its thread would outlive a process that is killed in appearance only."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def start(self, store: Any) -> None:
        pass

    def stop(self) -> None:
        pass

    def report(self, line: str, echo: bool) -> int:
        print(f"error: {line}", file=sys.stderr)
        return 1


class Killed(BaseException):
    """What a kill looks like from inside: nothing of the product catches it."""


class Net(nn.Sequential):
    """BatchNorm (statistics of its own on each replica) and dropout (random numbers)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
                         nn.Linear(4 * 7 * 7, CLASSES))


def build_net(name: str, data: Any, config: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Net()


def make_images(folder: Path) -> Path:
    """train/ and val/ with a folder per class, of noise whose mean tells the class."""
    random = np.random.default_rng(0)
    for split, count in (("train", PER_CLASS), ("val", 8)):
        for label in range(CLASSES):
            (folder / split / str(label)).mkdir(parents=True)
            for number in range(count):
                pixels = random.normal(110 + 35 * label, 60, (20, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f"{number}.png")
    return folder


@contextlib.contextmanager
def killed_at(when: int | str | None) -> Iterator[None]:
    """Kill this process at a measured step of its own (from 1), in its n-th evaluation, or while it writes a manifest.

    ``when``: a step, "evaluation", "manifest", or None.
    """
    counts = {"steps": 0}
    add = Tally.add

    def add_and_die(self: Tally, *arguments: Any) -> None:
        add(self, *arguments)
        counts["steps"] += 1
        if counts["steps"] == when:
            raise Killed

    def die(*arguments: Any) -> None:
        raise Killed

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Tally, "add", add_and_die))
        if when == "evaluation":
            patches.enter_context(mock.patch.object(training, "evaluate", die))
        if when == "manifest":
            patches.enter_context(mock.patch.object(Checkpoints, "_replace_manifest", die))
        yield


_merge_records = training.merge_records


def make_the_second_epoch_the_best(ctx: Any, records: Any, epoch: Any, results: Any) -> None:
    """So that a run resumed in the third must bring the best model along."""
    _merge_records(ctx, records, epoch, results)
    epoch.val_accuracy = {1: 60.0, 2: 80.0, 3: 70.0}[epoch.epoch]


def run_once(name: str, flags: list[str], launch: Launch, store: dist.Store) -> int | None:
    """The exit code, or None if the run was killed."""
    method, server = METHODS[name]
    original = main.process_group
    with mock.patch.multiple(main, process_group=lambda *args: original(*args, store=store), build_model=build_net,
                             own_store=lambda launch: None, Watchdog=NoWatchdog, end_process=lambda status: status,
                             read_launch=lambda: launch, FIRST_WORD_SECONDS=0), \
            mock.patch.multiple(probe, WARM_UP_STEPS=1, MIN_ROUNDS=2, MAX_ROUNDS=2), \
            mock.patch.object(training, "merge_records", make_the_second_epoch_the_best):
        try:
            return main.run_script(lambda launch: method, server=server, argv=flags)
        except Killed:
            return None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()  # what the death of the process would do


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """All that must not depend on whether a run was interrupted: exactly what it computed, nothing it measured."""
    results = read_results(folder / f"results_{name}.json")
    epochs = [(e.epoch, e.steps, e.samples, e.train_loss, e.train_accuracy, e.val_loss, e.val_accuracy, e.val_samples,
               e.learning_rate, e.fingerprints, e.parameter_sketch, e.server and e.server.updates,
               e.server and e.server.bytes_sent) for e in results.epochs]
    best = torch.load(folder / "saved_models" / f"{name}_best.pth", weights_only=True)
    digest = hashlib.sha256(b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in best.items()))
    return {"losses": results.all_losses, "epochs": epochs, "best accuracy": results.best_accuracy,
            "best model": digest.hexdigest(), "start": results.initial_fingerprints,
            "traffic": results.communication.model_dump()}


def runs_on_rank(rank: int, world_size: int, store_path: str, name: str, images: str, output: str,
                 cases: dict[str, tuple[list[str], list[int | str], str | None]]) -> None:
    """For each case (flags, where each process but the last is killed, fault planted in those that resume)."""
    multiprocessing.set_start_method("fork", force=True)  # for the data-loading processes
    launch = Launch(rank, world_size, rank, world_size, by_torchrun=name != "single")
    store, number = dist.FileStore(store_path, world_size), 0
    for case, (flags, kills, fault) in cases.items():
        codes = []
        for turn, when in enumerate([*kills, None]):
            number += 1
            words = [*FLAGS, *flags, "--data-dir", images, "--output-dir", f"{output}/{case}"]
            with killed_at(when), plant(fault if turn else None):
                resume = ["--resume"] if kills else []
                codes.append(run_once(name, words + resume, launch, dist.PrefixStore(str(number), store)))
        assert codes[-1] == 0, (case, codes)
        assert 0 not in codes[:-1], (case, codes)


@contextlib.contextmanager
def plant(fault: str | None) -> Iterator[None]:
    if fault is None:
        yield
        return
    owner, attribute, replacement = FAULTS[fault]
    with mock.patch.object(owner, attribute, replacement):
        yield


_restore, _set_epoch = Checkpoints.restore, GlobalBatchSampler.set_epoch


def _restore_without(*lost: str):
    def restore(self: Checkpoints, trainer: Any) -> dict[str, Any]:
        own = {name: tensor.clone() for name, tensor in trainer.module.named_buffers()}
        rest = _restore(self, trainer)
        if "buffers" in lost:
            trainer.module.load_state_dict(own, strict=False)
        return {key: value for key, value in rest.items() if key not in lost}

    return restore


def _restore_with_fresh(part: str):
    """``part`` of every rank as it is at the start of a run; a server has it under a name of its own."""
    def restore(self: Checkpoints, trainer: Any) -> dict[str, Any]:
        fresh = deepcopy(trainer.state_dict())
        rest = _restore(self, trainer)
        state = trainer.state_dict()
        if trainer.ctx.is_server:
            name = {"optimizer": "optimizers", "schedule": "applied"}[part]
            state["optimizer"][name] = fresh["optimizer"][name]
        else:
            state[part] = fresh[part]
        trainer.load_state_dict(state)
        return rest

    return restore


# What goes wrong in the processes that resume.
FAULTS = {
    "momentum lost": (Checkpoints, "restore", _restore_with_fresh("optimizer")),
    "schedule starts anew": (Checkpoints, "restore", _restore_with_fresh("schedule")),
    "data order off by one": (GlobalBatchSampler, "set_epoch", lambda self, epoch, steps=None, first=0: _set_epoch(
        self, epoch, steps, max(0, first - 1))),
    "random state lost": (Checkpoints, "restore_random_state", lambda self: None),
    "best model lost": (Checkpoints, "restore", _restore_without("best")),
    "running statistics lost": (Checkpoints, "restore", _restore_without("buffers")),
}
