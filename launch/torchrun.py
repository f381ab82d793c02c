"""torchrun for run_all_experiments.sh: ``python launch/torchrun.py NPROC SCRIPT [ARG ...]``, on this host only.

As ``torchrun --standalone --nproc_per_node=NPROC``, with what an unattended script needs besides (NPROC 0 starts the
script without torchrun, on a single device, and only the last two points are left):

- the exit code is that of the rank that failed first (torchrun's own is 1 for every failure);
- no trace or table where a rank has already said what is wrong, one line where a signal silenced it;
- a signal comes once, from the script, and not from the terminal as well, which would cut the clean-up short;
- if the script is killed, this process and its ranks end too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


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
    # The host's own name need not resolve, so the ranks meet at localhost.
    options = ["--standalone", "--local-addr=localhost", f"--nproc-per-node={nproc}"]
    try:
        torchrun.run(torchrun.parse_args([*options, script, *arguments]))
    except SignalException as interruption:
        return 128 + interruption.sigval
    except ChildFailedError as failure:
        rank, first = failure.get_first_failure()
        if first.exitcode < 0:
            print(f"error: {Path(script).name}: rank {rank} was ended by {signal.Signals(-first.exitcode).name}",
                  file=sys.stderr, flush=True)
        return 2 if first.exitcode == 2 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
