"""What Linux offers beside processes' ids: dying with one's parent, and learning how another process ended.

The C library is asked itself where Python's own functions are missing from builds for older systems (conda's).
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
SYS_PIDFD_SEND_SIGNAL, SYS_PIDFD_OPEN = 424, 434  # alike on all architectures
EXIT_CODE_FIELD = 52  # of /proc/PID/stat, see proc_pid_stat(5)


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def end_with_parent() -> None:
    """Let the kernel kill this process as soon as its parent has ended, however that ends."""
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))


def memory_file() -> int:
    """The descriptor of an empty file without a name, in memory."""
    return _checked(_libc.memfd_create(b"gradsync", 0))


def open_process(pid: int) -> int:
    """A descriptor that can be read as soon as the process has ended. Raises OSError where there is none."""
    return _checked(_libc.syscall(SYS_PIDFD_OPEN, pid, 0))


def kill_process(handle: int) -> None:
    """Kill what ``open_process`` has opened. Raises OSError if it has ended already."""
    _checked(_libc.syscall(SYS_PIDFD_SEND_SIGNAL, handle, int(signal.SIGKILL), None, 0))


def host_identity() -> str:
    """Equal on two processes if and only if each knows the other by its process id and both share a network.

    Without the second, a link between them can go down, and one must not take the other's silence for its end.
    """
    spaces = (os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net"))
    return " ".join([Path("/proc/sys/kernel/random/boot_id").read_text().strip(), *spaces])


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


def oom_kills() -> int:
    """How many processes this host has killed for want of memory since it was started."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("oom_kill", 0))


def in_words(exit_code: int) -> str:
    """An exit code as subprocess gives it, where a negative one is the number of a signal."""
    if exit_code >= 0:
        return f"it ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    return f"killed by {name}"
