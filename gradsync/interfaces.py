"""Which network interface reaches the other hosts."""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # of <linux/sockios.h>


def interface_towards(address: str) -> str | None:
    """The interface by whose own address packets to ``address`` leave; None if that is not known, or loopback.

    gloo would look up this host's name instead, which on many hosts is missing, 127.0.1.1, or another network.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: connecting a datagram socket only chooses the route
            own = probe.getsockname()[0]
            if own.startswith("127."):
                return None
            return next((name for _, name in socket.if_nameindex() if _address_of(probe, name) == own), None)
    except OSError:
        return None


def _address_of(any_socket: socket.socket, name: str) -> str | None:
    try:
        answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # it has none
        return None
    return socket.inet_ntoa(answer[20:24])
