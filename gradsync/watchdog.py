"""Ends a rank whose job cannot go on, and lets one rank say why.

A collective that waits for a lost peer cannot be interrupted from Python, so a thread of its own watches: for
signals, for the end of the other processes on this host, for ranks that fall silent and for a cause that another
rank has named. Only the first cause is said; what it leads to on other ranks is not news.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType

import torch.distributed as dist

from gradsync.distributed import Launch
from gradsync.files import remove_own_temporaries
from gradsync.noticeboard import BEAT_SECONDS, Cause, Noticeboard
from gradsync.position import PeerPosition, Position, here
from gradsync.process import how_it_ended, kill_process, oom_kills, open_process

SILENT_SECONDS = 3.0  # without a beat: enough to suspect a rank once a collective has failed
ECHO_SECONDS = 10.0  # a rank whose collective has failed waits this long for the cause of it
PATIENCE_SECONDS = 5.0  # beyond --timeout, within which a collective gives up by itself
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Peer:
    """Another rank's process on this host."""

    def __init__(self, pid: int, shared: int) -> None:
        """Raises OSError if the process is gone, or this one may not look at it."""
        self.pid, self.position, self.handle = pid, PeerPosition(pid, shared), open_process(pid)

    @property
    def ended(self) -> bool:
        return bool(select.select([self.handle], [], [], 0)[0])

    def kill(self) -> None:
        """For a stopped process, which cannot end when it is told to; torchrun would wait 30 s for it."""
        with suppress(ProcessLookupError):
            kill_process(self.handle)


