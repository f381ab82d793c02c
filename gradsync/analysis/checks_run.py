"""Checks that one run's file can pass or fail by itself. Each is a pure function ``(run) -> list[Finding]``."""

from __future__ import annotations

from gradsync.analysis import figures
from gradsync.analysis.finding import Finding, Verdict
from gradsync.analysis.load import Run
from gradsync.analysis.words import number, percent
from gradsync.results import EpochResults, Summary, summarise

SAMPLES_TOLERANCE = 0.02  # rounding in older files; ours agree to the last digit
TIME_TOLERANCE = 0.05  # of the timing contract: phases are means over replicas, train_time is of the slowest
INPUT_BOUND = 0.10


def finished(run: Run) -> list[Finding]:
    """A complete run holds at least one epoch."""
    if run.results.epochs:
        return [Finding("finished", "pass", run.name, f"{len(run.results.epochs)} epochs")]
    text = f"{run.file} holds no epoch"
    return [Finding("finished", "invalid", run.name, text, "the run ended early", "run it again")]


def samples(run: Run) -> list[Finding]:
    """Throughput x training time = samples consumed, in every epoch, within 2%."""
    worst_ratio, worst_text, counted = 1.0, "", True
    known = 0
    for epoch in run.results.epochs:
        consumed = figures.samples(run, epoch)
        if not consumed or not epoch.train_time or epoch.train_throughput is None:
            continue
        known += 1
        claimed = epoch.train_throughput * epoch.train_time
        nearest = min(max(claimed, consumed.low), consumed.high)
        ratio = claimed / nearest if nearest else 1.0
        if abs(ratio - 1) > abs(worst_ratio - 1):
            worst_ratio, counted = ratio, consumed.counted
            worst_text = (
                f"epoch {epoch.epoch}: {number(epoch.train_throughput)} img/s x {number(epoch.train_time)} s "
                f"= {number(claimed)} samples, {ratio:.3f} times the {number(nearest)} consumed ({consumed.source}); "
                f"corrected throughput {number(nearest / epoch.train_time)} img/s"
            )
    if not known:
        return [Finding("samples", "not known", run.name, "throughput, time or number of samples is not in the file")]
    if abs(worst_ratio - 1) <= SAMPLES_TOLERANCE:
        text = f"throughput x time = samples in {known} of {len(run.results.epochs)} epochs (ratio {worst_ratio:.3f})"
        return [Finding("samples", "pass", run.name, text)]
    cause = _miscount(run, worst_ratio)
    verdict: Verdict = "invalid" if counted or cause else "suspect"
    return [Finding("samples", verdict, run.name, worst_text, cause or "throughput and time are not of the same work",
                    "compute throughput as samples of all replicas / wall time, then run again")]


def _miscount(run: Run, ratio: float) -> str:
    """The known mistakes that multiply a throughput by ``ratio``."""
    world, count = run.results.world_size, figures.replicas(run)
    if not count:
        return ""
    servers = (world if world and world > count else count + 1) / count
    mistakes = {
        servers: "counted the server as a worker",
        servers * count: "multiplied by the number of ranks, the server among them, what was already a total",
        float(count): "multiplied by the number of replicas what was already a total",
        1 / count: "counted the samples of one replica only",
    }
    if count == 1 and (world or 1) == 1:
        return ""
    return next((text for factor, text in mistakes.items() if factor != 1 and _near(ratio, factor)), "")


def _near(ratio: float, factor: float) -> bool:
    return abs(ratio / factor - 1) <= SAMPLES_TOLERANCE


def summary(run: Run) -> list[Finding]:
    """The summary repeats what the epochs say, within 2%."""
    if run.results.summary is None:
        return [Finding("summary", "not known", run.name, "the file holds no summary")]
    claimed, found = run.results.summary, summarise(run.results.epochs)
    pairs = {key: (getattr(claimed, key), getattr(found, key)) for key in Summary.model_fields}
    known = {key: pair for key, pair in pairs.items() if pair[0] is not None and pair[1] is not None}
    if not known:
        return [Finding("summary", "not known", run.name, "summary and epochs hold no figure in common")]
    wrong = [f"{key} {number(said)}, from the epochs {number(found)}" for key, (said, found) in known.items()
             if abs(said - found) > SAMPLES_TOLERANCE * max(abs(said), abs(found))]
    if wrong:
        return [Finding("summary", "suspect", run.name, "; ".join(wrong), "the summary was computed from other figures",
                        "trust the epochs; this analysis uses only them")]
    return [Finding("summary", "pass", run.name, f"{len(known)} figures agree with the epochs")]


