"""The data sets. Each sample is addressed by (epoch, index), so that augmentation depends on nothing else."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torchvision import datasets as tv_datasets
from torchvision.transforms import v2 as transforms

from gradsync.config import TrainConfig
from gradsync.errors import RunError, UsageError
from gradsync.results import DatasetInfo

EMBEDDED_DIGITS = Path(__file__).parent / "embedded" / "digits.npz"
DIGITS_TRAIN_PER_CLASS = 400  # of 500
DIGITS_MEAN, DIGITS_STD = 0.1307, 0.3081  # of MNIST's training images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SYNTHETIC_TRAIN, SYNTHETIC_VAL, SYNTHETIC_CLASSES, SYNTHETIC_POOL = 5120, 512, 1000, 128

Key = tuple[int, int]  # (epoch, sample index)


@dataclass(frozen=True)
class ImageData:
    """A data set, opened. ``note`` says why it was chosen where the user left it open."""

    info: DatasetInfo
    train: Any
    val: Any
    in_memory: bool
    note: str = ""


class TensorImages:
    """Images in memory, fetched a batch at a time without a Python loop.

    images: [N, C, H, W] float32; labels: [N] int64. ``size`` resizes bilinearly on the fly, and ``channels``
    repeats a grey channel.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, size: int, channels: int) -> None:
        self.images, self.labels, self.size, self.channels = images, labels, size, channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[torch.Tensor, torch.Tensor]:
        """images [B, channels, size, size] and labels [B] of a batch; DataLoader calls this by its name."""
        rows = torch.tensor([index for _, index in keys])
        images = self.images[rows % len(self.images)]
        if images.shape[-1] != self.size:
            images = functional.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return images.expand(-1, self.channels, -1, -1), self.labels[rows]


class FileImages:
    """A torchvision data set of PIL images, whose random transforms depend on (seed, epoch, index) only."""

    def __init__(self, source: Any, transform: Callable[[Any], torch.Tensor], seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, int]:
        epoch, index = key
        try:
            image, label = self.source[index]
        except (OSError, SyntaxError, ValueError) as error:
            name = self.source.samples[index][0] if hasattr(self.source, "samples") else f"sample {index}"
            raise RunError(f"{name}: cannot be read as an image: {error}") from error
        # torchvision's transforms draw from torch's global generator.
        before = torch.get_rng_state()
        entropy = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(entropy[0]))
        try:
            return self.transform(image), label
        finally:
            torch.set_rng_state(before)


def open_dataset(config: TrainConfig, grey: bool, flag: str = "--data-dir") -> ImageData:
    """Open the data set that ``config`` names. ``grey``: the model takes one channel, where the data has one.

    Raises UsageError that names the directory, the ``flag`` that chose it, and what it should hold.
    """
    name, note = choose_dataset(config)
    folder = Path(config.data_dir or "./")
    if name == "imagefolder":
        return _open_image_folder(folder, config)
    if name == "cifar10":
        return _open_cifar10(folder, config, flag)
    if name == "digits":
        return _open_digits(config, 1 if grey else 3, note)
    return _make_synthetic(config)


def choose_dataset(config: TrainConfig) -> tuple[str, str]:
    """The data set's name and, for ``auto``, why it was taken."""
    folder = Path(config.data_dir or "./")
    if config.dataset != "auto":
        return config.dataset, ""
    if (folder / "train").is_dir():
        return "imagefolder", ""
    if config.data_dir is not None:
        raise UsageError(
            f"--data-dir {folder}: no data set there; it should hold train/ and val/ with a folder per class, "
            "or name another with --dataset cifar10|digits|synthetic"
        )
    return "digits", "no ./train here, so the embedded data set is used"


def _open_image_folder(folder: Path, config: TrainConfig) -> ImageData:
    classes = {}
    for split in ("train", "val"):
        directory = folder / split
        if not directory.is_dir():
            raise UsageError(f"--data-dir {folder}: {directory} is missing; it should hold a folder per class")
        classes[split] = {entry.name for entry in directory.iterdir() if entry.is_dir()}
        if not classes[split]:
            raise UsageError(f"--data-dir {folder}: {directory} is empty; it should hold a folder of images per class")
    missing, extra = sorted(classes["train"] - classes["val"]), sorted(classes["val"] - classes["train"])
    if missing or extra:
        # torchvision numbers the classes of each folder by itself, so labels would silently differ.
        raise UsageError(
            f"--data-dir {folder}: class folders differ: val/ lacks {_some(missing)}; val/ has besides {_some(extra)}"
        )
    size = config.image_size or 224
    train = transforms.Compose(
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip(),
         *_to_normalised(IMAGENET_MEAN, IMAGENET_STD)])
    val = transforms.Compose(
        [transforms.Resize(round(size * 256 / 224), antialias=True), transforms.CenterCrop(size),
         *_to_normalised(IMAGENET_MEAN, IMAGENET_STD)])
    sources = {}
    for split in ("train", "val"):
        try:
            sources[split] = tv_datasets.ImageFolder(str(folder / split))
        except FileNotFoundError as error:
            raise UsageError(f"--data-dir {folder}: {split}/: {_one_line(error)}") from error
    return _file_data("imagefolder", sources, train, val, size, len(classes["train"]), config, in_memory=False)


