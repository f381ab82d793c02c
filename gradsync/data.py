"""Which samples a replica sees at which step: the global-batch sampler, its loaders, the batch itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from gradsync.datasets import ImageData, Key
from gradsync.distributed import ReplicaContext, share_bounds
from gradsync.process import end_with_parent


@dataclass(frozen=True)
class Batch:
    """A replica's share of one global batch, on its device.

    images [B, C, H, W], labels [B]. ``num_samples`` is B, or 0 where this replica's share is empty: then a
    borrowed sample stands in, whose weight is 0, so that every replica takes part in the communication.
    """

    images: torch.Tensor
    labels: torch.Tensor
    num_samples: int
    global_samples: int

    @property
    def weight(self) -> float:
        """This share's part of the global batch: what its mean gradient counts in the average."""
        return self.num_samples / self.global_samples


class GlobalBatchSampler:
    """Cuts a permutation of (seed, epoch) into global batches, and each into contiguous replica shares.

    Global batch b of epoch e is the same set of samples for every method and number of replicas. The last,
    short batch is kept. Iterating yields this replica's keys (epoch, index) of each step; an empty share
    yields the global batch's first sample, to be given weight 0.
    """

    def __init__(self, num_samples: int, global_batch_size: int, num_replicas: int, replica_rank: int,
                 seed: int) -> None:
        self.num_samples, self.global_batch_size, self.seed = num_samples, global_batch_size, seed
        self.num_replicas, self.replica_rank = num_replicas, replica_rank
        self.epoch = self.first = 0
        self.steps = self.full_epoch = -(-num_samples // global_batch_size)

    def set_epoch(self, epoch: int, steps: int | None = None, first: int = 0) -> None:
        """Choose the permutation, how many of its global batches to use (default: all) and with which to begin."""
        self.epoch, self.steps = epoch, self.full_epoch if steps is None else min(steps, self.full_epoch)
        self.first = first

    def __len__(self) -> int:
        return self.steps - self.first

    def share(self, step: int) -> tuple[int, int]:
        """(samples of this replica, samples of the global batch) at ``step`` of the epoch."""
        total = min(self.global_batch_size, self.num_samples - step * self.global_batch_size)
        start, stop = share_bounds(total, self.num_replicas, self.replica_rank)
        return stop - start, total

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples).tolist()
        for step in range(self.first, self.steps):
            batch = order[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            start, stop = share_bounds(len(batch), self.num_replicas, self.replica_rank)
            yield [(self.epoch, index) for index in (batch[start:stop] or batch[:1])]


class ValidationSampler:
    """This replica's contiguous share of the validation set, in batches: each sample exactly once over all."""

    def __init__(self, num_samples: int, batch_size: int, num_replicas: int, replica_rank: int) -> None:
        self.start, self.stop = share_bounds(num_samples, num_replicas, replica_rank)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(self.start, self.stop, self.batch_size):
            yield [(0, index) for index in range(first, min(first + self.batch_size, self.stop))]


class ReplicaData:
    """One replica's batches for training and validation, on its device."""

    def __init__(self, data: ImageData, ctx: ReplicaContext, global_batch_size: int, seed: int,
                 workers: int | None, dtype: torch.dtype, channels_last: bool) -> None:
        assert ctx.replica_rank is not None, "a server has no data"
        self.sampler = GlobalBatchSampler(len(data.train), global_batch_size, ctx.num_replicas, ctx.replica_rank, seed)
        per_replica = max(1, -(-global_batch_size // ctx.num_replicas))
        validation = ValidationSampler(len(data.val), per_replica, ctx.num_replicas, ctx.replica_rank)
        if workers is None:
            cores = len(os.sched_getaffinity(0))
            workers = 0 if data.in_memory else max(1, min(16, cores // ctx.launch.local_world_size))
        self._train_loader = _loader(data.train, self.sampler, workers, ctx.device)
        self._val_loader = _loader(data.val, validation, workers, ctx.device)
        self._device, self._dtype = ctx.device, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def train_batches(self) -> Iterator[Batch]:
        """The batches of the epoch that the sampler was set to. Time spent in ``next`` is data wait."""
        for step, (images, labels) in enumerate(self._train_loader, start=self.sampler.first):
            yield self._batch(images, labels, *self.sampler.share(step))

    def val_batches(self) -> Iterator[Batch]:
        """This replica's share of the validation set."""
        for images, labels in self._val_loader:
            yield self._batch(images, labels, len(labels), len(labels))

    def _batch(self, images: torch.Tensor, labels: torch.Tensor, local: int, total: int) -> Batch:
        images = images.to(self._device, self._dtype, non_blocking=True, memory_format=self._format)
        return Batch(images, labels.to(self._device, non_blocking=True), local, total)


def _loader(dataset: Any, sampler: Any, workers: int, device: torch.device) -> DataLoader:
    fetches_batches = hasattr(dataset, "__getitems__")
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_fetched if fetches_batches else default_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # each iteration draws a seed, which must not move the model's random numbers
        worker_init_fn=_leave_with_replica if workers else None,
    )


def _leave_with_replica(worker: int) -> None:
    """A replica that is killed cannot end its data-loading processes, and its signals are not theirs."""
    signal.set_wakeup_fd(-1)
    end_with_parent()


def _as_fetched(batch: Any) -> Any:
    return batch


def smallest_share(num_samples: int, global_batch_size: int, num_replicas: int) -> int:
    """Samples of the smallest share, empty ones aside, that any replica gets in an epoch."""
    batches = {min(global_batch_size, num_samples), num_samples % global_batch_size} - {0}
    shares = (share_bounds(batch, num_replicas, part) for batch in batches for part in (0, num_replicas - 1))
    return min(stop - start for start, stop in shares if stop > start)
