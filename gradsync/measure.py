"""What an environment check measures in each rank: an all-reduce whose result is verified, a few real steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from gradsync.config import Plan
from gradsync.data import Batch, ReplicaData
from gradsync.datasets import ImageData
from gradsync.distributed import ReplicaContext
from gradsync.errors import RunError
from gradsync.main import Prepared
from gradsync.method import Method
from gradsync.placement import place, replica_data
from gradsync.probe import MAX_ROUNDS, MAX_SECONDS, MIN_ROUNDS, WARM_UP_STEPS
from gradsync.training import evaluate

ELEMENTS = 262_144  # 1 MiB of float32
MAX_STEPS = 6
METHOD_SECONDS = 1.5  # of measured steps
FEW_SAMPLES = 2  # BatchNorm needs two


@dataclass(frozen=True)
class Measured:
    """One method's seconds per step and per evaluation batch, on the slowest replica.

    Measured in ``steps`` steps of ``samples`` samples a replica, and scaled from there to a full share.
    """

    steps: int
    step_seconds: float
    local_step_seconds: float
    evaluation_seconds: float
    samples: int
    full_share: int


def time_verified_all_reduce(device: torch.device) -> float:
    """Seconds of a 1 MiB all-reduce, after one to warm up. Raises RunError unless every element is right."""
    rank, size = dist.get_rank(), dist.get_world_size()
    ramp = torch.arange(ELEMENTS, dtype=torch.float32, device=device) % 1024  # small integers: sums are exact
    expected = ramp * (size * (size + 1) // 2)
    seconds = math.nan
    for _ in range(2):
        tensor = ramp * (rank + 1)
        start = time.perf_counter()
        dist.all_reduce(tensor)
        correct = torch.equal(tensor, expected)  # waits for the device
        seconds = time.perf_counter() - start
        if not correct:
            raise RunError(f"the all-reduce over {size} ranks gave wrong sums")
    return seconds


def measure(prepared: Prepared, ctx: ReplicaContext) -> Measured | None:
    """A few real steps of the method, each with its data, and one evaluation batch; None on a server."""
    config, plan = prepared.config, prepared.plan
    module = place(prepared.model, replace(config, compile=False), ctx)  # compiling takes longer than the check
    if ctx.is_server:
        assert prepared.server is not None
        prepared.server(module, config, ctx, plan).serve_epoch()
        return None
    data = replica_data(prepared.data, config, ctx, prepared.global_batch, next(module.parameters()).dtype)
    method = prepared.method(module, config, ctx, plan)
    batches = endless(data, plan)
    batch = next(batches)
    samples, local_seconds = affordable_samples(method, batch)
    if local_seconds < METHOD_SECONDS:
        method.step(shrunk(batch, samples))  # warm-up
        method.refresh_parameters()
    steps, seconds, start = 0, 0.0, time.perf_counter()
    while steps < MAX_STEPS and seconds < METHOD_SECONDS:
        method.step(shrunk(next(batches), samples))
        method.refresh_parameters()
        steps += 1
        # All replicas must agree on the number of steps, so the slowest one's watch decides.
        seconds = ctx.max_over_replicas(time.perf_counter() - start)
    start = time.perf_counter()
    evaluate(method, [shrunk(batch, samples)])
    evaluation = time.perf_counter() - start
    method.end_epoch()
    full_share = len(batch.labels)
    samples = min(samples, full_share)
    scale = full_share / samples
    return Measured(steps, seconds / steps * scale, local_seconds * scale, evaluation * scale, samples, full_share)


def affordable_samples(method: Method, batch: Batch) -> tuple[int, float]:
    """As many samples of the batch as a step can afford here, and the seconds of a local step of them.

    Alike on all replicas. A large model on a CPU would otherwise make the check as slow as training.
    """
    full = int(method.ctx.max_over_replicas(len(batch.labels)))  # shares differ by one
    samples = min(FEW_SAMPLES, full)
    seconds = local_step_seconds(method, shrunk(batch, samples))
    while samples < full and seconds < METHOD_SECONDS / 8:
        samples = min(full, 4 * samples)
        seconds = local_step_seconds(method, shrunk(batch, samples))
    return samples, seconds


def local_step_seconds(method: Method, batch: Batch) -> float:
    """Seconds of a step without synchronisation, on the slowest replica; of a second one, if that is affordable."""
    seconds = math.inf
    for _ in range(2):
        method.ctx.barrier()
        start = time.perf_counter()
        method.local_step(batch).loss.item()  # waits for the device
        seconds = method.ctx.max_over_replicas(time.perf_counter() - start)
        if seconds > METHOD_SECONDS:
            break
    return seconds


def shrunk(batch: Batch, samples: int) -> Batch:
    """The first ``samples`` of the share, of a global batch that is smaller in proportion."""
    if samples >= len(batch.labels):
        return batch
    in_all = round(batch.global_samples * samples / len(batch.labels))
    return Batch(batch.images[:samples], batch.labels[:samples], samples, in_all)


def endless(data: ReplicaData, plan: Plan) -> Iterator[Batch]:
    """The training batches of epoch 1, 2, ..."""
    epoch = 0
    while True:
        epoch += 1
        data.sampler.set_epoch(epoch, plan.epoch_lengths[0])
        yield from data.train_batches()


def rescaled(measured: Measured, share: int) -> Measured:
    """What another share of a global batch would take: computing in proportion, synchronising as long as it did."""
    scale = share / measured.full_share
    local = measured.local_step_seconds * scale
    synchronising = max(0.0, measured.step_seconds - measured.local_step_seconds)
    return replace(measured, step_seconds=local + synchronising, local_step_seconds=local, full_share=share,
                   evaluation_seconds=measured.evaluation_seconds * scale)


def estimated_seconds(measured: Measured, plan: Plan, data: ImageData, num_replicas: int, startup: float) -> float:
    """Seconds of a method's whole run: start-up, probe, all steps, an evaluation after each epoch."""
    probe_round = measured.step_seconds + measured.local_step_seconds
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, math.ceil(MAX_SECONDS / probe_round)))
    validation = math.ceil(math.ceil(data.info.val_samples / num_replicas) / measured.full_share)
    return (
        startup + (WARM_UP_STEPS + rounds) * probe_round + plan.total_steps * measured.step_seconds
        + len(plan.epoch_lengths) * validation * measured.evaluation_seconds
    )
