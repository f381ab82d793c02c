"""The loop that all methods share: epochs, evaluation, records. What a step does is the method's business."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from gradsync.checkpoint import Checkpoints, DataPosition
from gradsync.compute_profile import profile_compute
from gradsync.config import Plan
from gradsync.data import Batch, ReplicaData
from gradsync.distributed import ReplicaContext
from gradsync.errors import JobError
from gradsync.method import Method, Tally
from gradsync.models import average_buffers, parameter_fingerprint, parameter_sketch
from gradsync.position import here
from gradsync.probe import Stateful, discarded, warm_up_and_probe
from gradsync.profiling import trace_steps, traced
from gradsync.results import Communication, EpochResults, RunResults, ServerEpoch, summarise
from gradsync.screen import Progress, say, show_epoch, show_probe
from gradsync.segments import EpochRecord, merged
from gradsync.timing import StepClock, synchronize


def train(method: Method, data: ReplicaData, plan: Plan, results: RunResults,
          checkpoints: Checkpoints | None = None, trace: Path | None = None) -> dict[str, torch.Tensor]:
    """Train this replica through the plan and fill ``results``, alike on all replicas.

    Goes on from the checkpoint that ``checkpoints`` has found, if any; ``results`` are then those that came with it.
    ``trace``: where to write a trace of a few steady steps, if anywhere.
    Returns the state dict (on the CPU) of the epoch with the best validation accuracy; empty except on the
    recorder. Raises JobError where ranks disagree on their parameters or a loss is not finite.
    """
    ctx, checkpoints = method.ctx, checkpoints or Checkpoints(method.ctx, plan)
    here.enter("warm-up")
    rest = {"best": {}, **checkpoints.restore(method)}
    warm_up(method, data, results, resumed=checkpoints.saved is not None)
    if trace:
        trace_steps(method, first_batch(data), trace)
    torch.manual_seed(method.config.seed + 1 + ctx.rank)  # for dropout: each replica draws its own
    checkpoints.restore_random_state()
    for number in range(checkpoints.start.epoch, len(plan.epoch_lengths) + 1):
        if ctx.is_recorder:
            say(f"Epoch [{number}/{len(plan.epoch_lengths)}]")
        data.sampler.set_epoch(number, plan.epoch_lengths[number - 1], checkpoints.first_step(number))
        here.enter("training", number, checkpoints.first_step(number))
        epoch, record = train_epoch(method, data, number, results, checkpoints, rest)
        epoch.learning_rate = plan.learning_rate_at(sum(plan.epoch_lengths[:number]) - 1)
        epoch.parameter_sketch = parameter_sketch(method.module)
        here.enter("validation", number)
        average_buffers(method.module, ctx)
        epoch.val_loss, epoch.val_accuracy, epoch.val_samples = evaluate(method, data.val_batches())
        merge_records(ctx, ctx.gather_records(record), epoch, results)
        results.epochs.append(epoch)
        if results.best_accuracy is None or epoch.val_accuracy > results.best_accuracy:
            results.best_accuracy = epoch.val_accuracy
            if ctx.is_recorder:
                state = method.module.state_dict()
                rest["best"] = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if ctx.is_recorder:
            show_epoch(epoch)
        if checkpoints.due_after(number):
            checkpoints.save(DataPosition(number + 1), method, rest, results)
    results.summary = summarise(results.epochs)
    return rest["best"]


def warm_up(method: Method, data: ReplicaData, results: RunResults, resumed: bool) -> None:
    """The discarded steps before the first measured one; a resumed run has its probe already.

    Raises JobError where ranks do not start from the same parameters, or the steps leave a trace in them.
    """
    ctx = method.ctx
    fingerprints = agreed_fingerprints(ctx, method.module, "before the first step")
    batch = first_batch(data)
    probe = warm_up_and_probe(method, batch, probing=not resumed)
    profile = profile_compute(method, batch) if method.config.probe_links and not resumed else None
    method.end_epoch()
    if agreed_fingerprints(ctx, method.module, "after the discarded warm-up") != fingerprints:
        raise JobError("the discarded warm-up has changed the parameters")
    if resumed:
        return
    results.probe, results.compute_profile, results.initial_fingerprints = probe, profile, fingerprints
    results.parameter_sketch = parameter_sketch(method.module)
    if ctx.is_recorder:
        show_probe(results)


def train_epoch(method: Method, data: ReplicaData, number: int, results: RunResults, checkpoints: Checkpoints,
                rest: dict[str, Any]) -> tuple[EpochResults, dict[str, Any]]:
    """One epoch's training part, in segments that end where a checkpoint is due.

    Appends to ``results.all_losses``; returns the epoch and this rank's record. ``rest`` is what else goes into a
    checkpoint; the beginning of an interrupted epoch comes with it.
    """
    ctx = method.ctx
    so_far = EpochRecord(data.sampler.steps, ctx.device)
    if "epoch" in rest:
        so_far.load_state_dict(rest.pop("epoch"))
    first = so_far.tally.steps
    progress = Progress(ctx, so_far.tally)
    batches = data.train_batches()
    for stop in [*checkpoints.within(number), data.sampler.steps]:
        train_segment(method, itertools.islice(batches, stop - so_far.tally.steps), so_far, progress)
        check_losses(ctx, so_far.tally, number)
        if stop < data.sampler.steps:
            checkpoints.save(DataPosition(number, stop), method, {**rest, "epoch": so_far.state_dict()}, results)
    progress.close()

    step_losses, correct = reduce_tally(ctx, so_far.tally)
    results.all_losses += step_losses
    record = {
        "phases": so_far.phases, "fingerprint": parameter_fingerprint(method.module),
        "bytes_per_step": method.bytes_per_step(so_far.tally.steps - first),
        "messages_per_step": method.messages_per_step(so_far.tally.steps - first),
    }
    method.traffic.take()
    return epoch_results(method, number, so_far, step_losses, correct), record


def train_segment(method: Method, batches: Iterable[Batch], so_far: EpochRecord, progress: Progress) -> None:
    """The steps of one segment.

    The clock runs from a common start until the slowest replica holds the segment's last parameters.
    """
    ctx, clock = method.ctx, method.clock
    ctx.barrier()
    synchronize(ctx.device)
    progress.start(so_far.seconds)
    clock.start_epoch()
    start = time.perf_counter()
    for batch in clock.steps(batches):
        so_far.tally.add(method.step(batch), batch)
        progress.update()
    method.refresh_parameters()
    synchronize(ctx.device)
    ctx.barrier()
    so_far.add(time.perf_counter() - start, *clock.finish_epoch())
    method.end_epoch()


def epoch_results(method: Method, number: int, so_far: EpochRecord, step_losses: list[float],
                  correct: int) -> EpochResults:
    """What is known of an epoch once it is trained through, and before it is evaluated."""
    samples, steps, seconds = so_far.tally.global_samples, so_far.tally.steps, so_far.seconds
    weighted = sum(loss * size for loss, size in zip(step_losses, so_far.tally.global_batches, strict=True))
    communication = [so_far.phases.get(name, 0.0) / steps for name in method.synchronisation_phases]
    by_name = dict(zip(method.synchronisation_phases, communication, strict=True))
    return EpochResults(
        epoch=number, steps=steps, samples=samples,
        train_loss=weighted / samples, train_accuracy=100 * correct / samples,
        train_time=seconds, train_throughput=samples / seconds, avg_batch_time=seconds / steps,
        avg_comm_time=sum(communication) if communication else None,
        avg_comm_time_pull=by_name.get("pull"), avg_comm_time_push=by_name.get("push"),
        step_times=so_far.step_times,
    )


def reduce_tally(ctx: ReplicaContext, tally: Tally) -> tuple[list[float], int]:
    """Mean loss over each step's global batch, and the correctly classified samples, over all replicas."""
    sums = tally.losses.cpu() * torch.tensor(tally.shares, dtype=torch.float64)
    totals = ctx.sum_over_replicas(torch.cat([sums, tally.correct.cpu().double().reshape(1)]))
    losses = totals[:-1] / torch.tensor(tally.global_batches, dtype=torch.float64)
    return losses.tolist(), round(totals[-1].item())


