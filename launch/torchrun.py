"""torchrun for run_all_experiments.sh: ``python launch/torchrun.py [--nnodes N ...] NPROC SCRIPT [ARG ...]``.

As torchrun with NPROC ranks on this host, with what an unattended script needs besides (NPROC 0 starts the script
without torchrun, on a single device, and only the last two points are left):

- on one host nothing listens beyond the loopback interface; of several, the first listens, at one port;
- several hosts wait for each other before each run, and ranks are in the order of --node-rank;
- the exit code is that of the rank that failed first (torchrun's own is 1 for every failure);
- no trace or table where a rank has already said what is wrong, one line where a signal silenced it;
- a signal comes once, from the script, and not from the terminal as well, which would cut the clean-up short;
- if the script is killed, this process and its ranks end too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gradsync import hosts
from gradsync.errors import RunError, UsageError

if TYPE_CHECKING:  # importing torch takes seconds, which are for later
    from torch.distributed import TCPStore

    from gradsync.meeting import Meeting

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
LOOPBACK = "127.0.0.1"
CAUSE_SECONDS = 8.0  # for the ranks of other hosts to find that one is lost
POLL_SECONDS, GRACE_SECONDS = 0.5, 20.0  # to look after the other hosts; for ranks to end by themselves
ATTEMPT = "gradsync/0"  # where the ranks keep their notices in the store; nothing is restarted here


def main(flags: argparse.Namespace) -> int:
    parent = os.getppid()
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        return 128 + signal.SIGTERM
    if flags.nproc == "0":
        os.execv(sys.executable, [sys.executable, flags.script, *flags.arguments])  # still ends with the script
    # "Received 15 death signal, shutting down workers" and the like; the ranks have loggers of their own.
    logging.disable(logging.CRITICAL)
    ours = hosts.taken_from(flags, flags.timeout)
    return launch_here(flags) if ours is None else launch_on(ours, flags)


def launch_here(flags: argparse.Namespace) -> int:
    """The ranks of a job that has no other hosts."""
    store = loopback_store()
    with tempfile.TemporaryDirectory(prefix="gradsync-launch-") as folder:
        # The agent of torchrun has nobody to meet but itself, and a file does not listen. The ranks use our store.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        options = ["--nnodes=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={folder}/agent",
                   "--rdzv-conf=store_type=file", f"--rdzv-id={Path(folder).name}", f"--local-addr={LOOPBACK}"]
        return run_agent(store, options, flags, range(int(flags.nproc)))


def launch_on(ours: hosts.Hosts, flags: argparse.Namespace) -> int:
    """This host's ranks of a job on several; no host begins before all are there, nor goes on when one has failed."""
    # Of addresses to which no name belongs, as within many clusters; torch would warn of each.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from gradsync.meeting import Meeting

    with Meeting(ours, f"run {flags.run} ({Path(flags.script).name})") as meeting:
        address, port = meeting.address
        os.environ["GRADSYNC_STORE"] = f"{address}:{port}"
        # Static, because it numbers the ranks by --node-rank: the results are where rank 0 is.
        options = [f"--nnodes={ours.count}", f"--node-rank={ours.index}", "--rdzv-backend=static",
                   f"--master-addr={address}", f"--master-port={port}", f"--rdzv-id=agents-{flags.run}"]
        first = ours.index * int(flags.nproc)
        done, ending = threading.Event(), threading.Event()
        threading.Thread(target=end_with_others, args=(meeting, done, ending), daemon=True).start()
        status = run_agent(meeting.store, options, flags, range(first, first + int(flags.nproc)), CAUSE_SECONDS)
        done.set()
        status = 1 if ending.is_set() else status
        meeting.end(status)
        return status


def end_with_others(meeting: Meeting, done: threading.Event, ending: threading.Event) -> None:
    """End this host's part if another host's has failed, and the ranks have not found out by themselves.

    They do once they have met; a rank that waits for the first one of another host would wait for all of --timeout.
    """
    with suppress(RuntimeError):  # host 0 has gone, which the ranks notice
        while not done.wait(POLL_SECONDS):
            if (failed := meeting.failed()) and not done.wait(GRACE_SECONDS):
                print(f"error: host {', '.join(map(str, failed))} has failed; see what it says", file=sys.stderr,
                      flush=True)
                ending.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return


def run_agent(store: TCPStore, options: list[str], flags: argparse.Namespace, ranks: range,
              patience: float = 0.0) -> int:
    """torchrun's agent with these options, and the last word on how its ``ranks`` ended. Returns the exit code."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    words = [*options, f"--nproc-per-node={flags.nproc}", flags.script, *flags.arguments]
    try:
        torchrun.run(torchrun.parse_args(words))
    except SignalException as interruption:
        return 128 + interruption.sigval
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        signals = {rank: signal.Signals(-one.exitcode).name
                   for rank, one in failure.failures.items() if one.exitcode < 0}
        if patience and rank in signals:
            with suppress(RuntimeError):  # nobody is left to name a cause
                store.wait([f"{ATTEMPT}/cause"], timedelta(seconds=patience))
        line = last_word(store, Path(flags.script).name, rank, signals, ranks)
        if line:
            print(f"error: {line}", file=sys.stderr, flush=True)
        return 2 if first.exitcode == 2 else 1
    return 0


def loopback_store() -> TCPStore:
    """The ranks' store, kept by this process, at a free port of the loopback interface."""
    from torch.distributed import TCPStore

    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    os.environ["GRADSYNC_STORE"] = f"{LOOPBACK}:{port}"
    return TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def last_word(store: TCPStore, name: str, first: int, signals: dict[int, str], ranks: range) -> str:
    """What is to be said beside what this host's ``ranks`` have said: how one ended, which only its parent knows.

    And what a rank of another host has said, which is not read here. ``first`` is the rank that ended first,
    ``signals`` names the signals by rank.
    """
    try:
        cause = json.loads(store.get(f"{ATTEMPT}/cause")) if store.check([f"{ATTEMPT}/cause"]) else None
    except RuntimeError:  # the first host has gone, and its store
        cause = None
    if cause is None:
        return f"{name}: rank {first} was lost, killed by {signals[first]}" if first in signals else ""
    if cause["spoken"] and cause["by"] in ranks:
        return ""
    how = f", killed by {signals[cause['rank']]}," if cause["rank"] in signals else ""
    return cause["line"].replace(" was lost", f" was lost{how}")


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    hosts.add_arguments(parser)
    parser.add_argument("--run", default="1", help="tells the runs of one script apart (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS",
                        help="a host waits this long for another one (default: %(default)g)")
    parser.add_argument("nproc")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
