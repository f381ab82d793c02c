"""Whether a probe of the links agrees with itself, and the exchange with what the links can carry."""

from __future__ import annotations

import math

from gradsync.analysis import links as probed
from gradsync.analysis.finding import Finding, Verdict
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, msg
from gradsync.analysis.words import milliseconds, number
from gradsync.bandwidth import ALL_REDUCE, SENDRECV, algbw, busbw, link_bandwidth
from gradsync.probed import Links, LinkSample

ROUNDING = 1e-6
TOLERANCE = 1.1  # a probe finds the rate of a link within 10%
IMPOSSIBLE = 1.5  # what the ceiling of the bandwidth check allows for, too
MB = 1e6


def links(run: Run) -> list[Finding]:
    """Bandwidths of the probe are bytes / seconds, times nccl-tests' factor, and the link's is the largest of them."""
    probe = run.results.links
    if probe is None:
        return []
    samples = _samples(probe)
    wrong = next((text for operation, sample in samples if (text := _contradiction(operation, sample, probe))), None)
    best = link_bandwidth(probe.hosts, probe.all_reduce[-1], probe.pairs, probe.shift)
    if wrong is None and not math.isclose(probe.bandwidth, best, rel_tol=ROUNDING):
        wrong = msg("the link is said to carry {stated} MB/s, and its measurements show {best}",
                    stated=number(probe.bandwidth / MB), best=number(best / MB))
    if wrong is None:
        return [Finding("links", "pass", run.name, msg("{count} bandwidths are bytes / seconds", count=len(samples)))]
    return [Finding("links", "invalid", run.name, wrong, msg("the file was changed, or another tool wrote it"),
                    msg("run it again with --probe-links"))]


def _samples(probe: Links) -> list[tuple[str, LinkSample]]:
    found = [(ALL_REDUCE, sample) for sample in probe.all_reduce]
    for pair in probe.pairs:
        found += [(SENDRECV, sample) for sample in (*pair.one_way, pair.both_ways)]
    return found + ([(SENDRECV, probe.shift)] if probe.shift else [])


def _contradiction(operation: str, sample: LinkSample, probe: Links) -> Text | None:
    own = algbw(sample.bytes, sample.seconds)
    expected = {"algbw": own, "busbw": busbw(operation, own, len(probe.hosts))}
    for name, value in expected.items():
        stated = getattr(sample, name)
        if not math.isclose(stated, value, rel_tol=ROUNDING):
            return msg("{name} of {size} bytes in {time} ms is {value} MB/s, and the file says {stated}", name=name,
                       size=sample.bytes, time=milliseconds(sample.seconds), value=number(value / MB),
                       stated=number(stated / MB))
    return None


def lower_bound(run: Run) -> list[Finding]:
    """The exchange alone takes no less than the least that the probed links allow.

    Exposed communication may: what overlaps with computing is not exposed.
    """
    found = probed.distance(run)
    if found is None or found.alone is None:
        return []
    assert run.results.links is not None
    multiple = found.alone.median / found.least
    text = msg("the exchange alone takes {time} ms (n = {n}), {multiple} of the {least} ms that it takes at least over "
               "links of {rate} MB/s", time=milliseconds(found.alone.median), n=found.alone.n,
               multiple=number(multiple, 3), least=milliseconds(found.least),
               rate=number(run.results.links.bandwidth / MB))
    if multiple * TOLERANCE >= 1:
        return [Finding("lower bound", "pass", run.name, text)]
    if probed.on_one_host(run):
        return [Finding("lower bound", "note", run.name, text,
                        msg("ranks of one host share processors and memory, so a probe's figures are no limit there"))]
    verdict: Verdict = "invalid" if multiple * IMPOSSIBLE < 1 else "suspect"
    return [Finding("lower bound", verdict, run.name, text,
                    msg("the exchange was not waited for to its end, or something else used the links while they were "
                        "probed"),
                    msg("wait for the device and for all ranks before a timer stops; probe again on quiet links"))]
