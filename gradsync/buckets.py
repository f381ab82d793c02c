"""Gradients side by side in a few buffers, so that one all-reduce carries many of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

MIB = 1024 * 1024


class Bucket:
    """The gradients of some parameters, end to end in one buffer.

    ``flat`` [elements of all of them] is what an all-reduce takes. ``pieces`` are the same memory cut at the
    parameters' ends, each in memory order; ``grads`` are the pieces in the parameters' shapes and layouts
    (channels-last included), and each parameter's ``grad`` for good: backward accumulates into the bucket itself.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), dtype=self.parameters[0].dtype,
                                device=self.parameters[0].device)
        self.pieces = self.flat.split([p.numel() for p in self.parameters])
        self.grads = [piece.as_strided(p.shape, p.stride())
                      for piece, p in zip(self.pieces, self.parameters, strict=True)]
        self.missing = 0  # gradients that this step's backward has yet to add
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad


def cut_into_buckets(parameters: Sequence[nn.Parameter], limit: float) -> list[Bucket]:
    """Buckets of consecutive parameters of one dtype and device, of at most ``limit`` bytes each.

    A parameter that is larger than that gets a bucket of its own.
    """
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        fits = groups and size + parameter.nbytes <= limit
        if not fits or (groups[-1][0].dtype, groups[-1][0].device) != (parameter.dtype, parameter.device):
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return [Bucket(group) for group in groups]
