"""Which of how many hosts this is, and where the first of them can be met. Nothing here imports torch.

The words are torchrun's: ``--nnodes``, ``--node-rank``, ``--master-addr``, ``--master-port``.
"""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass

from gradsync.errors import UsageError

MAX_HOSTS = 1024
DEFAULT_PORT = 29500  # torchrun's
NAMES = ("nnodes", "node_rank", "master_addr", "master_port")
FLAGS = tuple(f"--{name.replace('_', '-')}" for name in NAMES)


@dataclass(frozen=True)
class Hosts:
    """``count`` hosts, of which this is number ``index``; number 0 listens at ``address`` and ``port``.

    A host waits ``patience`` seconds for another one.
    """

    count: int
    index: int
    address: str
    port: int
    patience: float

    def flags(self) -> list[str]:
        """The flags that say so, for a program that this one starts."""
        return ["--nnodes", str(self.count), "--node-rank", str(self.index), "--master-addr", self.address,
                "--master-port", str(self.port)]

    def resolved(self) -> str:
        """The IPv4 address of the first host. Raises OSError where the name is not known, or not yet."""
        found = socket.getaddrinfo(self.address, self.port, socket.AF_INET, socket.SOCK_STREAM)
        return str(found[0][4][0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several hosts", "started once on each, with the same other flags")
    group.add_argument("--nnodes", type=int, metavar="N", help="hosts (default: 1, this one)")
    group.add_argument("--node-rank", type=int, metavar="R", help="which of them this is, from 0")
    group.add_argument("--master-addr", metavar="HOST[:PORT]",
                       help="address of host 0 in the network over which all hosts reach each other")
    group.add_argument("--master-port", type=int, metavar="PORT",
                       help=f"at which host 0 listens for the others (default: {DEFAULT_PORT})")


def taken_from(flags: argparse.Namespace, patience: float) -> Hosts | None:
    """The hosts that the flags name; None for a single one. Raises UsageError that names the flag."""
    count, index, address, port = flags.nnodes, flags.node_rank, flags.master_addr, flags.master_port
    if count is None:
        for name, value in (("--node-rank", index), ("--master-addr", address), ("--master-port", port)):
            if value is not None:
                raise UsageError(f"{name} {value}: is for several hosts; add --nnodes, the number of them")
        return None
    if not 1 <= count <= MAX_HOSTS:
        raise UsageError(f"--nnodes {count}: give a number of hosts from 1 to {MAX_HOSTS}")
    if not 0 <= (index or 0) < count:
        raise UsageError(f"--node-rank {index}: of {count} host(s), so give a number from 0 to {count - 1}")
    if count == 1:
        return None
    if index is None or not address:
        raise UsageError(f"--nnodes {count}: each host also needs --node-rank (0 to {count - 1}) and --master-addr, "
                         "the address of host 0")
    name, colon, endpoint_port = address.partition(":")
    if colon and (port is not None or not endpoint_port.isascii() or not endpoint_port.isdigit()):
        raise UsageError(f"--master-addr {address}: give an IPv4 address or a name, and one port, here or by "
                         "--master-port")
    port = int(endpoint_port) if colon else DEFAULT_PORT if port is None else port
    if not 1 <= port <= 65535:
        raise UsageError(f"--master-port {port}: give a port from 1 to 65535")
    return Hosts(count, index, name, port, patience)
