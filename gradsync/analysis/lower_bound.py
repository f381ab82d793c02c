"""How long a step's exchange takes at least, whatever the software: the one place that computes the bounds.

docs/METHODS.md states them for one rank a host, with their sources; a test holds the two against each other. Here ranks
may share a host, whose link then carries what all of them have to say to other hosts; what stays within a host costs
nothing. Links carry both directions at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradsync.analysis.gradient_sizes import FLOAT32


def least_seconds(settings: Mapping[str, Any], replica_bytes: float, nodes: Sequence[int], num_servers: int,
                  bandwidth: float) -> float:
    """Seconds of one step's exchange over links of ``bandwidth`` bytes/s in each direction.

    ``settings``: the method's own flags. ``replica_bytes``: what a replica hands to communication calls in a step, so
    that compression counts. ``nodes``: of each rank, what it shares its link with; the first ``num_servers`` serve.
    """
    if not num_servers:
        return all_reduce_seconds(replica_bytes, nodes, bandwidth)
    both_directions = settings.get("transfer") == "pipelined" and settings.get("mode") == "sync"
    return server_seconds(replica_bytes / 2, nodes, num_servers, both_directions, bandwidth)


def all_reduce_seconds(size: float, nodes: Sequence[int], bandwidth: float) -> float:
    """2 (N - 1) / N of ``size`` bytes leave each of N nodes (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    N counts links, since ranks that share one can add up their gradients first. A ring over all ranks, in the order of
    their hosts, does not: it sends 2 (ranks - 1) / ranks of the bytes over each link.
    """
    count = len(set(nodes))
    return 2 * (count - 1) / count * size / bandwidth


def server_seconds(size: float, nodes: Sequence[int], num_servers: int, both_directions: bool,
                   bandwidth: float) -> float:
    """``size`` bytes of gradients from each worker, as many of parameters back to it, every shard with its server.

    Into a node come the gradients of all workers elsewhere for its shards and, later or at the same time, the
    parameters of all shards elsewhere for its workers; as much leaves it. With ``both_directions`` the two overlap;
    otherwise pushing and pulling are phases in turn, each as long as its busiest direction.
    """
    shards = shard_bytes(size, num_servers)
    served, workers = dict.fromkeys(nodes, 0.0), dict.fromkeys(nodes, 0)
    for rank, node in enumerate(nodes):
        if rank < num_servers:
            served[node] += shards[rank]
        else:
            workers[node] += 1
    everyone = len(nodes) - num_servers
    loads = [(served[node] * (everyone - workers[node]), workers[node] * (size - served[node])) for node in served]
    if both_directions:
        return max(gradients + parameters for gradients, parameters in loads) / bandwidth
    return 2 * max(max(load) for load in loads) / bandwidth


def shard_bytes(size: float, num_servers: int) -> list[float]:
    """Contiguous shards of float32 elements, whose numbers differ by one at most; the first are the larger ones."""
    elements, extra = divmod(round(size / FLOAT32), num_servers)
    return [FLOAT32 * (elements + (server < extra)) for server in range(num_servers)]
