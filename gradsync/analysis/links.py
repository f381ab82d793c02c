"""What the probed links carry, and how far each method's communication is from the least that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradsync.analysis import figures, words
from gradsync.analysis.figures import Spread
from gradsync.analysis.layout import shortened
from gradsync.analysis.load import Run
from gradsync.analysis.lower_bound import all_reduce_seconds, least_seconds
from gradsync.analysis.message import Text, msg
from gradsync.bandwidth import nodes

MB, MIB, MICROSECOND = 1e6, 2**20, 1e-6
Rows = list[tuple[Text, ...]]


@dataclass(frozen=True)
class Distance:
    """Seconds of a step's communication: the least, and what was measured, as median and quartiles."""

    least: float
    colocated: float | None  # the least with a server beside each worker; None without servers
    alone: Spread | None  # the exchange by itself, where the method has one
    exposed: Spread | None


def distance(run: Run) -> Distance | None:
    """None where the links were not probed, or the file does not say what was sent."""
    results = run.results
    links, sent = results.links, results.communication and results.communication.replica_bytes_per_step
    if links is None or not sent:
        return None
    owners, servers = nodes(links.hosts), results.num_servers or 0
    least = least_seconds(results.settings or {}, sent, owners, servers, links.bandwidth)
    colocated = all_reduce_seconds(sent / 2, owners, links.bandwidth) if servers else None
    if not least:  # all that is exchanged stays within hosts
        return None
    return Distance(least, colocated, exchange_alone(run), figures.exposed_communication(run))


def exchange_alone(run: Run) -> Spread | None:
    """The communication of a step by itself, in seconds: median and quartiles over the rounds."""
    times = run.results.probe and run.results.probe.exchange_times
    if not times:
        return None
    low, median, high = np.percentile(times, [25, 50, 75])
    return Spread(float(median), float(low), float(high), len(times))


def on_one_host(run: Run) -> bool:
    return run.results.links is not None and len(set(run.results.links.hosts)) == 1


def link_rows(runs: Sequence[Run]) -> Rows:
    """One line a probe: each run has its own, before its training."""
    rows: Rows = [(msg("Method"), msg("Link MB/s"), msg("Slowest pair"), "MB/s", msg("both ways"), msg("Latency us"),
                   msg("All-reduce MiB"), "algbw", "busbw")]
    for run in runs:
        links = run.results.links
        if links is None:
            continue
        slowest = min(links.pairs, key=lambda pair: pair.one_way[-1].algbw)
        reduced = links.all_reduce[-1]
        rows.append((
            shortened(run.name, 22), words.number(links.bandwidth / MB), "{} - {}".format(*slowest.ranks),
            words.number(slowest.one_way[-1].algbw / MB), words.number(slowest.both_ways.algbw / MB),
            words.number(slowest.latency / MICROSECOND, 3), words.number(reduced.bytes / MIB),
            words.number(reduced.algbw / MB), words.number(reduced.busbw / MB),
        ))
    return rows


def distance_rows(runs: Sequence[Run]) -> Rows:
    """Milliseconds, and multiples of the least."""
    rows: Rows = [(msg("Method"), msg("At least ms"), msg("co-located"), msg("Exchange ms"), msg("quartiles"), "n",
                   msg("x least"), msg("Exposed ms"), msg("x least"))]
    for run in runs:
        found = distance(run)
        if found is None:
            continue
        alone, exposed = found.alone, found.exposed
        rows.append((
            shortened(run.name, 24), words.milliseconds(found.least),
            words.milliseconds(found.colocated) if found.colocated is not None else "-",
            words.milliseconds(alone.median) if alone else "-",
            f"{words.milliseconds(alone.low)} - {words.milliseconds(alone.high)}" if alone else "-",
            str(alone.n) if alone else "-",
            words.number(alone.median / found.least, 3) if alone else "-",
            words.milliseconds(exposed.median) if exposed else "-",
            words.number(exposed.median / found.least, 3) if exposed else "-",
        ))
    return rows
