"""The figures of one run, each defined once. ``None`` means not known, never zero."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradsync.analysis.load import SINGLE, Run
from gradsync.results import EpochResults


@dataclass(frozen=True)
class Spread:
    """Median and range of ``n`` repeated measures. One measure has no spread."""

    median: float
    low: float
    high: float
    n: int

    @property
    def width(self) -> float | None:
        return self.high - self.low if self.n > 1 else None


@dataclass(frozen=True)
class Samples:
    """Training samples of one epoch: counted (``low == high``), or bounds inferred from other keys."""

    low: float
    high: float
    source: str
    counted: bool


def spread_of(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


def replicas(run: Run) -> int | None:
    """Ranks that compute gradients; older parameter-server files say ``num_workers``."""
    results = run.results
    serves = run.name.startswith("ps") or "server" in run.name.lower()
    return results.num_replicas or (results.num_workers if serves else None) or results.world_size


def has_peers(run: Run) -> bool:
    """Whether the run had anyone to communicate with."""
    return (run.results.world_size or 1) > 1 or (run.name != SINGLE and (replicas(run) or 2) > 1)


def global_batch(run: Run) -> int | None:
    """Samples of one optimizer step over all replicas."""
    results, count = run.results, replicas(run)
    return results.global_batch_size or (results.batch_size * count if results.batch_size and count else None)


def steps(run: Run, epoch: EpochResults) -> float | None:
    """Optimizer steps of one epoch; where not written, from the step time, the run, or the losses."""
    if epoch.steps is not None:
        return epoch.steps
    if epoch.train_time and epoch.avg_batch_time:
        return round(epoch.train_time / epoch.avg_batch_time)
    return run.results.steps_per_epoch or len(run.results.all_losses) / len(run.results.epochs) or None


def total_steps(run: Run) -> float | None:
    """Optimizer steps of the whole run."""
    if run.results.all_losses:
        return len(run.results.all_losses)
    counts = [steps(run, epoch) for epoch in run.results.epochs]
    return sum(count for count in counts if count) or None


def samples(run: Run, epoch: EpochResults) -> Samples | None:
    """Training samples that all replicas consumed in ``epoch``; the last global batch may be short."""
    if epoch.samples:
        return Samples(epoch.samples, epoch.samples, "epochs[].samples", True)
    count, batch = epoch.steps or run.results.steps_per_epoch, global_batch(run)
    per_epoch = run.results.samples_per_epoch
    if per_epoch and (epoch.steps is None or epoch.steps == run.results.steps_per_epoch):
        return Samples(per_epoch, per_epoch, "samples_per_epoch", True)
    counted = bool(count and run.results.global_batch_size)
    count = count or steps(run, epoch)
    if not count or not batch:
        return None
    source = "steps x global batch" if counted else "steps x batch size x replicas, inferred"
    return Samples((count - 1) * batch + 1, count * batch, source, counted)


def throughput(run: Run) -> Spread | None:
    """Training samples of all replicas per second of training (img/s), as claimed, over the epochs."""
    claimed = spread_of(epoch.train_throughput for epoch in run.results.epochs)
    if claimed or not run.results.summary:
        return claimed
    return spread_of([run.results.summary.avg_train_throughput])


def epoch_time(run: Run) -> Spread | None:
    """Wall time of the training part of an epoch in seconds, over the epochs."""
    measured = spread_of(epoch.train_time for epoch in run.results.epochs)
    if measured or not run.results.summary:
        return measured
    return spread_of([run.results.summary.avg_train_time_per_epoch])


def step_time(run: Run) -> float | None:
    """Median over the epochs of the mean step time, in seconds."""
    times = []
    for epoch in run.results.epochs:
        count = steps(run, epoch)
        inferred = epoch.train_time / count if epoch.train_time and count else None
        times.append(epoch.avg_batch_time if epoch.avg_batch_time is not None else inferred)
    spread = spread_of(times)
    return spread.median if spread else None


def phase_share(run: Run, phase: str) -> float | None:
    """Share of all training time that went into ``phase``, between 0 and 1."""
    timed = [epoch for epoch in run.results.epochs if epoch.phases and phase in epoch.phases and epoch.train_time]
    total = sum(epoch.train_time or 0.0 for epoch in timed)
    return sum((epoch.phases or {})[phase] for epoch in timed) / total if total else None


def exposed_communication(run: Run) -> Spread | None:
    """Step time minus the same step without synchronisation, in seconds: median and quartiles of the probe.

    ``low`` and ``high`` are the quartiles of the paired differences, not their range.
    """
    probe = run.results.probe
    if not probe or probe.exposed_communication is None:
        return None
    middle, rounds = probe.exposed_communication, min(len(probe.step_times), len(probe.local_step_times))
    if rounds > 1:
        pairs = zip(probe.step_times[:rounds], probe.local_step_times[:rounds], strict=True)
        low, high = np.percentile([full - local for full, local in pairs], [25, 75])
        return Spread(middle, min(float(low), middle), max(float(high), middle), rounds)
    half = (probe.exposed_communication_iqr or 0.0) / 2
    return Spread(middle, middle - half, middle + half, probe.rounds)


def communication_phases(run: Run) -> dict[str, float]:
    """Seconds per step of each communication phase that was measured, median over the epochs: pull, all-reduce, push.

    A zero among several replicas is a timer that never ran (DDP communicates inside its backward pass), so
    it counts as not measured.
    """
    keys = {"pull": "avg_comm_time_pull", "all-reduce": "avg_comm_time", "push": "avg_comm_time_push"}
    found: dict[str, float] = {}
    for phase, key in keys.items():
        known = [value for epoch in run.results.epochs if (value := getattr(epoch, key)) is not None]
        if known and any(known):
            found[phase] = statistics.median(known)
    if "pull" in found or "push" in found:
        found.pop("all-reduce", None)  # some files hold pull + push there once more
    return found


def final_loss(run: Run) -> float | None:
    """Mean training loss of the last epoch."""
    if run.results.epochs and run.results.epochs[-1].train_loss is not None:
        return run.results.epochs[-1].train_loss
    losses = run.results.all_losses
    count = max(1, len(losses) // max(1, len(run.results.epochs)))
    return float(np.mean(losses[-count:])) if losses else None


def best_accuracy(run: Run) -> float | None:
    """Highest validation accuracy of any epoch, in per cent."""
    known = [epoch.val_accuracy for epoch in run.results.epochs if epoch.val_accuracy is not None]
    if known:
        return max(known)
    summary = run.results.summary
    return summary.best_val_accuracy if summary and summary.best_val_accuracy is not None else run.results.best_accuracy


def accuracy_is_meaningful(run: Run) -> bool:
    return run.results.dataset is None or run.results.dataset.accuracy_is_meaningful
