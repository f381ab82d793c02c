"""``--profile``: a Chrome trace of a few steady steps of each rank, with the phases named.

The steps are discarded ones, after the warm-up and before epoch 1, so that profiling slows down nothing that is
measured. Open a trace in https://ui.perfetto.dev or chrome://tracing; the steps and their phases are the long bars.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gradsync.data import Batch
from gradsync.method import Method
from gradsync.probe import discarded
from gradsync.timing import StepClock, synchronize

STEPS = 5


@contextmanager
def traced(clock: StepClock, device: torch.device, path: Path) -> Iterator[None]:
    """Write a trace of the block to ``path``, in which the clock's phases have their names. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler, clock.named_phases():
        yield
        synchronize(device)
    unfinished = path.with_name(f".{path.name}.tmp")
    profiler.export_chrome_trace(str(unfinished))
    os.replace(unfinished, path)


def trace_steps(method: Method, batch: Batch, path: Path) -> None:
    """Trace ``STEPS`` discarded steps of a replica that is warm already."""
    with discarded(method), traced(method.clock, method.ctx.device, path):
        for _ in range(STEPS):
            with record_function("step"):
                method.step(batch)
                method.refresh_parameters()
        method.end_epoch()
    method.clock.start_epoch()
    method.traffic.take()
