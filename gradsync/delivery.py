"""From the recorder, which has measured, to rank 0, which writes: the results are where rank 0 is.

A parameter server's recorder is its first worker, perhaps on another host. Which host has the results must not depend
on the method, and that host need not share a file system with the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from gradsync.distributed import ReplicaContext


def deliver(ctx: ReplicaContext, files: Sequence[bytes], count: int) -> list[bytes]:
    """``count`` files of the recorder on rank 0, and an empty list elsewhere. Called by both of them."""
    recorder = ctx.num_servers
    if recorder == 0:
        return list(files)
    sizes = torch.tensor([len(content) for content in files] if ctx.is_recorder else [0] * count)
    if ctx.is_recorder:
        dist.send(sizes, 0, group=ctx.control)
        for content in files:
            dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=ctx.control)
        return []
    dist.recv(sizes, recorder, group=ctx.control)
    received = [torch.empty(int(size), dtype=torch.uint8) for size in sizes]
    for content in received:
        dist.recv(content, recorder, group=ctx.control)
    return [content.numpy().tobytes() for content in received]
