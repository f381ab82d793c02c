"""What an exception means to the user: one line, whether it is only the echo of a peer's end, and what to do."""

from __future__ import annotations

import errno

import torch
import torch.distributed as dist

from gradsync.errors import JobError, RunError

OUT_OF_MEMORY_TEXTS = ("not enough memory", "can't allocate memory", "out of memory")
# gloo's and NCCL's errors are plain RuntimeErrors in some versions of torch.
COLLECTIVE_TEXTS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe",
                    "timed out waiting", "rendezvous")


def is_echo(error: BaseException) -> bool:
    """A collective or the store failed. That is what the end of another rank looks like from here."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in COLLECTIVE_TEXTS)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)


def is_foreseen(error: BaseException) -> bool:
    """Its line says all there is to say, so a trace would only hide it."""
    names_file = isinstance(error, OSError) and error.filename is not None
    return isinstance(error, RunError) or names_file or is_echo(error) or is_out_of_memory(error)


def failure_line(error: BaseException, method: str, rank: int) -> str:
    """``method, rank N: cause``; without the rank where all ranks see the same and the cause names one."""
    who = method if isinstance(error, JobError) else f"{method}, rank {rank}"
    return f"{who}: {_cause(error)}"


def _cause(error: BaseException) -> str:
    if is_out_of_memory(error):
        detail = " ".join(str(error).split())[:200]
        return f"out of memory; try a smaller --batch-size or --global-batch-size ({type(error).__name__}: {detail})"
    if isinstance(error, RunError):
        # A data-loading process wraps the error in its own trace; the last line is the error itself.
        return str(error).strip().splitlines()[-1].removeprefix("gradsync.errors.RunError: ")
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
