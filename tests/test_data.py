"""The data contract: the same global batches for all, every sample once, augmentation by sample alone."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv_datasets

from gradsync.config import TrainConfig
from gradsync.data import GlobalBatchSampler, ReplicaData, ValidationSampler, smallest_share
from gradsync.datasets import choose_dataset, open_dataset
from gradsync.distributed import share_bounds

SHAPES = [(100, 16, 1), (100, 16, 3), (97, 32, 4), (5, 64, 4), (64, 64, 7), (66, 16, 4), (9, 4, 4)]


def batches(samples, size, replicas, epoch=1, seed=3):
    """Per step, the keys of every replica with the weight-0 stand-ins left out."""
    per_replica = []
    for replica in range(replicas):
        sampler = GlobalBatchSampler(samples, size, replicas, replica, seed)
        sampler.set_epoch(epoch)
        per_replica.append([keys[: sampler.share(step)[0]] for step, keys in enumerate(sampler)])
    return list(zip(*per_replica, strict=True))


@pytest.mark.parametrize(("samples", "size", "replicas"), SHAPES)
def test_every_sample_exactly_once_per_epoch(samples, size, replicas):
    keys = [key for step in batches(samples, size, replicas) for share in step for key in share]
    assert sorted(keys) == [(1, index) for index in range(samples)]


@pytest.mark.parametrize(("samples", "size", "replicas"), SHAPES)
def test_global_batch_is_the_same_for_any_number_of_replicas(samples, size, replicas):
    shared = [[key for share in step for key in share] for step in batches(samples, size, replicas)]
    assert shared == [list(step[0]) for step in batches(samples, size, 1)]


@pytest.mark.parametrize(("samples", "size", "replicas"), SHAPES)
def test_shares_differ_by_at_most_one_and_every_replica_has_a_batch(samples, size, replicas):
    sizes = set()
    for step in batches(samples, size, replicas):
        lengths = [len(share) for share in step]
        assert max(lengths) - min(lengths) <= 1
        sizes |= set(lengths)
    assert smallest_share(samples, size, replicas) == min(sizes - {0})
    for replica in range(replicas):
        assert all(keys for keys in GlobalBatchSampler(samples, size, replicas, replica, 3))


def test_epochs_and_seeds_permute_differently():
    orders = [tuple(index for step in batches(50, 50, 1, epoch, seed) for _, index in step[0])
              for epoch, seed in ((1, 3), (2, 3), (1, 4))]
    assert len(set(orders)) == 3


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (2, 4), (0, 2), (7, 7)])
def test_share_bounds_tile(total, parts):
    bounds = [share_bounds(total, parts, part) for part in range(parts)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))


@pytest.mark.parametrize(("samples", "batch", "replicas"), [(37, 8, 3), (2, 8, 4), (40, 8, 1)])
def test_validation_covers_each_sample_once(samples, batch, replicas):
    samplers = [ValidationSampler(samples, batch, replicas, replica) for replica in range(replicas)]
    assert [key for sampler in samplers for keys in sampler for key in keys] == [(0, i) for i in range(samples)]
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)


def test_digits_are_split_by_class():
    data = open_dataset(TrainConfig(), grey=True)
    assert data.info.image_shape == [1, 28, 28]
    assert torch.bincount(data.train.labels).tolist() == [400] * 10
    assert torch.bincount(data.val.labels).tolist() == [100] * 10
    assert abs(data.train.images.mean()) < 0.05
    assert abs(data.train.images.std() - 1) < 0.05
    pixels = {image.numpy().tobytes() for image in data.train.images}
    assert sum(image.numpy().tobytes() in pixels for image in data.val.images) <= 1


def test_digits_for_other_models():
    data = open_dataset(TrainConfig(image_size=32), grey=False)
    images, labels = data.train.__getitems__([(1, 0), (1, 3999)])
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [0, 9]
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.fixture
def picture_folder(tmp_path):
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dög"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def loaded(folder, replicas, workers, epoch=1):
    """Every (label, image) of one epoch, in the order of the global batches."""
    config = TrainConfig(data_dir=str(folder), image_size=32)
    data, samples = open_dataset(config, grey=False), []
    streams = []
    for replica in range(replicas):
        ctx = SimpleNamespace(num_replicas=replicas, replica_rank=replica, device=torch.device("cpu"),
                              launch=SimpleNamespace(local_world_size=replicas))
        replica_data = ReplicaData(data, ctx, 5, config.seed, workers, torch.float32, False)
        replica_data.sampler.set_epoch(epoch)
        streams.append(list(replica_data.train_batches()))
    for step in zip(*streams, strict=True):
        assert sum(batch.weight for batch in step) == pytest.approx(1)
        for batch in step:
            samples += list(zip(batch.labels[: batch.num_samples].tolist(), batch.images, strict=False))
    return samples


def test_augmentation_depends_on_seed_epoch_and_sample_only(picture_folder):
    reference = loaded(picture_folder, 1, 0)
    torch.manual_seed(999)
    for replicas, workers in ((3, 0), (2, 2)):
        other = loaded(picture_folder, replicas, workers)
        assert [label for label, _ in other] == [label for label, _ in reference]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(other, reference, strict=True))
    images = {image.numpy().tobytes() for epoch in (1, 2) for _, image in loaded(picture_folder, 1, 0, epoch)}
    assert len(images) == 2 * len(reference), "each epoch augments anew"


def test_auto_takes_the_folder_that_is_there(picture_folder, monkeypatch, tmp_path_factory):
    assert choose_dataset(TrainConfig(data_dir=str(picture_folder)))[0] == "imagefolder"
    monkeypatch.chdir(picture_folder)
    assert choose_dataset(TrainConfig())[0] == "imagefolder"
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    name, note = choose_dataset(TrainConfig())
    assert name == "digits"
    assert "train" in note


def test_cifar10_is_read_from_torchvisions_layout(monkeypatch, tmp_path):
    class Stored:
        """torchvision's reader, less the check of a 170 MB archive's sums."""

        def __init__(self, root, train=True, download=False):
            assert not download
            self.count = 10 if train else 4

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return Image.fromarray(np.full((32, 32, 3), index, np.uint8)), index % 10

    monkeypatch.setattr(tv_datasets, "CIFAR10", Stored)
    data = open_dataset(TrainConfig(dataset="cifar10", data_dir=str(tmp_path), image_size=48), grey=False)
    image, label = data.train[1, 3]
    assert image.shape == (3, 48, 48)
    assert label == 3
    assert data.info.train_samples == 10
    assert "RandomCrop" in data.info.train_transforms
    assert "Random" not in data.info.val_transforms


def test_synthetic_accuracies_mean_nothing():
    info = open_dataset(TrainConfig(dataset="synthetic", image_size=16), grey=False).info
    assert not info.accuracy_is_meaningful
    assert info.num_classes == 1000
