"""Several hosts on one machine: network namespaces on one bridge, each with a link of limited rate.

Needs root and iproute2 (``ip``, ``tc``). A host shares this machine's processors, memory and files, and has a
name, a loopback and an ``eth0`` of its own. Both directions of its link are shaped, as those of a switch port
are. Nothing leaves the machine: the bridge has no way out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType

from gradsync.errors import UsageError
from gradsync.rates import bits_per_second

SUBNET = "10.77.0"
MAX_HOSTS = 250
# A token bucket lets this many seconds' worth of bytes through at once; at least two of the largest packets that
# the kernel hands over in one piece.
BURST_SECONDS, LEAST_BURST = 0.001, 131_072
# Reads until its standard input closes, which happens whenever and however the process that holds the other end
# ends; then ends whatever still runs on the hosts and removes them.
JANITOR = """
trap '' INT TERM HUP
read -r _
for name in "$@"; do
    pids=$(ip netns pids "$name" 2>/dev/null) && [ -n "$pids" ] && kill -9 $pids
    ip netns delete "$name" 2>/dev/null
done
true
"""


def check_possible() -> None:
    """Raises UsageError where namespaces cannot be made."""
    if os.geteuid() != 0:
        raise UsageError("emulated hosts need root: network namespaces cannot be made without; use sudo")
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing:
        raise UsageError(f"emulated hosts need {' and '.join(missing)}: install iproute2 and util-linux")


class Hosts:
    """Context manager: ``count`` hosts whose links carry ``rate`` in each direction; removed on every way out."""

    def __init__(self, count: int, rate: str) -> None:
        check_possible()
        if not 1 <= count <= MAX_HOSTS:
            raise UsageError(f"--hosts {count}: give a number from 1 to {MAX_HOSTS}")
        self.rate = bits_per_second(rate)
        prefix = f"gradsync{os.getpid()}"
        self.switch = f"{prefix}-switch"
        self.names = [f"{prefix}-host{index}" for index in range(count)]
        self.addresses = [f"{SUBNET}.{index + 1}" for index in range(count)]

    def __enter__(self) -> Hosts:
        self._janitor = subprocess.Popen(["sh", "-c", JANITOR, "janitor", *self.names, self.switch],
                                         stdin=subprocess.PIPE, start_new_session=True)
        try:
            _run("ip", "netns", "add", self.switch)
            _run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
            _run("ip", "-n", self.switch, "link", "set", "bridge", "up")
            for index in range(len(self.names)):
                self._add_host(index)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._remove()

    def command(self, index: int, command: Sequence[str]) -> list[str]:
        """``command``, to be run on host ``index``."""
        # The name is what tells hosts apart in results files and to torchrun.
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"host{index}", *command]
        return ["ip", "netns", "exec", self.names[index], *named]

    def set_link(self, index: int, up: bool) -> None:
        """Cut the host's link, or mend it, at the switch: the host's own interface stays up."""
        _run("ip", "-n", self.switch, "link", "set", f"port{index}", "up" if up else "down")

    def _add_host(self, index: int) -> None:
        name, port = self.names[index], f"port{index}"
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch)
        _run("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
        _run("ip", "-n", name, "address", "add", f"{self.addresses[index]}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", interface, "up")
        burst = max(LEAST_BURST, int(self.rate / 8 * BURST_SECONDS))
        for namespace, interface in ((name, "eth0"), (self.switch, port)):
            _run("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", "rate", f"{self.rate:.0f}bit",
                 "burst", str(burst), "latency", "50ms")

    def _remove(self) -> None:
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"emulated hosts: {' '.join(command)}: {done.stderr.strip() or done.returncode}")