def check_losses(ctx: ReplicaContext, tally: Tally, epoch: int) -> None:
    """Raises JobError that names the rank and step of the first loss that is NaN or infinite."""
    bad = torch.nonzero(~torch.isfinite(tally.losses)).flatten().tolist()
    first_bad = torch.zeros(ctx.num_replicas)
    first_bad[ctx.replica_rank] = bad[0] + 1 if bad else 0
    steps = {rank: int(step) for rank, step in zip(ctx.replica_ranks, ctx.sum_over_replicas(first_bad), strict=True)}
    failed = sorted((step, rank) for rank, step in steps.items() if step)
    if failed:
        step, rank = failed[0]
        raise JobError(f"rank {rank}: the loss is not finite at epoch {epoch}, step {step}; try a smaller --lr")


@torch.no_grad()
def evaluate(method: Method, batches: Iterable[Batch]) -> tuple[float, float, int]:
    """Mean loss, accuracy in percent, and number of samples of the whole validation set.

    Each replica evaluates its share; every sample counts once. Raises JobError for a loss that is not finite.
    """
    device = method.ctx.device
    method.module.eval()
    loss, correct = torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), device=device)
    samples = 0
    for batch in batches:
        here.next_step()
        with method.autocast():
            outputs = method.module(batch.images)
            loss += functional.cross_entropy(outputs, batch.labels, reduction="sum")
        correct += (outputs.argmax(dim=1) == batch.labels).sum()
        samples += batch.num_samples
    here.enter("end of epoch", here.epoch)
    sums = method.ctx.sum_over_replicas(torch.tensor([loss.item(), correct.item(), samples], dtype=torch.float64))
    total_loss, total_correct, total = sums.tolist()
    if not math.isfinite(total_loss):
        raise JobError("the validation loss is not finite; try a smaller --lr")
    return total_loss / total, 100 * total_correct / total, int(total)


