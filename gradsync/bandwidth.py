"""What a measured operation says about a link: the two bandwidths of nccl-tests, and what a probed link carries.

algbw and busbw are those of nccl-tests (doc/PERFORMANCE.md in github.com/NVIDIA/nccl-tests), in bytes/s. Nothing here
imports torch, so that the analysis can check what a results file says.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.probed import LinkPair, Links, LinkSample

ALL_REDUCE, SENDRECV = "all_reduce", "sendrecv"


def algbw(size: float, seconds: float) -> float:
    """S / t: bytes of the operation over its time."""
    return size / seconds


def busbw(operation: str, algorithm_bandwidth: float, ranks: int) -> float:
    """What each rank's link carries in each direction: algbw times 2 (n - 1) / n for an all-reduce, algbw for sendrecv.

    The factor is that of the least that any algorithm sends, so links that carry exactly that show their own speed.
    """
    factors = {ALL_REDUCE: 2 * (ranks - 1) / ranks, SENDRECV: 1.0}
    return factors[operation] * algorithm_bandwidth


def nodes(hosts: Sequence[int]) -> list[int]:
    """Of each rank, what has a link of its own: its host where there are several, else the rank."""
    return list(hosts) if len(set(hosts)) > 1 else list(range(len(hosts)))


def link_bandwidth(hosts: Sequence[int], all_reduce: LinkSample, pairs: Sequence[LinkPair],
                   shift: LinkSample | None) -> float:
    """bytes/s of one node's link in one direction: the most that any measurement showed with its largest message.

    The most, because it is what lower bounds are stated with, and these must hold for the fastest link there is.
    Ranks of a host share its link: a pair across hosts has it to itself, in a shift each has its part, and an
    all-reduce among H hosts must move 2 (H - 1) / H of its bytes over each host's link, however it goes about it.
    """
    node = nodes(hosts)
    count = len(set(node))
    seen = [busbw(ALL_REDUCE, all_reduce.algbw, count)]
    for pair in pairs:
        if node[pair.ranks[0]] != node[pair.ranks[1]]:
            seen += [pair.one_way[-1].algbw, pair.both_ways.algbw]
    if shift is not None:
        seen.append(shift.algbw * len(node) / count)
    return max(seen)


def fastest(links: Links) -> float:
    """bytes/s in one direction that some rank was seen to move, also within its host."""
    samples: list[LinkSample] = [*links.all_reduce]
    for pair in links.pairs:
        samples += [*pair.one_way, pair.both_ways]
    return max(sample.busbw for sample in samples)
