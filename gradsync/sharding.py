"""Parameters as one flat buffer, cut into a shard a server, and a shard into the pieces that travel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from gradsync.config import TrainConfig
from gradsync.distributed import share_bounds
from gradsync.errors import RunError


def as_it_lies(tensor: torch.Tensor) -> torch.Tensor:
    """A flat view of a dense tensor's memory, in memory order: send and recv refuse channels-last strides."""
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


class FlatParameters:
    """Moves the parameters that take a gradient into one buffer, ``values`` [n], of which they become views.

    With ``gradients``, theirs become views of a second one, so that neither is copied before it is sent. Raises
    RunError for parameters of several types, which one buffer cannot hold.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, gradients: bool) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        types = sorted({str(p.dtype) for p in parameters})
        if len(types) != 1:
            raise RunError(f"a parameter server shards parameters of one type; these are {', '.join(types) or 'none'}")
        self.sizes = [p.numel() for p in parameters]
        self.values = torch.cat([as_it_lies(p) for p in parameters])
        for parameter, view in zip(parameters, self._views(self.values, parameters), strict=True):
            parameter.data = view
        if gradients:
            self.gradients = torch.zeros_like(self.values)
            for parameter, view in zip(parameters, self._views(self.gradients, parameters), strict=True):
                parameter.grad = view

    def _views(self, flat: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        """Parts of ``flat`` in the shapes and memory layouts of the parameters."""
        starts = itertools.accumulate(self.sizes, initial=0)
        return [flat.as_strided(p.shape, p.stride(), start) for p, start in zip(parameters, starts, strict=False)]


@torch.no_grad()
def take_initial_parameters(module: nn.Module) -> None:
    """Give every rank, workers and servers alike, the parameters of rank 0."""
    for parameter in module.parameters():
        dist.broadcast(as_it_lies(parameter), src=0)


def shard(total: int, num_servers: int, server: int) -> slice:
    """The part of ``total`` elements that ``server`` holds: contiguous; sizes differ by at most one element.

    Of one type, equal numbers of elements are equal bytes. A shard may begin or end inside a parameter, and is empty
    where there are more servers than elements.
    """
    return slice(*share_bounds(total, num_servers, server))


def cut(span: slice, places: Iterable[int]) -> list[slice]:
    """``span`` cut at those of the ascending ``places`` that lie inside it; nothing if it is empty."""
    inside = [place for place in places if span.start < place < span.stop]
    return [slice(start, stop) for start, stop in itertools.pairwise([span.start, *inside, span.stop]) if start < stop]


def pieces(span: slice, sizes: Sequence[int], element_size: int, config: TrainConfig) -> list[slice]:
    """The messages of one shard, as ``--transfer`` says; ``sizes`` are the parameters' numbers of elements."""
    if config.transfer == "per-parameter":
        return cut(span, dict.fromkeys(itertools.accumulate(sizes)))  # a parameter without elements adds no place
    if config.transfer == "flat":
        return cut(span, ())
    chunk = max(1, int(config.chunk_mb * 2**20) // element_size)
    return cut(span, range(span.start, span.stop, chunk))
