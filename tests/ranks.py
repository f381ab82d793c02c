"""Run a function on several ranks of one job, in processes that share one import of torch.

Importing torch takes seconds of CPU per process; a fork server imports it once and forks the ranks from there.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
SECONDS = 240
_context = get_context("forkserver")
_context.set_forkserver_preload(["gradsync.main", "baseline_multi_card", "all_reduce_train", "ps_train"])


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """``function(rank, world_size, store_path, *arguments)`` on every rank; what each returned, by rank.

    Raises AssertionError with the trace of the first rank that failed.
    """
    # The fork server resolves the preloaded modules by PYTHONPATH, not by this process's sys.path.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TOP), str(TOP / "tests"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        processes, pipes = [], []
        for rank in range(world_size):
            ours, theirs = _context.Pipe(duplex=False)
            process = _context.Process(
                target=_run, args=(theirs, function, rank, world_size, f"{folder}/store", *arguments)
            )
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        try:
            return _collect(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(pipes: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = connection.wait(list(waiting), timeout=SECONDS)
        assert ready, f"ranks {sorted(waiting.values())} have not answered for {SECONDS} s"
        for pipe in ready:
            try:
                failure, value = pipe.recv()
            except EOFError:
                failure, value = "the process died without a word", None
            assert failure is None, f"rank {waiting[pipe]} failed:\n{failure}"
            results[waiting[pipe]] = value
    return [results[rank] for rank in range(len(pipes))]


def _run(pipe: Connection, function: Callable[..., Any], rank: int, world_size: int, store: str,
         *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    sys.stdout = io.StringIO()  # the recorder's progress
    sys.stderr = io.StringIO()
    try:
        pipe.send((None, function(rank, world_size, store, *arguments)))
    except BaseException:
        pipe.send((f"{traceback.format_exc()}\n{sys.stderr.getvalue()}", None))
