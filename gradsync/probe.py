"""Warm-up and the exposed-communication probe: steps whose effect on the model is discarded."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Protocol

import torch
from torch import nn

from gradsync.data import Batch
from gradsync.method import Method
from gradsync.results import Probe
from gradsync.timing import synchronize

WARM_UP_STEPS = 3
MIN_ROUNDS, MAX_ROUNDS = 3, 15
MAX_SECONDS = 20.0


class Stateful(Protocol):
    """A method, or a server."""

    module: nn.Module

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@contextmanager
def discarded(trainer: Stateful) -> Iterator[None]:
    """Put parameters, buffers and all other state back to what they were before the block."""
    module_state, other_state = deepcopy(trainer.module.state_dict()), deepcopy(trainer.state_dict())
    yield
    trainer.module.load_state_dict(module_state)
    trainer.load_state_dict(other_state)


def warm_up_and_probe(method: Method, batch: Batch, probing: bool = True) -> Probe | None:
    """Exposed communication = step time minus the time of the same step without synchronisation.

    After the warm-up, rounds of one synchronised and one local step in turn, on one real batch, each from a
    common start and timed to the end of the device's work; a round's figure is the mean over replicas. The
    synchronised step ends when the replica holds the updated parameters, for every method alike. A method that does not
    synchronise is warmed up only, and so is one that is not ``probing`` (because an earlier part of the run has).
    With ``--probe-links`` the exchange alone is measured too, where the method has one.
    """
    ctx = method.ctx

    def seconds(step: Callable[[], None]) -> float:
        ctx.barrier()
        start = time.perf_counter()
        step()
        synchronize(ctx.device)
        return time.perf_counter() - start

    def synchronised() -> None:
        method.step(batch)
        method.refresh_parameters()

    synced, local = [], []
    with discarded(method):
        for _ in range(WARM_UP_STEPS):
            seconds(synchronised)
            seconds(lambda: method.local_step(batch))
        begin = time.perf_counter()
        while probing and method.synchronises and len(synced) < MAX_ROUNDS:
            synced.append(seconds(synchronised))
            local.append(seconds(lambda: method.local_step(batch)))
            # All replicas must agree on the number of rounds, so the slowest one's watch decides.
            if ctx.max_over_replicas(time.perf_counter() - begin) > MAX_SECONDS and len(synced) >= MIN_ROUNDS:
                break
        alone = exchange_alone(method, batch) if synced and method.config.probe_links and method.can_exchange else None
    method.clock.start_epoch()
    method.traffic.take()
    if not synced:
        return None
    means = ctx.sum_over_replicas(torch.tensor([synced, local])) / ctx.num_replicas
    summary = summarise_rounds(*means.tolist())
    own = torch.zeros(ctx.num_replicas)
    own[ctx.replica_rank] = statistics.median(local)
    summary.local_step_per_replica = ctx.sum_over_replicas(own).tolist()
    summary.exchange_times = alone
    return summary


def exchange_alone(method: Method, batch: Batch) -> list[float]:
    """Seconds of the communication of a step by itself, on the slowest replica, a figure a round.

    Each round is from a common start, with the same gradients: those of the last local step.
    """
    ctx, rounds = method.ctx, []
    gradients = [(p.grad, p.grad.clone()) for p in method.module.parameters() if p.grad is not None]
    begin = time.perf_counter()
    while len(rounds) <= MAX_ROUNDS:
        for gradient, before in gradients:
            gradient.copy_(before)
        synchronize(ctx.device)
        ctx.barrier()
        start = time.perf_counter()
        method.exchange(batch)
        synchronize(ctx.device)
        rounds.append(ctx.max_over_replicas(time.perf_counter() - start))
        if ctx.max_over_replicas(time.perf_counter() - begin) > MAX_SECONDS and len(rounds) > MIN_ROUNDS:
            break
    return rounds[1:]  # the first one follows another kind of step


def summarise_rounds(step_times: list[float], local_step_times: list[float]) -> Probe:
    """Median and interquartile range of the paired differences, in seconds."""
    differences = [synced - local for synced, local in zip(step_times, local_step_times, strict=True)]
    low, _, high = statistics.quantiles(differences, n=4, method="inclusive")
    return Probe(
        rounds=len(differences), step_times=step_times, local_step_times=local_step_times,
        exposed_communication=statistics.median(differences), exposed_communication_iqr=high - low,
    )
