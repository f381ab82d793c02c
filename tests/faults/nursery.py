"""Starts ranks by forking, so that torch is imported once for many jobs. Spoken to by ``jobs.Nursery``.

Each line of the standard input is a job, in JSON; each line of the standard output the exit codes of its ranks. Like
torchrun, it ends all ranks when the first has ended badly, and takes note of how each ended only after that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import inject

import all_reduce_train
import baseline_multi_card
import ps_train
from gradsync.main import run_script
from gradsync.process import open_process

METHODS = {
    "baseline_ddp": (baseline_multi_card.Baseline, None), "all_reduce": (all_reduce_train.AllReduce, None),
    "ps": (ps_train.ParameterServerWorker, ps_train.ParameterServer),
}
SECONDS = 60.0
GRACE_SECONDS = 0.3


def rank_main(job: dict[str, Any], rank: int) -> int:
    os.setsid()
    os.chdir(job["folder"])
    for stream in (1, 2):
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    ranks = str(job["ranks"])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks,
                      GRADSYNC_STORE=job["store"], **job["environment"])
    torch.set_num_threads(1)
    inject.plant(job["faults"], rank)
    method, server = METHODS[job["method"]]
    return run_script(lambda launch: method, server=server, argv=[*job["flags"], *job["flags_of"].get(str(rank), [])])


def run(job: dict[str, Any]) -> list[int | None]:
    """The exit codes, negative ones being signals; None for a rank that had to be ended."""
    pids = []
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = rank_main(job, rank)
            finally:
                sys.stdout.flush()
                os._exit(status)
        pids.append(pid)
    handles = [open_process(pid) for pid in pids]
    deadline = time.monotonic() + job.get("seconds", SECONDS)
    told = False
    while (running := [h for h in handles if not has_ended(h)]) and time.monotonic() < deadline:
        if len(running) < len(handles) and not told and job["tell_others"]:
            time.sleep(GRACE_SECONDS)
            told = True
            for pid, handle in zip(pids, handles, strict=True):
                tell(pid, handle, signal.SIGTERM)
        select.select(running, [], [], deadline - time.monotonic())
    overdue = [not has_ended(handle) for handle in handles]
    for pid, handle in zip(pids, handles, strict=True):
        tell(pid, handle, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    for handle in handles:
        os.close(handle)
    return [None if late else code for code, late in zip(codes, overdue, strict=True)]


def has_ended(handle: int) -> bool:
    return bool(select.select([handle], [], [], 0)[0])


def tell(pid: int, handle: int, number: int) -> None:
    if not has_ended(handle):
        os.kill(pid, number)  # until it is reaped, the id is this process's


if __name__ == "__main__":
    for line in sys.stdin:
        answer = json.dumps(run(json.loads(line)))
        print(answer, flush=True)