class Watchdog:
    """Watches one rank's job from ``start`` to ``stop``.

    ``record`` writes down the cause; it is called on the recorder or, if that is lost, on the rank that found it.
    Where launch/torchrun.py has started the ranks, it says what they cannot know.
    """

    def __init__(self, method: str, launch: Launch, num_servers: int, timeout: float,
                 record: Callable[[str], None]) -> None:
        self.method, self.launch, self.num_servers, self.timeout = method, launch, num_servers, timeout
        self.record = record
        self.launcher_speaks = launch.launcher_store is not None
        self._end = threading.Lock()  # whoever holds it ends this process
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, store: dist.Store) -> None:
        """Call in the main thread, when all ranks have joined the job."""
        self.board = Noticeboard(store, self.launch.rank, self.launch.world_size)
        self._poll = select.poll()
        self._oom_kills = oom_kills()
        self._peers: dict[int, Peer] = {}
        for rank, (pid, shared) in self.board.meet(os.getpid(), here.share()).items():
            with suppress(OSError):  # then it is watched as if it were on another host
                self._peers[rank] = Peer(pid, shared)
                self._poll.register(self._peers[rank].handle, select.POLLIN)
        self._wakeup, theirs = socket.socketpair()
        self._wakeup.setblocking(False)
        theirs.setblocking(False)
        self._signals = theirs
        self._poll.register(self._wakeup, select.POLLIN)
        # A handler in Python would run only when the collective returns. The number that C writes is seen at once.
        self._earlier = {number: signal.signal(number, _leave_it_to_the_thread) for number in SIGNALS}
        self._earlier_fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        self.board.start()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Put everything back as it was. Call in the main thread."""
        self._stopping = True
        signal.set_wakeup_fd(self._earlier_fd)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._signals.send(b"\0")
        self._thread.join()
        self.board.close()
        for peer in self._peers.values():
            os.close(peer.handle)
        self._wakeup.close()
        self._signals.close()

    def report(self, line: str, echo: bool) -> int:
        """The main thread's way to end with an error. Says ``line``, unless the job has another cause.

        ``echo``: a failed collective, which says nothing about the reason. Returns the exit code, or does not return
        where the watchdog is ending this process already.
        """
        if self._thread is None:  # the job had not begun, and there is nobody to agree with
            print(f"error: {line}", file=sys.stderr, flush=True)
            if self.launch.rank == self.num_servers:
                self.record(line)
            return 1
        cause = self._reason_for_echo(line) if echo else Cause(line)
        self._end.acquire()
        return self._conclude(cause)

    def _reason_for_echo(self, line: str) -> Cause:
        """Wait for the cause; where nobody has named one, see who is missing."""
        self.board.watch_all()
        start = time.monotonic()
        while self.board.cause is None and (waited := time.monotonic() - start) < ECHO_SECONDS:
            time.sleep(BEAT_SECONDS / 5)
            if waited > SILENT_SECONDS + 2 * BEAT_SECONDS:
                if time.monotonic() - self.board.answered > SILENT_SECONDS:
                    return self._unreachable_store()
                for rank, sighting in sorted(self.board.sightings.items()):
                    if self.board.answered - sighting.seen > SILENT_SECONDS:
                        return self._lost(rank, "")
                if stuck := self._stuck():
                    return stuck
        return Cause(line)

    def _watch(self) -> None:
        progress, moved = here.progress, time.monotonic()
        while not self._stopping:
            ready = [handle for handle, _ in self._poll.poll(1000 * BEAT_SECONDS)]
            now = time.monotonic()
            if here.progress != progress:
                progress, moved = here.progress, now
            cause = self.board.cause or self._death(ready) or self._signal() or self._silence(now, now - moved)
            if cause is not None and not self._stopping:
                if self._end.acquire(blocking=False):
                    os._exit(self._conclude(cause))
                return  # the main thread is ending this process

    def _death(self, ready: list[int]) -> Cause | None:
        """A process of this host that has ended before the job was done."""
        for rank, peer in self._peers.items():
            if peer.handle in ready:
                self._poll.unregister(peer.handle)
                how = how_it_ended(peer.pid)
                left_in_order = how.endswith("code 0") or (not how and here.stage == "leaving")
                if not left_in_order:
                    return self._first_to_know(rank, how)
        return None

    def _first_to_know(self, lost: int, how: str) -> Cause:
        """All ranks of this host see a death at once. The lowest that lives says it; the others leave it to that."""
        lower = any(rank < self.launch.rank and not peer.ended for rank, peer in self._peers.items())
        give_up = time.monotonic() + (SILENT_SECONDS if lower else 0)
        while self.board.cause is None and time.monotonic() < give_up:
            time.sleep(BEAT_SECONDS / 10)
        return self._lost(lost, how)

    def _signal(self) -> Cause | None:
        try:
            numbers = [number for number in self._wakeup.recv(64) if number in SIGNALS]
        except BlockingIOError:
            return None
        if not numbers:
            return None
        name = signal.Signals(numbers[0]).name
        return Cause(f"{self.method}: interrupted by {name} in {here}", spoken=not self.launcher_speaks,
                     status=128 + numbers[0])

    def _silence(self, now: float, still: float) -> Cause | None:
        """A rank that has stopped answering, a store that has, or a job of which no rank moves any more."""
        for rank, sighting in self.board.sightings.items():
            silent = self.board.answered - sighting.seen  # while the store is silent, nobody can be heard
            if silent > self.timeout:
                where = self._last_seen(rank)
                if rank in self._peers:
                    self._peers[rank].kill()
                return Cause(f"{self.method}: {self._name(rank)} has not answered for {silent:.0f} s "
                             f"(stopped, or its host cannot be reached), last seen in {where}", rank)
        if now - self.board.answered > self.timeout:
            return self._unreachable_store()
        if still > self.timeout + PATIENCE_SECONDS:
            self.board.watch_all()
            time.sleep(3 * BEAT_SECONDS)
            return self._stuck() or Cause(f"{self.method}: no rank has moved for {still:.0f} s, in {here}")
        return None

    def _unreachable_store(self) -> Cause:
        return Cause(f"{self.method}, rank {self.launch.rank}: the launcher's store has not answered for "
                     f"{time.monotonic() - self.board.answered:.0f} s (is its host, or the network, down?), in {here}")

    def _stuck(self) -> Cause | None:
        rank = stuck_rank({rank: seen.position for rank, seen in self.board.sightings.items()}, self.num_servers)
        if rank is None:
            return None
        return Cause(f"{self.method}: {self._name(rank)} has kept the others waiting for more than "
                     f"{self.timeout:g} s (--timeout) in {self._last_seen(rank)}", rank)

    def _lost(self, rank: int, how: str) -> Cause:
        manner, where = f", {how}," if how else "", self._last_seen(rank)
        if rank not in self._peers:  # synchronous ranks are at most a step apart, so our own place may tell more
            where = max(where, here, key=lambda position: position.progress)
        advice = "; this host ran out of memory, try a smaller --batch-size" if oom_kills() > self._oom_kills else ""
        return Cause(f"{self.method}: {self._name(rank)} was lost{manner} in {where}{advice}", rank,
                     spoken=bool(how) or not self.launcher_speaks)

    def _last_seen(self, rank: int) -> Position:
        """Exact for a rank of this host. Of another host's, the last word may be a beat old."""
        if rank in self._peers:
            return self._peers[rank].position.read()
        sighting = self.board.sightings.get(rank)
        return sighting.position if sighting else Position()

    def _name(self, rank: int) -> str:
        return f"the parameter server (rank {rank})" if rank < self.num_servers else f"rank {rank}"

    def _conclude(self, cause: Cause) -> int:
        """Agree on the first cause; say it if it is ours, and write it down where that is this rank's business.

        Returns the exit code.
        """
        first = self.board.claim(cause)
        agreed = self.board.cause
        recorder = self.num_servers
        if agreed.status == 1 and (self.launch.rank == recorder or (first and agreed.rank == recorder)):
            self.record(agreed.line)
        remove_own_temporaries()
        if first and agreed.spoken:
            print(f"error: {agreed.line}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        return agreed.status


def stuck_rank(positions: Mapping[int, Position], num_servers: int) -> int | None:
    """The rank that the others wait for, or None where that cannot be told.

    Replicas pass through the same phases in the same order, so one that lags behind keeps the others waiting. If
    all are equally far, they wait for the server.
    """
    progress = {rank: position.progress for rank, position in positions.items() if rank >= num_servers}
    if progress and min(progress.values()) < max(progress.values()):
        return min(progress, key=lambda rank: progress[rank])
    return 0 if num_servers else None


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """The watchdog's thread has read the number already."""
