"""What Linux tells about processes: dying with one's parent, and learning how another process ended."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
EXIT_CODE_FIELD = 52  # of /proc/PID/stat, see proc_pid_stat(5)


def end_with_parent() -> None:
    """Let the kernel kill this process as soon as its parent has ended, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def namespace() -> str:
    """Equal on two processes if and only if each knows the other by its process id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def how_it_ended(pid: int) -> str:
    """How a process ended, or an empty string where its parent has taken note of that already."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()  # from the third on: the second, a name, may hold anything
    if fields[0] not in "ZX":
        return ""  # the id belongs to another process by now
    return in_words(os.waitstatus_to_exitcode(int(fields[EXIT_CODE_FIELD - 3])))


def in_words(exit_code: int) -> str:
    """An exit code as subprocess gives it, where a negative one is the number of a signal."""
    if exit_code >= 0:
        return f"it ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    return f"killed by {name}"
