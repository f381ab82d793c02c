"""A model of the time of one training step: computing, messages, latency and bandwidth, for each synchronous variant.

What goes in is measured or named: a compute profile (``--probe-links`` puts it into the results), the variant's
messages, the link, the processors that the ranks share. What is fitted, on a grid of measured cells, is ``Costs``: a
few properties of the software on this machine. Sources of the formulas:

- a message of b bytes takes alpha + b / B: Hockney 1994, and the linear model of Thakur, Rabenseifner, Gropp 2005
  (doi:10.1177/1094342005051521), whose ring all-reduce is 2 (N-1) alpha + 2 (N-1)/N M / B + (N-1)/N M gamma;
- that sending and receiving also occupy a processor: the overhead o and the gap G of LogGP, Alexandrov et al. 1995
  (doi:10.1145/215399.215427);
- a step as a graph of forward, backward by layer, messages and update, whose longest path is the step's time: Shi et
  al. 2018 (arXiv:1805.03812), and the buckets that start once their last gradient is there: Li et al. 2020
  (arXiv:2006.15704).

Not in it: stragglers, contention inside switches, several ranks on one link, asynchronous servers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from gradsync.analysis.overlap import Job, overlapped
from gradsync.config import BUCKET_MB, DDP_BUCKET_MB, TrainConfig
from gradsync.errors import UsageError
from gradsync.probed import ComputeProfile, GradientGroup
from gradsync.variants import num_servers, parse_variant_name

MIB = 2**20
FIRST_DDP_BUCKET_MB = 1
# TCP/IPv4 with timestamps over Ethernet: 1448 bytes of 1514 are the application's. RFC 9293, RFC 7323, RFC 894.
PAYLOAD = 1448 / 1514


@dataclass(frozen=True)
class Link:
    """Of one host, alike in both directions, both usable at once."""

    bandwidth: float  # bytes/s that an application gets
    latency: float = 0.0  # seconds of one small message between two hosts, software included


def shaped_link(bits_per_second: float, latency: float = 0.0) -> Link:
    """An Ethernet link of a nominal rate, its headers taken off."""
    return Link(PAYLOAD * bits_per_second / 8, latency)


@dataclass(frozen=True)
class Costs:
    """What is fitted: the software on this machine. Seconds of one processor, unless said otherwise."""

    latency: float  # wall seconds of one step of a ring, on top of the link's
    message: float  # likewise, of one message from one rank to another
    byte: float  # to send a byte, and again to receive it
    reduce: float  # to add a received byte to one's own
    collect: float  # to write a byte of gradients into the buffer that is sent
    serial: float  # share, 0 to 1, of the shorter of {link, processor} that the longer does not hide


# A cluster whose link was measured through the same software: what these cost is in its latency and bandwidth.
FREE = Costs(*[0.0] * 6)


@dataclass(frozen=True)
class Cluster:
    """``cores``: processors that all ranks share, as emulated hosts do; None: each rank has enough of its own."""

    ranks: int
    link: Link
    costs: Costs = FREE
    cores: int | None = None
    tree: bool = False  # all-reduces by double binary trees instead of a ring

    def crowding(self, active: int) -> float:
        """How much longer computing takes where so many ranks do it at once."""
        return 1.0 if self.cores is None else max(1.0, active / self.cores)

    def seconds(self, on_link: float, on_processors: float, on_busiest: float) -> float:
        """Of a transfer: on the busiest link, of all processors together, of the busiest thread.

        Sending, receiving and adding overlap with what the link does, but for a share ``serial`` of the shorter.
        """
        processors = max(on_busiest, 0.0 if self.cores is None else on_processors / self.cores)
        return max(on_link, processors) + self.costs.serial * min(on_link, processors)

    def all_reduce(self, size: float, tensors: int = 1) -> Job:
        """An all-reduce of ``size`` bytes in ``tensors`` messages: its time, and what it takes of processors.

        Double binary trees need 2 log2 N steps instead of 2 (N-1), and 2 M bytes instead of 2 (N-1)/N M: Sanders,
        Speck, Traeff 2009 (doi:10.1016/j.parco.2009.09.001).
        """
        n, costs = self.ranks, self.costs
        steps = 2 * math.ceil(math.log2(n)) if self.tree else 2 * (n - 1)
        share = 2 * size if self.tree else 2 * (n - 1) / n * size  # bytes out of each rank, and as many into it
        own = 2 * share * costs.byte + share / 2 * costs.reduce
        busy = n * own / self.cores if self.cores else own
        waiting = steps * tensors * (self.link.latency + costs.latency)
        moving = self.seconds(share / self.link.bandwidth, n * own, share * (costs.byte + costs.reduce / 2))
        return Job(waiting + moving, busy)

    def transfer(self, size: float, tensors: int, reduced: bool) -> float:
        """One rank to another, one message after the other; ``reduced``: the receiver adds each to its own."""
        costs = self.costs
        moving = self.seconds(size / self.link.bandwidth, 2 * size * costs.byte, size * costs.byte)
        return moving + tensors * (self.link.latency + costs.message) + reduced * size * costs.reduce


def step_time(name: str, profile: ComputeProfile, cluster: Cluster, config: TrainConfig | None = None,
              steps: int | None = None) -> float:
    """Seconds of a step of the variant ``name``; ``none``: without synchronisation.

    ``steps``: the mean over so many from a common start until the slowest replica has its parameters; None: far from
    the start, as in training. ``config`` gives sizes that the name does not tell. Raises UsageError for a variant that
    is not modelled.
    """
    if name == "none":
        return profile.step
    method, config = read_variant(name, config or TrainConfig())
    if method == "ps":
        return (pipelined_server if config.transfer == "pipelined" else simple_server)(profile, cluster, config, steps)
    if method == "baseline_ddp" or config.variant == "overlapped":
        return overlapped_all_reduce(method, profile, cluster, config)
    return all_reduce_after_backward(profile, cluster, config)


@lru_cache
def read_variant(name: str, config: TrainConfig) -> tuple[str, TrainConfig]:
    """The method and its flags. Raises UsageError where the model knows no such variant."""
    try:
        method, settings = parse_variant_name(name)
    except ValueError:
        raise UsageError(f"{name}: no such variant") from None
    config = replace(config, **settings)
    if config.mode != "sync":
        raise UsageError(f"{name}: the cost model knows synchronous variants only")
    return method, config


def is_modelled(name: str) -> bool:
    """Whether ``step_time`` knows the variant."""
    try:
        read_variant(name, TrainConfig())
    except UsageError:
        return False
    return True


def servers_of(name: str) -> int:
    """Ranks that serve in the variant ``name``, and compute no gradients."""
    return num_servers(*read_variant(name, TrainConfig())) if name != "none" else 0


# All-reduce.


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together: bytes, bytes of PowerSGD's two messages, tensors, when the last is there."""

    bytes: float
    first: float
    second: float
    tensors: int
    ready: float


