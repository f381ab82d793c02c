"""Where the hosts of a job meet before anything is started on them: a store that the first host keeps.

Each brings a word, and goes on when it has those of all others. While the meeting lasts, the store also serves the
ranks and torchrun's agents, so that host 0 needs one open port for all of it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

from torch.distributed import TCPStore

from gradsync.errors import RunError, UsageError
from gradsync.hosts import Hosts

ANSWER_SECONDS = 5.0  # for a store to answer
QUIET_SECONDS = 10.0  # of waiting, before that is said
LEAVE_SECONDS = 10.0  # host 0 waits for the others to leave, who may still want to read in the store
POLL_SECONDS = 0.1


class Meeting:
    """Context manager: all hosts that are at ``topic``, and what each has to say, by ``exchange``.

    Entering it raises UsageError where this host cannot be the one that it is said to be, and RunError that names
    who has not come within ``hosts.patience`` seconds.
    """

    def __init__(self, hosts: Hosts, topic: str) -> None:
        self.hosts, self.topic = hosts, topic

    def __enter__(self) -> Meeting:
        self.store = self._open() if self.hosts.index == 0 else self._find()
        mine = f"{socket.gethostname()}, process {os.getpid()}"
        if (first := self.store.compare_set(f"host/{self.hosts.index}", "", mine).decode()) != mine:
            raise UsageError(f"--node-rank {self.hosts.index}: is taken already, by {first}; give each host its own")
        self.exchange("arrival", None)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        with suppress(RuntimeError):  # host 0 has gone, and with it the store
            self.store.set(f"left/{self.hosts.index}", "")
            give_up = time.monotonic() + LEAVE_SECONDS
            while self.hosts.index == 0 and self._missing("left") and time.monotonic() < give_up:
                time.sleep(POLL_SECONDS)

    @property
    def address(self) -> tuple[str, int]:
        """Of the store."""
        return self.store.host, self.store.port

    def exchange(self, subject: str, word: Any) -> list[Any]:
        """What each host says about ``subject``, by host; JSON. Raises RunError that names who has not answered."""
        start, told = time.monotonic(), False
        try:
            self.store.set(f"{subject}/{self.hosts.index}", json.dumps(word))
            while missing := self._missing(subject):
                if time.monotonic() - start > self.hosts.patience:
                    raise RunError(f"host {', '.join(map(str, missing))} of {self.hosts.count} has not come to "
                                   f"{self.topic} within {self.hosts.patience:g} s (--timeout); see what it says, and "
                                   f"whether it can reach port {self.address[1]} of {self.address[0]}")
                if not told and time.monotonic() - start > QUIET_SECONDS:
                    told = True
                    print(f"Waiting for host {', '.join(map(str, missing))} ...", flush=True)
                time.sleep(POLL_SECONDS)
            return [json.loads(self.store.get(f"{subject}/{host}")) for host in range(self.hosts.count)]
        except RuntimeError as error:
            raise RunError(f"host 0 has left {self.topic}; see what it says") from error

    def end(self, status: int) -> None:
        """Tell the others with which exit code this host's part has ended."""
        with suppress(RuntimeError):
            self.store.set(f"ended/{self.hosts.index}", str(status))

    def failed(self) -> list[int]:
        """The hosts that have ended with another exit code than 0. Raises RuntimeError where host 0 has gone."""
        ended = [host for host in range(self.hosts.count) if self.store.check([f"ended/{host}"])]
        return [host for host in ended if self.store.get(f"ended/{host}") != b"0"]

    def _missing(self, subject: str) -> list[int]:
        return [host for host in range(self.hosts.count) if not self.store.check([f"{subject}/{host}"])]

    def _open(self) -> TCPStore:
        hosts = self.hosts
        try:
            address = hosts.resolved()
            listener = socket.create_server((address, hosts.port))
        except socket.gaierror as error:
            raise UsageError(f"--master-addr {hosts.address}: cannot be resolved ({error.strerror})") from error
        except OSError as error:
            raise UsageError(f"--master-addr {hosts.address}, --master-port {hosts.port}: host 0 cannot listen there "
                             f"({error.strerror}); give an address of this host and a free port") from error
        if address.startswith("127.") and hosts.address not in (address, "localhost"):
            listener.close()
            raise UsageError(f"--master-addr {hosts.address}: is {address} to this host, where no other can reach it; "
                             "give its address in the network of the cluster")
        # Multi-tenant: torchrun's agent in this process opens the same store.
        store = TCPStore(address, hosts.port, is_master=True, wait_for_workers=False, multi_tenant=True,
                         master_listen_fd=listener.detach())
        store.set("topic", self.topic)
        return store

    def _find(self) -> TCPStore:
        """A connection to the store of host 0, which may come later, or still be at an earlier meeting."""
        hosts, start, told = self.hosts, time.monotonic(), False
        while True:
            try:
                address = hosts.resolved()
                socket.create_connection((address, hosts.port), timeout=ANSWER_SECONDS).close()
                store = TCPStore(address, hosts.port, is_master=False, wait_for_workers=False,
                                 timeout=timedelta(seconds=ANSWER_SECONDS))
                if (topic := store.get("topic").decode()) == self.topic:
                    return store
                why = f"host 0 is at {topic}, this one at {self.topic}"
            except (OSError, RuntimeError) as error:  # nobody there; somebody who is just leaving
                why = str(error)
            if time.monotonic() - start > hosts.patience:
                raise RunError(f"--master-addr {hosts.address}: host 0 has not been met at port {hosts.port} within "
                               f"{hosts.patience:g} s (--timeout): {why}")
            if not told and time.monotonic() - start > QUIET_SECONDS:
                told = True
                print(f"Waiting for host 0 at {hosts.address}:{hosts.port} ({why}) ...", flush=True)
            time.sleep(POLL_SECONDS)
