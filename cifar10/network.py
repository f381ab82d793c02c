"""The network of this folder, in the two parts that model parallelism puts on two devices."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

NAME = "two_part_cnn"


def two_part_cnn(num_classes: int, in_channels: int) -> nn.Sequential:
    """[B, in_channels, H, W] to [B, num_classes]: ``first`` (features 1), then ``second`` (features 2, classifier).

    The cut is where forward and backward of the two parts take about the same time on a CPU, since a pipeline is as
    fast as its slowest part: the second multiplies more, the first normalises larger maps. GroupNorm instead of
    BatchNorm: a sample's output depends on that sample alone, so neither a replica's share nor a micro-batch changes
    the gradient of the batch.
    """
    first = nn.Sequential(*_block(in_channels, 32), nn.MaxPool2d(2), *_block(32, 64), nn.MaxPool2d(2))
    second = nn.Sequential(
        *_block(64, 128), *_block(128, 128), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 128, num_classes))
    return nn.Sequential(OrderedDict(first=first, second=second))


def _block(wide_in: int, wide_out: int) -> list[nn.Module]:
    return [nn.Conv2d(wide_in, wide_out, 3, padding=1, bias=False), nn.GroupNorm(8, wide_out), nn.ReLU()]