def cut_into_buckets(profile: ComputeProfile, method: str, config: TrainConfig) -> list[Bucket]:
    """As the method cuts: DDP closes a bucket once it is full, ours before it would be."""
    ddp = method == "baseline_ddp"
    sizes = [config.bucket_mb] if config.bucket_mb else [FIRST_DDP_BUCKET_MB, DDP_BUCKET_MB] if ddp else [BUCKET_MB]
    buckets: list[list[GradientGroup]] = [[]]
    held = 0
    for group in profile.gradients:
        limit = MIB * sizes[min(len(buckets), len(sizes)) - 1]
        if buckets[-1] and (held >= limit if ddp else held + group.bytes > limit):
            buckets.append([])
            held = 0
        buckets[-1].append(group)
        held += group.bytes
    return [make_bucket(groups) for groups in buckets]


def make_bucket(groups: Sequence[GradientGroup]) -> Bucket:
    # Of a matrix [out, rest], P and Q have out and rest rows; which is larger hardly matters, as both travel.
    factors = sum(group.factor_bytes for group in groups)
    return Bucket(sum(group.bytes for group in groups), factors / 2 + sum(group.dense_bytes for group in groups),
                  factors / 2, sum(group.tensors for group in groups), max(group.ready for group in groups))


def overlapped_all_reduce(method: str, profile: ComputeProfile, cluster: Cluster, config: TrainConfig) -> float:
    """Buckets start during backward, one after the other, and compete with it for the processors."""
    crowding, costs = cluster.crowding(cluster.ranks), cluster.costs
    before, between, after = compression_work(profile, config.compress)
    buckets = cut_into_buckets(profile, method, config)
    messages = [wire_sizes(bucket, config.compress) for bucket in buckets]
    written = itertools.accumulate(bucket.bytes for bucket in buckets)  # copied, and compressed, by hooks of backward
    delays = [(costs.collect * crowding + before) * size for size in written]
    ready = [bucket.ready + delay for bucket, delay in zip(buckets, delays, strict=True)]
    main, ends = overlapped(profile.backward + delays[-1], ready, [cluster.all_reduce(first) for first, *_ in messages])
    link = ends[-1]
    for number, (bucket, (_, *more)) in enumerate(zip(buckets, messages, strict=True)):
        for size in more:  # PowerSGD: the second message needs the sum of the first
            main = max(main, ends[number]) + between * bucket.bytes
            link = ends[number] = max(main, link) + cluster.all_reduce(size).seconds
    for bucket, end in zip(buckets, ends, strict=True):
        main = max(main, end) + after * bucket.bytes
    return profile.forward + main + profile.update


