"""Whether the bytes of a step can have been moved in the time that its communication is said to have taken."""

from __future__ import annotations

from dataclasses import dataclass

from gradsync.analysis import figures
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import Run
from gradsync.analysis.message import Text, joined, msg, term
from gradsync.analysis.words import milliseconds, number
from gradsync.bandwidth import fastest

GB = 1e9


@dataclass(frozen=True)
class Ceiling:
    """No link of this machine carries more, in one direction."""

    bytes_per_second: float
    source: Text


# Generous: the vendors' peak figures per direction (NVLink: half of the stated total of a GPU).
NVLINK = {
    "B200": (900, "5"), "B100": (900, "5"), "B300": (900, "5"), "H200": (450, "4"), "H100": (450, "4"),
    "GH200": (450, "4"), "A100": (300, "3"), "A800": (200, "3"), "H800": (200, "4"), "V100": (150, "2"),
}
MEMORY = Ceiling(100 * GB, msg("memory copies on a large server: half of eight DDR4-3200 channels"))
NETWORK = Ceiling(50 * GB, msg("a network card of 400 Gbit/s"))
PCIE_5 = Ceiling(63 * GB, msg("PCIe 5.0 x16, 16 lanes of 32 GT/s"))
PCIE_4 = Ceiling(31.5 * GB, msg("PCIe 4.0 x16, 16 lanes of 16 GT/s; if this machine has a faster link, state it with "
                                "--link-gbs"))


def ceiling(run: Run) -> Ceiling:
    """What the user states, else what a probe of the links has found, else a generous figure for the hardware named."""
    if run.assumed.link_bytes_per_second is not None:
        return Ceiling(run.assumed.link_bytes_per_second, msg("given with --link-gbs"))
    facts = run.results.environment
    if facts is None:
        return PCIE_4
    # On one host gloo's ranks share processors and memory, and how busy they were decides what a probe finds.
    if run.results.links is not None and (facts.num_hosts > 1 or facts.backend == "nccl"):
        measured = fastest(run.results.links)
        return Ceiling(1.5 * measured, msg("one and a half times the fastest transfer that --probe-links saw, "
                                           "{measured} GB/s", measured=number(measured / GB, 3)))
    if facts.num_hosts > 1:
        return NETWORK
    if facts.device.lower().startswith("cpu") or facts.backend == "gloo":
        return MEMORY
    known = next(((speed, version) for name, (speed, version) in NVLINK.items() if name in facts.device), None)
    return Ceiling(known[0] * GB, msg("NVLink {version} of {device}, one direction", version=known[1],
                                      device=facts.device)) if known else PCIE_5


@dataclass(frozen=True)
class Flow:
    """Bytes that each replica moves in a timed part of the step, and who says how many."""

    phases: Text
    moved: float
    source: Text
    seconds: float
    through_server: int  # replicas that talk to one server in this part; 1 without a server
    servers: int = 1  # that share these bytes

    @property
    def each(self) -> float:
        return self.moved / self.seconds

    @property
    def server(self) -> float:
        return self.each * self.through_server / self.servers

    @property
    def busiest(self) -> float:
        """Of the server's rate and the worker's, which is the larger one where there are more servers than workers."""
        return max(self.server, self.each)


def bandwidth(run: Run) -> list[Finding]:
    """Bytes moved / communication time stays under the ceiling of the link; no communication timers, no check."""
    phases = {name: seconds for name, seconds in figures.communication_phases(run).items() if seconds > 0}
    if not phases:
        return []
    flow, limit = max(_flows(run, phases), key=lambda each: each.busiest, default=None), ceiling(run)
    if flow is None:
        text = msg("the size of the gradients is not in the file; give it with --gradient-mb")
        return [Finding("bandwidth", "not known", run.name, text)]
    text = _figures(flow, limit)
    if flow.busiest <= limit.bytes_per_second:
        return [Finding("bandwidth", "pass", run.name, text)]
    # One after the other the replicas would share nothing, so only a replica's own rate is beyond doubt.
    return [Finding("bandwidth", "invalid" if flow.each > limit.bytes_per_second else "suspect", run.name, text,
                    msg("a timer that stopped before the device had moved the data"),
                    msg("synchronise the device before stopping a timer, or use CUDA events"))]


def _flows(run: Run, phases: dict[str, float]) -> list[Flow]:
    """The bytes counted where they were sent, over all communication; else one set of gradients in each phase.

    Of an all-reduce, every replica's gradients must leave it at least once, whatever the algorithm.
    """
    clients = (figures.replicas(run) or 1) if figures.serves(run) else 1
    servers = run.results.num_servers or 1
    counted = run.results.communication and run.results.communication.replica_bytes_per_step
    if counted:
        names = joined([term(name) for name in phases])
        return [Flow(names, counted, msg("counted"), sum(phases.values()), clients, servers)]
    size = figures.gradient_bytes(run)
    return [Flow(term(name), *size, seconds, clients, servers) for name, seconds in phases.items()] if size else []


def _figures(flow: Flow, limit: Ceiling) -> Text:
    facts = {"phases": flow.phases, "moved": number(flow.moved / 1e6, 3), "time": milliseconds(flow.seconds),
             "source": flow.source, "each": number(flow.each / GB, 3), "limit": number(limit.bytes_per_second / GB, 3),
             "limit_source": limit.source}
    if flow.through_server == 1:
        return msg("{phases}: {moved} MB ({source}) in {time} ms = {each} GB/s; ceiling {limit} GB/s ({limit_source})",
                   **facts)
    if flow.servers > 1:
        return msg("{phases}: {count} x {moved} MB ({source}) in {time} ms = {total} GB/s through each of {servers} "
                   "servers, {each} GB/s for each worker; ceiling {limit} GB/s ({limit_source})",
                   count=flow.through_server, servers=flow.servers, total=number(flow.server / GB, 3), **facts)
    return msg("{phases}: {count} x {moved} MB ({source}) in {time} ms = {total} GB/s through one server, {each} GB/s "
               "for each worker; ceiling {limit} GB/s ({limit_source})", count=flow.through_server,
               total=number(flow.server / GB, 3), **facts)
