"""Bytes of one full set of gradients of well-known models, for files that name a model and no size."""

from __future__ import annotations

FLOAT32 = 4
# Parameters of torchvision 0.29's classifiers with 1000 classes; see the test that counts them.
PARAMETERS = {
    "alexnet": 61_100_840,
    "convnext_tiny": 28_589_128,
    "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548,
    "googlenet": 13_004_888,  # with its auxiliary heads
    "inception_v3": 27_161_264,  # with its auxiliary head
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "shufflenet_v2_x1_0": 2_278_604,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "swin_t": 28_288_354,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "vit_b_16": 86_567_656,
    "vit_l_16": 304_326_632,
    "wide_resnet50_2": 68_883_240,
}


def known_gradient_bytes(model: str) -> int | None:
    """float32 gradients of the model of that name (``resnet50``, ``ResNet-50``); None for one that is not listed."""
    wanted = _plain(model)
    return next((FLOAT32 * count for name, count in PARAMETERS.items() if _plain(name) == wanted), None)


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())
