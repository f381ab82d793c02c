"""The classifiers: a small GroupNorm network for exact comparisons, and those of torchvision."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from gradsync.config import TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.errors import UsageError
from gradsync.results import DatasetInfo, ModelInfo

GROUPNORM_CNN = "groupnorm_cnn"
DEFAULT_MODELS = {"digits": GROUPNORM_CNN, "cifar10": "resnet18"}


def groupnorm_cnn(num_classes: int, in_channels: int) -> nn.Module:
    """Three convolutions and a linear layer, [B, in_channels, H, W] to [B, num_classes].

    GroupNorm instead of BatchNorm: a sample's output depends on that sample alone, so the gradient of a
    global batch does not depend on how it is shared out, and methods can be compared exactly.
    """
    layers: list[nn.Module] = []
    widths = (in_channels, 16, 32, 64)
    for wide_in, wide_out in itertools.pairwise(widths):
        layers += [nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False), nn.GroupNorm(8, wide_out), nn.ReLU(),
                   nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * widths[-1], num_classes))


def choose_model(config: TrainConfig, dataset: str) -> str:
    """The model's name. Raises UsageError for one that does not exist."""
    name = config.model or DEFAULT_MODELS.get(dataset, "resnet50")
    if name != GROUPNORM_CNN and name not in torchvision.models.list_models(module=torchvision.models):
        raise UsageError(f"--model {name}: unknown; use {GROUPNORM_CNN}, resnet18, resnet50 "
                         "or another classifier of torchvision.models")
    return name


def build_model(name: str, data: DatasetInfo, config: TrainConfig, seed: int) -> nn.Module:
    """A model on the CPU: weights from ``seed`` or from ``--weights``. Raises UsageError for a bad file."""
    torch.manual_seed(seed)
    if name == GROUPNORM_CNN:
        model = groupnorm_cnn(data.num_classes, data.image_shape[0])
    else:
        # Inception and GoogLeNet would return auxiliary outputs, which nothing here trains.
        extra = {"aux_logits": False} if name in ("inception_v3", "googlenet") else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=data.num_classes, **extra)
    if config.weights is not None:
        load_weights(model, Path(config.weights), config.replace_head)
    return model


def load_weights(model: nn.Module, path: Path, replace_head: bool) -> None:
    """Load a state dict into ``model``. Never runs code of the file.

    Raises UsageError that names the file where it is missing, damaged, no state dict, or does not fit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's format; whether it loads is what counts
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"--weights {path}: {error.strerror or error}") from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers raise
        raise UsageError(f"--weights {path}: not a state dict that can be loaded safely "
                         f"({type(error).__name__}); truncated, or not saved with torch.save?") from error
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise UsageError(f"--weights {path}: not a state dict (a flat dictionary of tensors)")
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]
    expected = model.state_dict()
    for key in (f"{head[0]}.{part}" for part in ("weight", "bias") if head):
        if key in state and key in expected and state[key].shape != expected[key].shape:
            if not replace_head:
                raise UsageError(f"--weights {path}: made for {state[key].shape[0]} classes, the data set has "
                                 f"{expected[key].shape[0]}; add --replace-head to start the last layer anew")
            state[key] = expected[key]
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())
        raise UsageError(f"--weights {path}: does not fit the model: {detail[:300]}") from error


def describe_model(name: str, model: nn.Module) -> ModelInfo:
    """Sizes of the model; gradient bytes are those of one full set of gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return ModelInfo(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        tensors=len(trained),
        gradient_bytes=sum(p.nbytes for p in trained),
        batch_norm=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()),
    )


def parameter_fingerprint(model: nn.Module) -> str:
    """128 bits (hex) of the parameters' exact bytes: equal if and only if the replicas are identical."""
    digest = hashlib.blake2b(digest_size=16)
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def parameter_sketch(model: nn.Module, size: int = 64) -> list[float]:
    """``size`` sums of all parameters under fixed random signs: a count sketch (Charikar et al. 2002).

    For two models that differ by d, the squared distance of their sketches is |d|^2 in expectation, so results
    files can tell how far apart two runs ended without holding the models.
    """
    sums = np.zeros(size)
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        values = parameter.detach().cpu().double().flatten().numpy()
        signed = np.zeros(-(-values.size // size) * size)
        signed[: values.size] = values * (1 - 2 * random.integers(0, 2, values.size, dtype=np.int8))
        sums += signed.reshape(-1, size).sum(axis=0)
    return sums.tolist()


def average_buffers(model: nn.Module, ctx: ReplicaContext) -> None:
    """Average floating-point buffers (BatchNorm's running statistics) over replicas."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            total = ctx.sum_over_replicas(buffer)
            buffer.copy_(total / ctx.num_replicas)


def check_normalisation(model: nn.Module, data: DatasetInfo) -> None:
    """BatchNorm cannot normalise one sample whose maps have shrunk to one pixel.

    Raises UsageError, for a run in which some replica's share is a single sample.
    """
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.no_grad():
            model(torch.zeros(1, *data.image_shape))
    except ValueError as error:
        raise UsageError("--global-batch-size: it leaves a replica a single sample, which this model's BatchNorm "
                         f"cannot normalise ({error}); choose another size, or --model {GROUPNORM_CNN}") from error
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
