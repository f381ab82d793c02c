"""Before training: what this job's links carry, between pairs of ranks and in an all-reduce (``--probe-links``).

``gradsync.probe`` measures what communication costs a step; here the method plays no part. All ranks take part,
servers too, over the group and on the device that gradients and parameters use. Only two ranks' messages lie elsewhere
where gloo meets a GPU, of which its send and recv know nothing: there they lie on the CPU, as the parameter
server's do once it has staged them.

Sizes grow until the next would take too long, so a slow link ends with smaller messages, not after minutes. Every
figure is the median of repeats from a common start until the slowest rank is done. A sender knows only when its bytes
have left, so a message between two ranks is sent back, and half of the round trip counts.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from gradsync.bandwidth import ALL_REDUCE, SENDRECV, algbw, busbw, link_bandwidth
from gradsync.distributed import ReplicaContext
from gradsync.position import here
from gradsync.probed import LinkPair, Links, LinkSample
from gradsync.timing import synchronize

SIZES = (8, *(4**power for power in range(3, 14)))  # bytes: 8, 64, 256, 1 KiB ... 64 MiB
MIN_REPEATS, MAX_REPEATS = 3, 20
REPEAT_SECONDS = 0.5  # of one size, if that allows for the fewest repeats
BLOCK_SECONDS, MAX_BLOCK = 0.002, 50  # short operations are timed several at once
LONGEST_SECONDS = 1.0  # that one operation may take
PAIR_SECONDS = 3.0  # all pairs share these as LONGEST_SECONDS where they are many
MAX_PAIRS = 16

Operation = Callable[[], None]
Maker = Callable[[int], Operation]  # from a number of bytes, what this rank does


def probe_links(ctx: ReplicaContext) -> Links:
    """Measure the links of a job of two ranks or more; alike on every rank but for ``seconds``, by its own clock."""
    start = time.perf_counter()
    hosts = number_hosts(ctx)
    dist.barrier(group=ctx.control)
    here.begin("all-reduce")
    all_reduce = sweep(ctx, partial(all_reduced, ctx), ALL_REDUCE, LONGEST_SECONDS)
    peers = chosen_peers(ctx.world_size)
    longest = min(LONGEST_SECONDS, PAIR_SECONDS / len(peers))
    pairs = [probe_pair(ctx, peer, hosts, longest) for peer in peers]
    here.begin("shift")
    largest = min(pair.one_way[-1].bytes for pair in pairs)
    shift = probe_shift(ctx, hosts, largest)
    return Links(
        hosts=hosts, memory=wire_memory(ctx).type, all_reduce=all_reduce, pairs=pairs, shift=shift,
        latency=max(pair.latency for pair in pairs), bandwidth=link_bandwidth(hosts, all_reduce[-1], pairs, shift),
        seconds=time.perf_counter() - start)


def number_hosts(ctx: ReplicaContext) -> list[int]:
    """Of each rank, the number of its host, in the order in which the ranks meet them."""
    names = [record["host"] for record in ctx.gather_records({"host": socket.gethostname()})]
    order = list(dict.fromkeys(names))
    return [order.index(name) for name in names]


def chosen_peers(world_size: int) -> list[int]:
    """With whom rank 0 is paired: with all, or with ``MAX_PAIRS`` evenly spread ones, the last one among them."""
    count = min(world_size - 1, MAX_PAIRS)
    return [(world_size - 1) * place // count for place in range(1, count + 1)]


def probe_pair(ctx: ReplicaContext, peer: int, hosts: list[int], longest: float) -> LinkPair:
    """Rank 0 and ``peer``, one direction at a time and both at once, while the others wait."""
    here.begin(f"rank 0 and rank {peer}")
    round_trips = sweep(ctx, partial(echoed, ctx, peer), SENDRECV, longest, per_operation=2)
    largest = round_trips[-1].bytes
    other = {0: peer, peer: 0}.get(ctx.rank)
    both = idle if other is None else swapped(ctx, other, other, largest)
    return LinkPair(
        ranks=[0, peer], same_host=hosts[0] == hosts[peer], latency=round_trips[0].seconds, one_way=round_trips,
        both_ways=sample(largest, measured(ctx, both), SENDRECV, ctx.world_size))


def probe_shift(ctx: ReplicaContext, hosts: list[int], size: int) -> LinkSample | None:
    """Each rank to the rank of its place on the next host; None on one host, or where hosts have unequal numbers."""
    places: list[list[int]] = [[] for _ in range(max(hosts) + 1)]
    for rank, host in enumerate(hosts):
        places[host].append(rank)
    if len(places) == 1 or len({len(ranks) for ranks in places}) > 1:
        return None
    own = places[hosts[ctx.rank]].index(ctx.rank)
    before, after = (places[(hosts[ctx.rank] + step) % len(places)][own] for step in (-1, 1))
    return sample(size, measured(ctx, swapped(ctx, after, before, size)), SENDRECV, ctx.world_size)


def sweep(ctx: ReplicaContext, make: Maker, operation: str, longest: float, per_operation: int = 1
          ) -> list[LinkSample]:
    """One sample a size; an operation of ``make`` carries ``per_operation`` messages one after the other."""
    samples: list[LinkSample] = []
    for size in SIZES:
        if samples and samples[-1].seconds * per_operation * size / samples[-1].bytes > longest:
            break
        seconds = [taken / per_operation for taken in measured(ctx, make(size))]
        samples.append(sample(size, seconds, operation, ctx.world_size))
    return samples


def sample(size: int, seconds: list[float], operation: str, ranks: int) -> LinkSample:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    speed = algbw(size, median)
    return LinkSample(bytes=size, repeats=len(seconds), seconds=median, low=low, high=high, algbw=speed,
                      busbw=busbw(operation, speed, ranks))


def measured(ctx: ReplicaContext, operation: Operation) -> list[float]:
    """Seconds of one operation on the slowest rank, a figure a repeat; all ranks call this and get the same.

    The first one warms up: it makes connections, and tells how often this can be repeated. Asking for the slowest
    rank's time is also what gives the next repeat its common start.
    """
    first = slowest(ctx, timed(ctx, operation, 1))
    block = min(MAX_BLOCK, max(1, int(BLOCK_SECONDS / first)))
    repeats = min(MAX_REPEATS, max(MIN_REPEATS, int(REPEAT_SECONDS / (first * block))))
    return [slowest(ctx, timed(ctx, operation, block)) for _ in range(repeats)]


def timed(ctx: ReplicaContext, operation: Operation, count: int) -> float:
    """Seconds of one of ``count`` operations in a row on this rank; 0 where it has nothing to do."""
    if operation is idle:
        return 0.0
    start = time.perf_counter()
    for _ in range(count):
        operation()
    synchronize(ctx.device)
    return (time.perf_counter() - start) / count


def slowest(ctx: ReplicaContext, seconds: float) -> float:
    here.moved()
    longest = torch.tensor([seconds], dtype=torch.float64)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=ctx.control)
    return longest.item()


# What a rank does; each is made for one size, and waits on the host where that is gloo's way.


def idle() -> None:
    """Keep quiet while others are measured."""


def all_reduced(ctx: ReplicaContext, size: int) -> Operation:
    tensor = message(size, ctx.device)

    def operation() -> None:
        dist.all_reduce(tensor)

    return operation


def echoed(ctx: ReplicaContext, peer: int, size: int) -> Operation:
    """There and back: rank 0 sends, ``peer`` answers with as many bytes."""
    if ctx.rank not in (0, peer):
        return idle
    leaving, arriving = message(size, wire_memory(ctx)), message(size, wire_memory(ctx))

    def ask() -> None:
        dist.send(leaving, dst=peer)
        dist.recv(arriving, src=peer)

    def answer() -> None:
        dist.recv(arriving, src=0)
        dist.send(leaving, dst=0)

    return ask if ctx.rank == 0 else answer


def swapped(ctx: ReplicaContext, to: int, source: int, size: int) -> Operation:
    """Send and receive at once."""
    leaving, arriving = message(size, wire_memory(ctx)), message(size, wire_memory(ctx))

    def operation() -> None:
        both = [dist.P2POp(dist.irecv, arriving, source), dist.P2POp(dist.isend, leaving, to)]
        for work in dist.batch_isend_irecv(both):
            work.wait()

    return operation


def wire_memory(ctx: ReplicaContext) -> torch.device:
    return torch.device("cpu") if ctx.stages_through_cpu else ctx.device


def message(size: int, device: torch.device) -> torch.Tensor:
    """Written to once: memory that was never touched is one page of zeros, read from the cache again and again."""
    return torch.full((size // 4,), 0.0, dtype=torch.float32, device=device)