def _open_cifar10(folder: Path, config: TrainConfig, flag: str) -> ImageData:
    size = config.image_size or 32
    if config.download:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / ".cifar10-download.lock", "w") as lock:  # the first rank downloads, the others find it
                fcntl.flock(lock, fcntl.LOCK_EX)
                tv_datasets.CIFAR10(str(folder), train=True, download=True)
        except (OSError, RuntimeError) as error:  # no network, no space, a damaged archive
            raise UsageError(
                f"--download: CIFAR-10 did not get into {folder}: {_one_line(error)}; put cifar-10-batches-py/ there "
                "yourself, or use --dataset digits, which works at once"
            ) from error
    try:
        sources = {split: tv_datasets.CIFAR10(str(folder), train=split == "train") for split in ("train", "val")}
    except RuntimeError as error:
        raise UsageError(
            f"{flag} {folder}: no intact CIFAR-10 there; it should hold cifar-10-batches-py/. "
            "Use --download to fetch it, or --dataset digits, which works at once"
        ) from error
    resize = [transforms.Resize((size, size), antialias=True)] if size != 32 else []
    train = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *resize,
         *_to_normalised(CIFAR_MEAN, CIFAR_STD)])
    val = transforms.Compose([*resize, *_to_normalised(CIFAR_MEAN, CIFAR_STD)])
    return _file_data("cifar10", sources, train, val, size, 10, config, in_memory=True)


def _open_digits(config: TrainConfig, channels: int, note: str) -> ImageData:
    with np.load(EMBEDDED_DIGITS, allow_pickle=False) as arrays:
        pixels, labels = arrays["images"], arrays["labels"].astype(np.int64)
    images = (torch.from_numpy(pixels).float().div_(255).sub_(DIGITS_MEAN).div_(DIGITS_STD)).unsqueeze(1)
    # Position of each image within its class: the first 400 of each class train, the other 100 validate.
    place = np.empty_like(labels)
    for digit in range(10):
        place[labels == digit] = np.arange((labels == digit).sum())
    size = config.image_size or 28

    def split(chosen: np.ndarray) -> TensorImages:
        rows = torch.from_numpy(np.flatnonzero(chosen))
        return TensorImages(images[rows], torch.from_numpy(labels)[rows], size, channels)

    train, val = split(place < DIGITS_TRAIN_PER_CLASS), split(place >= DIGITS_TRAIN_PER_CLASS)
    steps = f"normalise(mean={DIGITS_MEAN}, std={DIGITS_STD})" + (f", resize({size})" if size != 28 else "")
    return ImageData(_info("digits", train, val, 10, (channels, size, size), steps, steps), train, val, True, note)


def _make_synthetic(config: TrainConfig) -> ImageData:
    size = config.image_size or 224
    generator = torch.Generator().manual_seed(config.seed)
    pool = torch.randn(SYNTHETIC_POOL, 3, size, size, generator=generator)  # indexed modulo its length

    def split(count: int) -> TensorImages:
        labels = torch.randint(SYNTHETIC_CLASSES, (count,), generator=generator)
        return TensorImages(pool, labels, size, 3)

    train, val = split(SYNTHETIC_TRAIN), split(SYNTHETIC_VAL)
    info = _info("synthetic", train, val, SYNTHETIC_CLASSES, (3, size, size), "none", "none")
    info.accuracy_is_meaningful = False
    return ImageData(info, train, val, True, "random images: throughput only, accuracies mean nothing")


def _file_data(name: str, sources: dict[str, Any], train_transform: Any, val_transform: Any, size: int,
               num_classes: int, config: TrainConfig, in_memory: bool) -> ImageData:
    train = FileImages(sources["train"], train_transform, config.seed)
    val = FileImages(sources["val"], val_transform, config.seed)
    described = [", ".join(_one_line(step) for step in t.transforms) for t in (train_transform, val_transform)]
    return ImageData(_info(name, train, val, num_classes, (3, size, size), *described), train, val, in_memory)


def _to_normalised(mean: Sequence[float], std: Sequence[float]) -> list[Any]:
    return [transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(mean, std)]


def _info(name: str, train: Any, val: Any, num_classes: int, shape: tuple[int, ...], train_steps: str,
          val_steps: str) -> DatasetInfo:
    return DatasetInfo(
        name=name, train_samples=len(train), val_samples=len(val), num_classes=num_classes, image_shape=list(shape),
        train_transforms=train_steps, val_transforms=val_steps,
    )


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
