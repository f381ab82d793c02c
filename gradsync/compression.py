"""What of a bucket goes over the wire: all of it, 16 bits a number, or low-rank factors.

A compression answers ``rounds(bucket)``: a generator that yields each tensor to be summed over the replicas, is
resumed when the sum stands in that tensor, and leaves the sum of the gradients in the bucket. It allocates its
buffers when it is made. ``state_dict`` holds what it remembers from step to step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gradsync.buckets import Bucket


class Uncompressed:
    """The bucket as it is."""

    def rounds(self, bucket: Bucket) -> Iterator[torch.Tensor]:
        yield bucket.flat

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