def first_batch(data: ReplicaData) -> Batch:
    """This replica's share of the first global batch of epoch 1."""
    data.sampler.set_epoch(1, 1)
    return next(iter(data.train_batches()))


def agreed_fingerprints(ctx: ReplicaContext, module: nn.Module, when: str) -> list[str]:
    """Each replica's parameter fingerprint. Raises JobError, naming the ranks, unless all ranks agree."""
    records = ctx.gather_records({"fingerprint": parameter_fingerprint(module)})
    return _agreed([record["fingerprint"] for record in records], ctx, when)


def _agreed(fingerprints: list[str], ctx: ReplicaContext, when: str) -> list[str]:
    different = [rank for rank, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]]
    if different:
        raise JobError(f"rank {', '.join(map(str, different))}: parameters differ from rank 0's {when}")
    return fingerprints[ctx.num_servers :]


def merge_records(ctx: ReplicaContext, records: list[dict[str, Any]], epoch: EpochResults,
                  results: RunResults) -> None:
    """Put what each rank measured into the epoch. Raises JobError where parameters have diverged."""
    replicas = records[ctx.num_servers :]
    fingerprints = [record["fingerprint"] for record in records]
    epoch.fingerprints = _agreed(fingerprints, ctx, f"after epoch {epoch.epoch}")
    epoch.phases_per_replica = [record["phases"] for record in replicas]
    names = epoch.phases_per_replica[0]
    epoch.phases = {name: sum(phases[name] for phases in epoch.phases_per_replica) / len(replicas) for name in names}
    results.communication = Communication(
        replica_bytes_per_step=_mean([record["bytes_per_step"] for record in replicas]),
        replica_messages_per_step=_mean([record["messages_per_step"] for record in replicas]),
    )
    if ctx.num_servers:
        servers = [ServerEpoch.model_validate(record["server"]) for record in records[: ctx.num_servers]]
        merge_servers(servers, epoch, results)


def merge_servers(servers: list[ServerEpoch], epoch: EpochResults, results: RunResults) -> None:
    """Put what the servers measured into the epoch. The first one's shard, hence its traffic, is as large as any."""
    assert epoch.steps and results.communication
    epoch.server, epoch.servers = servers[0], servers if len(servers) > 1 else None
    moved = epoch.server.bytes_sent + epoch.server.bytes_received
    results.communication.server_bytes_per_step = moved / epoch.steps
    results.communication.server_messages_per_step = epoch.server.messages / epoch.steps
    if epoch.server.staleness is not None:
        total = Counter(results.staleness or {}) + Counter(epoch.server.staleness)
        results.staleness = {updates: total[updates] for updates in sorted(total, key=int)}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


class Server(Stateful, Protocol):
    """What ``serve`` needs of a parameter server."""

    ctx: ReplicaContext
    clock: StepClock

    def serve_epoch(self) -> ServerEpoch:
        """Answer the workers until all of them end their epoch."""
        ...


def serve(server: Server, plan: Plan, checkpoints: Checkpoints | None = None, trace: Path | None = None) -> None:
    """The server's counterpart of ``train``: the same stations, no data, no forward pass."""
    ctx, checkpoints = server.ctx, checkpoints or Checkpoints(server.ctx, plan)
    here.enter("warm-up")
    rest = checkpoints.restore(server)
    agreed_fingerprints(ctx, server.module, "before the first step")
    with discarded(server):
        server.serve_epoch()
    agreed_fingerprints(ctx, server.module, "after the discarded warm-up")
    if trace:
        with discarded(server), traced(server.clock, ctx.device, trace):
            server.serve_epoch()
    segments = [ServerEpoch.model_validate(segment) for segment in rest.get("segments", [])]
    for number in range(checkpoints.start.epoch, len(plan.epoch_lengths) + 1):
        here.enter("training", number, checkpoints.first_step(number) + 1)
        for stop in checkpoints.within(number):
            segments.append(server.serve_epoch())
            served = {"segments": [segment.model_dump() for segment in segments]}
            checkpoints.save(DataPosition(number, stop), server, served)
        segments.append(server.serve_epoch())
        here.enter("validation", number)
        record = {"server": merged(segments).model_dump(), "fingerprint": parameter_fingerprint(server.module)}
        ctx.gather_records(record)
        segments = []
        if checkpoints.due_after(number):
            checkpoints.save(DataPosition(number + 1), server, {})