def compression_work(profile: ComputeProfile, compress: str) -> tuple[float, float, float]:
    """Seconds a byte of gradients: before the first message, between two, after the last."""
    if compress == "none":
        return 0.0, 0.0, 0.0
    each = profile.compression[compress] / sum(group.bytes for group in profile.gradients)
    return (each / 3, each / 3, each / 3) if compress == "powersgd" else (each / 2, 0.0, each / 2)


def wire_sizes(bucket: Bucket, compress: str) -> list[float]:
    """Bytes of the all-reduces of a bucket."""
    if compress == "none":
        return [bucket.bytes]
    if compress == "powersgd":
        return [bucket.first, bucket.second] if bucket.second else [bucket.bytes]
    return [bucket.bytes / 2]


def all_reduce_after_backward(profile: ComputeProfile, cluster: Cluster, config: TrainConfig) -> float:
    """One all-reduce per parameter, one for everything, or all buckets in flight."""
    whole = make_bucket(profile.gradients)
    plain = config.variant == "per-parameter" and config.compress == "none"
    tensors = {"per-parameter": whole.tensors, "flat": 1}.get(config.variant) or len(
        cut_into_buckets(profile, "all_reduce", config))
    crowding = cluster.crowding(cluster.ranks)
    work = sum(compression_work(profile, config.compress)) * whole.bytes
    collecting = 0.0 if plain else cluster.costs.collect * crowding * whole.bytes
    moving = sum(cluster.all_reduce(size, tensors).seconds for size in wire_sizes(whole, config.compress))
    return profile.step + collecting + work + moving


# Parameter server. The first ranks serve; all others are workers.


def simple_server(profile: ComputeProfile, cluster: Cluster, config: TrainConfig, steps: int | None) -> float:
    """Push, update, pull: workers visit the servers one after the other, servers the workers in rank order."""
    servers, workers = config.num_servers, cluster.ranks - config.num_servers
    size = sum(group.bytes for group in profile.gradients)
    tensors = 1 if config.transfer == "flat" else sum(group.tensors for group in profile.gradients) / servers
    push, pull = (cluster.transfer(size / servers, tensors, reduced) for reduced in (True, False))
    update = server_update(profile, cluster, workers) / servers
    computing = profile.forward + profile.backward + cluster.costs.collect * cluster.crowding(workers) * size

    def turn(ready: list[float], free: list[float], seconds: float) -> None:
        for worker in range(workers):
            for server in range(servers):
                ready[worker] = free[server] = max(ready[worker], free[server]) + seconds

    def ends(count: int) -> float:
        ready, free = [0.0] * workers, [0.0] * servers
        for _ in range(count):
            ready = [at + computing for at in ready]
            turn(ready, free, push)
            free = [at + update for at in free]
            turn(ready, free, pull)
        return max(ready)

    return ends(steps) / steps if steps else (ends(8) - ends(4)) / 4


def server_update(profile: ComputeProfile, cluster: Cluster, workers: int) -> float:
    """Seconds of one rank that updates all parameters, by itself: the profile's workers did so all at once."""
    return profile.update / cluster.crowding(workers)


def pipelined_server(profile: ComputeProfile, cluster: Cluster, config: TrainConfig, steps: int | None) -> float:
    """Chunks arrive from all workers, are averaged, and go back, all at once; the first and the last are alone."""
    servers, workers, costs = config.num_servers, cluster.ranks - config.num_servers, cluster.costs
    size = sum(group.bytes for group in profile.gradients)
    shard = size / servers
    chunk = min(shard, config.chunk_mb * MIB)
    on_link = max(size, workers * shard) / cluster.link.bandwidth
    serving = workers * shard * costs.reduce + server_update(profile, cluster, workers) / servers
    moving = cluster.seconds(on_link, 4 * workers * size * costs.byte + servers * serving,
                             max(2 * workers * shard * costs.byte, serving))
    messages = 2 * workers * shard / chunk * costs.message
    ends = 2 * (cluster.link.latency + costs.message) + workers * chunk / cluster.link.bandwidth
    computing = profile.forward + profile.backward + costs.collect * cluster.crowding(workers) * size
    return computing + moving + messages + ends
