"""The loop that all methods share: epochs, evaluation, records. What a step does is the method's business."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from gradsync.config import Plan
from gradsync.data import Batch, ReplicaData
from gradsync.distributed import ReplicaContext
from gradsync.errors import JobError
from gradsync.method import Method, Tally, Updater
from gradsync.models import average_buffers, parameter_fingerprint, parameter_sketch
from gradsync.position import here
from gradsync.probe import discarded, warm_up_and_probe
from gradsync.results import Communication, EpochResults, RunResults, ServerEpoch, summarise
from gradsync.screen import Progress, say, show_epoch, show_probe
from gradsync.timing import synchronize


def train(method: Method, data: ReplicaData, plan: Plan, results: RunResults) -> dict[str, torch.Tensor]:
    """Train this replica through the plan and fill ``results``, alike on all replicas.

    Returns the state dict (on the CPU) of the epoch with the best validation accuracy; empty except on the
    recorder. Raises JobError where ranks disagree on their parameters or a loss is not finite.
    """
    ctx = method.ctx
    here.enter("warm-up")
    fingerprints = agreed_fingerprints(ctx, method.module, "before the first step")
    results.probe = warm_up_and_probe(method, first_batch(data))
    method.end_epoch()
    results.initial_fingerprints = agreed_fingerprints(ctx, method.module, "after the discarded warm-up")
    if results.initial_fingerprints != fingerprints:
        raise JobError(f"{method.name}: the discarded warm-up has changed the parameters")
    results.parameter_sketch = parameter_sketch(method.module)
    torch.manual_seed(method.config.seed + 1 + ctx.rank)  # for dropout: each replica draws its own
    if ctx.is_recorder:
        show_probe(results)
    best: dict[str, torch.Tensor] = {}
    for number, steps in enumerate(plan.epoch_lengths, start=1):
        if ctx.is_recorder:
            say(f"Epoch [{number}/{len(plan.epoch_lengths)}]")
        data.sampler.set_epoch(number, steps)
        here.enter("training", number)
        epoch, record = train_epoch(method, data, number, results)
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
                best = {name: tensor.detach().cpu().clone() for name, tensor in method.module.state_dict().items()}
        if ctx.is_recorder:
            show_epoch(epoch)
    results.summary = summarise(results.epochs)
    return best


def train_epoch(method: Method, data: ReplicaData, number: int,
                results: RunResults) -> tuple[EpochResults, dict[str, Any]]:
    """One epoch's training part. Appends to ``results.all_losses``; returns the epoch and this rank's record.

    The clock runs from a common start until the slowest replica holds the epoch's last parameters.
    """
    ctx, clock = method.ctx, method.clock
    tally = Tally(data.sampler.steps, ctx.device)
    ctx.barrier()
    synchronize(ctx.device)
    progress = Progress(ctx, tally)
    clock.start_epoch()
    start = time.perf_counter()
    for batch in clock.steps(data.train_batches()):
        tally.add(method.step(batch), batch)
        progress.update()
    method.refresh_parameters()
    synchronize(ctx.device)
    ctx.barrier()
    train_time = time.perf_counter() - start
    phases, step_times = clock.finish_epoch()
    progress.close()
    method.end_epoch()

    check_losses(ctx, tally, number)
    step_losses, correct = reduce_tally(ctx, tally)
    results.all_losses += step_losses
    samples, steps = tally.global_samples, tally.steps
    weighted = sum(loss * size for loss, size in zip(step_losses, tally.global_batches, strict=True))
    communication = [phases.get(name, 0.0) / steps for name in method.synchronisation_phases]
    by_name = dict(zip(method.synchronisation_phases, communication, strict=True))
    epoch = EpochResults(
        epoch=number, steps=steps, samples=samples,
        train_loss=weighted / samples, train_accuracy=100 * correct / samples,
        train_time=train_time, train_throughput=samples / train_time, avg_batch_time=train_time / steps,
        avg_comm_time=sum(communication) if communication else None,
        avg_comm_time_pull=by_name.get("pull"), avg_comm_time_push=by_name.get("push"),
        step_times=step_times,
    )
    record = {
        "phases": phases, "fingerprint": parameter_fingerprint(method.module),
        "bytes_per_step": method.bytes_per_step(steps), "messages_per_step": method.messages_per_step(steps),
    }
    method.traffic.take()
    return epoch, record


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
        epoch.server = ServerEpoch.model_validate(records[0]["server"])
        moved = epoch.server.bytes_sent + epoch.server.bytes_received
        results.communication.server_bytes_per_step = moved / epoch.server.updates
        results.communication.server_messages_per_step = epoch.server.messages / epoch.server.updates


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


class Server(Protocol):
    """What ``serve`` needs of a parameter server."""

    ctx: ReplicaContext
    module: nn.Module
    updater: Updater

    def serve_epoch(self) -> ServerEpoch:
        """Answer the workers until all of them end their epoch."""
        ...


def serve(server: Server, plan: Plan) -> None:
    """The server's counterpart of ``train``: the same stations, no data, no forward pass."""
    here.enter("warm-up")
    agreed_fingerprints(server.ctx, server.module, "before the first step")
    with discarded(server.module, server.updater):
        server.serve_epoch()
    agreed_fingerprints(server.ctx, server.module, "after the discarded warm-up")
    for number in range(1, len(plan.epoch_lengths) + 1):
        here.enter("training", number, step=1)
        epoch = server.serve_epoch()
        here.enter("validation", number)
        record = {"server": epoch.model_dump(), "fingerprint": parameter_fingerprint(server.module)}
        server.ctx.gather_records(record)