def time_coverage(run: Run) -> list[Finding]:
    """Phases, and step time x steps, each add up to the training time of an epoch within 5%."""
    phases = {epoch.epoch: sum(epoch.phases.values()) / epoch.train_time
              for epoch in run.results.epochs if epoch.phases and epoch.train_time}
    by_step = {epoch.epoch: epoch.avg_batch_time * count / epoch.train_time
               for epoch in run.results.epochs
               if epoch.avg_batch_time is not None and epoch.train_time and (count := _counted_steps(run, epoch))}
    return [
        _coverage(run, "phases", phases, "sum of phases",
                  "time outside any phase, or a timer that stopped before the device had finished",
                  "overlapping phases, or time counted twice"),
        _coverage(run, "step time", by_step, "step time x steps", "the step time leaves out part of the step",
                  "the step time is not of this epoch, or of fewer and longer steps"),
    ]


def _counted_steps(run: Run, epoch: EpochResults) -> float | None:
    """Steps from a source other than the step time itself, which would agree with itself."""
    losses = len(run.results.all_losses) / len(run.results.epochs)
    return epoch.steps if epoch.steps is not None else run.results.steps_per_epoch or losses or None


def _coverage(run: Run, check: str, shares: dict[int, float], what: str, short: str, long: str) -> Finding:
    if not shares:
        return Finding(check, "not known", run.name, f"{what} is not in the file")
    epoch, share = max(shares.items(), key=lambda item: abs(item[1] - 1))
    text = f"{what} is {percent(share)} of the training time in epoch {epoch} (worst of {len(shares)})"
    if abs(share - 1) <= TIME_TOLERANCE:
        return Finding(check, "pass", run.name, text)
    return Finding(check, "suspect", run.name, text, short if share < 1 else long,
                   "do not read the time breakdown of this run")


def replicas_agree(run: Run) -> list[Finding]:
    """All replicas hold the same parameters before step 1 and after each epoch."""
    stages = {"before step 1": run.results.initial_fingerprints}
    stages |= {f"after epoch {epoch.epoch}": epoch.fingerprints for epoch in run.results.epochs}
    known = {stage: prints for stage, prints in stages.items() if prints}
    if not known:
        return [Finding("replicas", "not known", run.name, "the file holds no fingerprints of the parameters")]
    for stage, prints in known.items():
        if len(set(prints)) > 1:
            text = f"{len(set(prints))} different sets of parameters on {len(prints)} replicas {stage}"
            return [Finding("replicas", "invalid", run.name, text, "the replicas do not train one model",
                            "broadcast the start, and apply the same averaged gradient everywhere")]
    return [Finding("replicas", "pass", run.name, f"parameters equal on all replicas, checked {len(known)} times")]


def server_updates(run: Run) -> list[Finding]:
    """A synchronous parameter server updates once a step, not once a push."""
    known = [(epoch, epoch.server.updates, epoch.steps) for epoch in run.results.epochs
             if epoch.server and epoch.steps is not None]
    wrong = [f"epoch {epoch.epoch}: {updates} updates in {count} steps" for epoch, updates, count in known
             if updates != count]
    if wrong:
        return [Finding("server updates", "invalid", run.name, "; ".join(wrong[:3]),
                        "the server updates for each push instead of each global batch",
                        "average the gradients of all workers, then update once")]
    return [Finding("server updates", "pass", run.name, "one update a step")] if known else []


def input_bound(run: Run) -> list[Finding]:
    """Data wait stays under 10% of the training time; above it, a method's speed is that of its loader."""
    share = figures.phase_share(run, "data_wait")
    if share is None:
        return [Finding("input-bound", "not known", run.name, "data wait is not in the file")]
    text = f"data wait is {percent(share)} of the training time"
    if share <= INPUT_BOUND:
        return [Finding("input-bound", "pass", run.name, text)]
    return [Finding("input-bound", "suspect", run.name, text, "the replicas wait for batches, whatever the method",
                    "raise --workers, shrink the images or use a data set in memory")]
