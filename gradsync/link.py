"""What a parameter server and its workers say to each other, and how: requests, pieces of flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from gradsync.distributed import ReplicaContext
from gradsync.errors import PeerLost
from gradsync.timing import Traffic

T = TypeVar("T")
PULL, SETTLED_PULL, PUSH, END_EPOCH = range(4)
COMMANDS = ("pull", "pull of the settled parameters", "push", "end of epoch")


class Request(NamedTuple):
    """A worker's word to a server, ahead of the data. A settled pull wants the parameters after all pushes."""

    command: int
    samples: int = 0  # of a push: the share of this worker ...
    global_samples: int = 1  # ... and of all workers
    overflow: bool = False  # of a push: fp16 gradients that are not finite

    @property
    def weight(self) -> float:
        """What the worker's mean gradient counts in the average."""
        return self.samples / self.global_samples


class Buffer:
    """A flat tensor and the memory that is sent and received in its place.

    That is its own memory, unless gloo cannot reach its device: then it is a copy on the CPU, kept for good.
    """

    def __init__(self, tensor: torch.Tensor, ctx: ReplicaContext) -> None:
        self.tensor, self.staged = tensor, ctx.stages_through_cpu
        self.wire = torch.empty_like(tensor, device="cpu", pin_memory=True) if self.staged else tensor


@dataclass
class Transfer:
    """Something that is on its way to ``peer``, or from it into a piece of ``arrives_in``."""

    work: Any
    peer: int
    arrives_in: Buffer | None = None
    piece: slice | None = None

    def wait(self) -> None:
        """Until the memory may be reused or read; on a GPU, by what its stream does next. Raises PeerLost."""
        _answered(self.work.wait, self.peer)
        if self.arrives_in is not None and self.arrives_in.staged:
            self.arrives_in.tensor[self.piece].copy_(self.arrives_in.wire[self.piece])


class Link:
    """Pieces and requests to and from named peers, so that a dead one is noticed; pieces are counted.

    ``at_once``: all pieces of a message are under way together, instead of one after the other.

    Each direction has a group of its own: NCCL carries out the operations on a pair of ranks in the order in which
    they were given, so a posted receive would otherwise keep back the send that its answer waits for.
    """

    def __init__(self, ctx: ReplicaContext, at_once: bool) -> None:
        self.ctx, self.at_once, self.traffic = ctx, at_once, Traffic()
        uploads, downloads = dist.group.WORLD, dist.new_group(backend=ctx.backend)
        self._out, self._in = (downloads, uploads) if ctx.is_server else (uploads, downloads)

    def start_sending(self, buffer: Buffer, piece: slice, peers: Sequence[int]) -> list[Transfer]:
        part = buffer.wire[piece]
        if buffer.staged:
            part.copy_(buffer.tensor[piece])
        transfers = []
        for peer in peers:
            transfers.append(Transfer(_answered(lambda to=peer: dist.isend(part, dst=to, group=self._out), peer), peer))
            self.traffic.sent(part)
        return transfers

    def start_receiving(self, buffer: Buffer, piece: slice, peer: int) -> Transfer:
        """The receiver must know the sender's size and type: the wire carries bytes only."""
        part = buffer.wire[piece]
        self.traffic.received(part)
        return Transfer(_answered(lambda: dist.irecv(part, src=peer, group=self._in), peer), peer, buffer, piece)

    def send(self, buffer: Buffer, pieces: Sequence[slice], peer: int) -> None:
        """All ``pieces``, to the end."""
        transfers = (transfer for piece in pieces for transfer in self.start_sending(buffer, piece, [peer]))
        for transfer in list(transfers) if self.at_once else transfers:
            transfer.wait()

    def receive(self, buffer: Buffer, pieces: Sequence[slice], peer: int) -> Iterator[int]:
        """All ``pieces``; yields the number of each when it has arrived."""
        transfers = (self.start_receiving(buffer, piece, peer) for piece in pieces)
        for number, transfer in enumerate(list(transfers) if self.at_once else transfers):
            transfer.wait()
            yield number

    def start_request(self, request: Request, server: int) -> Transfer:
        """Tell a server what comes next. Not counted: 32 bytes beside the parameters."""
        message = torch.tensor(request, dtype=torch.int64)
        return Transfer(_answered(lambda: dist.isend(message, dst=server, group=self.ctx.control), server), server)

    def send_request(self, request: Request, server: int) -> None:
        self.start_request(request, server).wait()

    def receive_request(self, worker: int) -> Request:
        """The next word of ``worker``; blocks until it has something to say."""
        command, samples, global_samples, overflow = self.hear(torch.zeros(4, dtype=torch.int64), worker).tolist()
        return Request(command, samples, global_samples, bool(overflow))

    def send_scale(self, scale: float, worker: int) -> None:
        """The fp16 loss scale, which every worker must share."""
        self.tell(torch.tensor([scale], dtype=torch.float64), worker)

    def receive_scale(self, server: int) -> float:
        return self.hear(torch.zeros(1, dtype=torch.float64), server).item()

    def tell(self, message: torch.Tensor, peer: int) -> None:
        """Over the control group, on the CPU: nothing here is counted as traffic."""
        _answered(lambda: dist.send(message, dst=peer, group=self.ctx.control), peer)

    def hear(self, message: torch.Tensor, peer: int) -> torch.Tensor:
        _answered(lambda: dist.recv(message, src=peer, group=self.ctx.control), peer)
        return message


def _answered(operation: Callable[[], T], peer: int) -> T:
    """``operation``; raises PeerLost, naming the peer, where its connection has ended or it does not answer."""
    try:
        return operation()
    except RuntimeError as error:
        raise PeerLost(f"rank {peer} is gone or does not answer: {' '.join(str(error).split())[:300]}") from error
