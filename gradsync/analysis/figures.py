"""The figures of one run, each defined once. ``None`` means not known, never zero."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradsync.analysis.gradient_sizes import known_gradient_bytes
from gradsync.analysis.load import METHODS, SINGLE, Run
from gradsync.analysis.message import Text, msg
from gradsync.results import EpochResults

NOT_OF_THE_RECIPE = frozenset({"batch_size", "global_batch_size"})
USUAL_CLASSES = (2, 10, 100, 200, 1000)  # of data sets that older files do not name


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
    source: Text
    counted: bool

    def nearest(self, claimed: float) -> float:
        return min(max(claimed, self.low), self.high)


def spread_of(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


def serves(run: Run) -> bool:
    """Whether a rank of this run is a parameter server, by its fields or, in older files, by its name."""
    if run.results.num_servers is not None:
        return run.results.num_servers > 0
    return run.name.lower().startswith("ps") or "server" in run.name.lower()


def replicas(run: Run) -> int | None:
    """Ranks that compute gradients; an older parameter-server file without ``num_workers`` does not tell."""
    results = run.results
    if results.num_replicas:
        return results.num_replicas
    return results.num_workers if serves(run) else results.world_size


def is_synchronous(run: Run) -> bool | None:
    """Whether every update uses the gradients of all replicas at the same parameters."""
    if run.results.synchronous is not None:
        return run.results.synchronous
    if "async" in run.name.lower():
        return False
    return True if run.name in METHODS else None


def has_peers(run: Run) -> bool:
    """Whether the run had anyone to communicate with."""
    return (run.results.world_size or 1) > 1 or (run.name != SINGLE and (replicas(run) or 2) > 1)


def global_batch(run: Run) -> int | None:
    """Samples of one optimizer step over all replicas."""
    results, count = run.results, replicas(run)
    return results.global_batch_size or (results.batch_size * count if results.batch_size and count else None)


def steps(run: Run, epoch: EpochResults) -> float | None:
    """Optimizer steps of one epoch; where not written, of the run, or from the step time, or from the losses."""
    if epoch.steps is not None:
        return epoch.steps
    return next(iter(_inferred_steps(run, epoch)), None)


def _inferred_steps(run: Run, epoch: EpochResults) -> list[float]:
    found = [run.results.steps_per_epoch] if run.results.steps_per_epoch else []
    if epoch.train_time and epoch.avg_batch_time:
        found.append(round(epoch.train_time / epoch.avg_batch_time))
    if run.results.all_losses:
        found.append(len(run.results.all_losses) / len(run.results.epochs))
    return found


def total_steps(run: Run) -> float | None:
    """Optimizer steps of the whole run."""
    if run.results.all_losses:
        return len(run.results.all_losses)
    counts = [steps(run, epoch) for epoch in run.results.epochs]
    return sum(count for count in counts if count) or None


def samples(run: Run, epoch: EpochResults) -> Samples | None:
    """Training samples that all replicas consumed in ``epoch``; the last global batch may be short."""
    if epoch.samples:
        return Samples(epoch.samples, epoch.samples, msg("epochs[].samples"), True)
    per_epoch, batch = run.results.samples_per_epoch, global_batch(run)
    if per_epoch and (epoch.steps is None or epoch.steps == run.results.steps_per_epoch):
        return Samples(per_epoch, per_epoch, msg("samples_per_epoch"), True)
    if batch is None:
        return None
    if (count := epoch.steps or run.results.steps_per_epoch) and run.results.global_batch_size:
        return Samples((count - 1) * batch + 1, count * batch, msg("steps x global batch"), True)
    counts = [count] if count else _inferred_steps(run, epoch)  # where two sources differ, either may be right
    source = msg("steps x batch size x replicas, inferred")
    return Samples((min(counts) - 1) * batch + 1, max(counts) * batch, source, False) if counts else None


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


def recipe(run: Run) -> dict[str, Any] | None:
    """The recipe without what counts per replica or is a check of its own, or is only written down twice."""
    known = run.results.recipe
    return None if known is None else {key: value for key, value in known.items() if key not in NOT_OF_THE_RECIPE}


def same_recipe(run: Run, other: Run) -> bool | None:
    """Whether two runs trained alike; None where a file does not tell."""
    recipes = [recipe(each) for each in (run, other)]
    return recipes[0] == recipes[1] if None not in recipes else None


def is_repeat(run: Run, other: Run) -> bool:
    """The same method and recipe under another seed."""
    if run.results.method != other.results.method or not run.results.recipe or not other.results.recipe:
        return False
    keys = run.results.recipe.keys() | other.results.recipe.keys()
    return {key for key in keys if run.results.recipe.get(key) != other.results.recipe.get(key)} == {"seed"}


def without_repeats(runs: Sequence[Run]) -> list[Run]:
    """The first run of each method and recipe: those under other seeds only tell how much a seed matters."""
    kept: list[Run] = []
    for run in runs:
        if not any(is_repeat(run, other) for other in kept):
            kept.append(run)
    return kept


def chance_loss(run: Run) -> tuple[int, float] | None:
    """Classes C and ln C, where the first loss is near it, as that of an untrained classifier is."""
    if not run.results.all_losses:
        return None
    first, data = run.results.all_losses[0], run.results.dataset
    if data is not None:
        candidates, tolerance = (data.num_classes,), 0.3
    else:
        candidates, tolerance = USUAL_CLASSES, 0.12
    nearest = min((classes for classes in candidates if classes > 1),
                  key=lambda classes: abs(first - math.log(classes)), default=None)
    close = nearest is not None and abs(first / math.log(nearest) - 1) <= tolerance
    return (nearest, math.log(nearest)) if close else None


def hides_communication(run: Run) -> bool:
    """Whether communication happens where no phase shows it (DDP: inside the backward pass)."""
    phases = {name for epoch in run.results.epochs for name, seconds in (epoch.phases or {}).items() if seconds}
    return has_peers(run) and not phases & {"pull", "all_reduce", "push"}


def local_steps(run: Run) -> list[float] | None:
    """Each replica's median step without synchronisation, from the probe, in seconds."""
    known = getattr(run.results.probe, "local_step_per_replica", None)
    return [float(value) for value in known] if isinstance(known, list) else None


def gradient_bytes(run: Run) -> tuple[float, Text] | None:
    """Bytes of one full set of gradients, and who says so."""
    results = run.results
    if results.model is not None:
        return results.model.gradient_bytes, msg("from the file")
    if run.assumed.gradient_bytes is not None:
        return run.assumed.gradient_bytes, msg("from --gradient-mb")
    named = {**(results.recipe or {}), **(results.model_extra or {})}
    for key in ("model", "model_name", "arch", "architecture"):
        if isinstance(named.get(key), str) and (size := known_gradient_bytes(named[key])):
            return size, msg("float32 gradients of {model}", model=named[key])
    return None


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
