"""torchrun for run_all_experiments.sh: ``python launch/torchrun.py NPROC SCRIPT [ARG ...]``, on this host only.

As ``torchrun --standalone --nproc_per_node=NPROC``, with what an unattended script needs besides (NPROC 0 starts the
script without torchrun, on a single device, and only the last two points are left):

- nothing listens beyond the loopback interface;
- the exit code is that of the rank that failed first (torchrun's own is 1 for every failure);
- no trace or table where a rank has already said what is wrong, one line where a signal silenced it;
- a signal comes once, from the script, and not from the terminal as well, which would cut the clean-up short;
- if the script is killed, this process and its ranks end too.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds, which are for later
    from torch.distributed import TCPStore

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
LOOPBACK = "127.0.0.1"
ATTEMPT = "gradsync/0"  # where the ranks keep their notices in the store; nothing is restarted here


def main(nproc: str, script: str, arguments: list[str]) -> int:
    parent = os.getppid()
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        return 128 + signal.SIGTERM
    if nproc == "0":
        os.execv(sys.executable, [sys.executable, script, *arguments])  # still ends with the script
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # "Received 15 death signal, shutting down workers" and the like; the ranks have loggers of their own.
    logging.disable(logging.CRITICAL)
    store = loopback_store()
    with tempfile.TemporaryDirectory(prefix="gradsync-launch-") as folder:
        # The agent of torchrun has nobody to meet but itself, and a file does not listen. The ranks use our store.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        options = ["--nnodes=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={folder}/agent",
                   "--rdzv-conf=store_type=file", f"--rdzv-id={Path(folder).name}",
                   f"--local-addr={LOOPBACK}", f"--nproc-per-node={nproc}"]
        try:
            torchrun.run(torchrun.parse_args([*options, script, *arguments]))
        except SignalException as interruption:
            return 128 + interruption.sigval
        except ChildFailedError as failure:
            rank, first = failure.get_first_failure()
            signals = {rank: signal.Signals(-one.exitcode).name
                       for rank, one in failure.failures.items() if one.exitcode < 0}
            line = last_word(store, Path(script).name, rank, signals)
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


def last_word(store: TCPStore, name: str, first: int, signals: dict[int, str]) -> str:
    """What is to be said beside what the ranks have said: the signal that ended one, which only its parent knows.

    ``first`` is the rank that ended first, ``signals`` names the signals by rank.
    """
    if not store.check([f"{ATTEMPT}/cause"]):
        return f"{name}: rank {first} was lost, killed by {signals[first]}" if first in signals else ""
    cause = json.loads(store.get(f"{ATTEMPT}/cause"))
    if cause["spoken"]:
        return ""
    how = f", killed by {signals[cause['rank']]}," if cause["rank"] in signals else ""
    return cause["line"].replace(" was lost", f" was lost{how}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
