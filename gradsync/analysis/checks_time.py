"""Checks of one run's clocks: what its times cover, what they contain that they should not, who was slow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from gradsync.analysis import figures
from gradsync.analysis.change_point import MIN_STEPS, ChangePoint, change_point
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import BASELINE, SINGLE, Run
from gradsync.analysis.message import Text, enumerated, msg
from gradsync.analysis.words import milliseconds, number, percent
from gradsync.results import TIME_FORMAT, EpochResults

TIME_TOLERANCE = 0.05  # of the timing contract: phases are means over replicas, train_time is of the slowest
INPUT_BOUND = 0.10
WRITTEN_TO = 1.0  # seconds: start and end are cut to whole ones
STRAGGLER = 2.0  # times the median of the others
OWN_WORK = ("data_wait", "forward_backward", "optimizer")
OUTSIDE_TIMERS = 1.25  # smaller batches are less efficient, and an update takes its time


def time_coverage(run: Run) -> list[Finding]:
    """Phases, and step time x steps, each add up to the training time of an epoch within 5%."""
    phases = {epoch.epoch: sum(epoch.phases.values()) / epoch.train_time
              for epoch in run.results.epochs if epoch.phases and epoch.train_time}
    by_step = {epoch.epoch: epoch.avg_batch_time * known / epoch.train_time
               for epoch in run.results.epochs
               if epoch.avg_batch_time is not None and epoch.train_time and (known := _counted_steps(run, epoch))}
    return [
        _coverage(run, "phases", phases, msg("sum of phases"),
                  msg("time outside any phase, or a timer that stopped before the device had finished"),
                  msg("overlapping phases, or time counted twice")),
        _coverage(run, "step time", by_step, msg("step time x steps"),
                  msg("the step time leaves out part of the step, such as the wait for input, or is that of an "
                      "asynchronous timer"),
                  msg("the step time is not of this epoch, or of fewer and longer steps")),
    ]


def _counted_steps(run: Run, epoch: EpochResults) -> float | None:
    """Steps from a source other than the step time itself, which would agree with itself."""
    losses = len(run.results.all_losses) / len(run.results.epochs)
    return epoch.steps if epoch.steps is not None else run.results.steps_per_epoch or losses or None


def _coverage(run: Run, check: str, shares: dict[int, float], what: Text, short: Text, long: Text) -> Finding:
    if not shares:
        return Finding(check, "not known", run.name, msg("{what} is not in the file", what=what))
    epoch, share = max(shares.items(), key=lambda item: abs(item[1] - 1))
    text = msg("{what} is {share} of the training time in epoch {epoch} (worst of {epochs})", what=what,
               share=percent(share), epoch=epoch, epochs=len(shares))
    if abs(share - 1) <= TIME_TOLERANCE:
        return Finding(check, "pass", run.name, text)
    return Finding(check, "suspect", run.name, text, short if share < 1 else long,
                   msg("do not read the time breakdown of this run"))


def outside_timers(runs: Sequence[Run]) -> list[Finding]:
    """Files without phases: what a step spends outside its communication timers is no more than a whole step elsewhere.

    The reference's step contains its communication, so the bound is generous. Per sample of a replica's share,
    since a parameter server's workers share the work among fewer.
    """
    reference = next((run for name in (BASELINE, SINGLE) for run in runs
                      if run.name == name and _per_sample(run, figures.step_time(run))), None)
    found = []
    for run in runs:
        inside = sum(figures.communication_phases(run).values())
        step = figures.step_time(run)
        if reference is None or run is reference or not inside or not step or any(e.phases for e in run.results.epochs):
            continue
        own, whole = _per_sample(run, step - inside), _per_sample(reference, figures.step_time(reference))
        if own is not None and own > OUTSIDE_TIMERS * whole:
            text = msg("a step of {step} ms has {inside} ms inside its communication timers; the rest is {ratio} times "
                       "a whole step of {reference} for the same number of samples", step=milliseconds(step),
                       inside=milliseconds(inside), ratio=number(own / whole, 3), reference=reference.name)
            found.append(Finding("phases", "suspect", run.name, text,
                                 msg("communication timers that stopped before the device had finished, so that its "
                                     "time shows up elsewhere, or a wait for input outside the clock"),
                                 msg("synchronise the device before stopping a timer, or use CUDA events")))
    return found


def _per_sample(run: Run, seconds: float | None) -> float | None:
    total, replicas = figures.global_batch(run), figures.replicas(run)
    return seconds * replicas / total if seconds and total and replicas else None


def clocks(run: Run) -> list[Finding]:
    """From start to end there is room for the training time of all epochs."""
    times = [epoch.train_time for epoch in run.results.epochs if epoch.train_time is not None]
    try:
        start, end = (datetime.strptime(text or "", TIME_FORMAT) for text in (
            run.results.start_time, run.results.end_time))
    except ValueError:
        return [Finding("clocks", "not known", run.name, msg("start or end is not in the file as YYYY-MM-DD HH:MM:SS"))]
    if not times:
        return [Finding("clocks", "not known", run.name, msg("the file holds no training time"))]
    lasted = (end - start).total_seconds()
    text = msg("{total} s of training between start and end, which are {lasted} s apart", total=number(sum(times)),
               lasted=number(lasted))
    if sum(times) <= lasted + WRITTEN_TO:
        return [Finding("clocks", "pass", run.name, text)]
    return [Finding("clocks", "invalid", run.name, text,
                    msg("the training time is a sum over ranks, or start and end are of another run"),
                    msg("measure the wall time of one rank"))]


def input_bound(run: Run) -> list[Finding]:
    """Data wait stays under 10% of the training time; above it, a method's speed is that of its loader."""
    share = figures.phase_share(run, "data_wait")
    if share is None:
        return [Finding("input-bound", "not known", run.name, msg("data wait is not in the file"))]
    text = msg("data wait is {share} of the training time", share=percent(share))
    if share <= INPUT_BOUND:
        return [Finding("input-bound", "pass", run.name, text)]
    return [Finding("input-bound", "suspect", run.name, text,
                    msg("the replicas wait for batches, so a ranking would rank the disk, not the methods"),
                    msg("raise --workers, shrink the images or use a data set in memory"))]


def warm_up(run: Run) -> list[Finding]:
    """The step times keep one level; a slow beginning belongs before the measured part."""
    times = np.array([time for epoch in run.results.epochs for time in epoch.step_times or ()])
    if not len(times):
        return [Finding("warm-up", "not known", run.name, msg("the file holds no times of single steps"))]
    if len(times) < MIN_STEPS:
        text = msg("{steps} steps are too few to tell a warm-up from noise", steps=len(times))
        return [Finding("warm-up", "not known", run.name, text)]
    change = change_point(times)
    if change is None:
        return [Finding("warm-up", "pass", run.name, msg("one level of step times in {steps} steps", steps=len(times)))]
    return [_level_change(run, change, len(times))]


def _level_change(run: Run, change: ChangePoint, steps: int) -> Finding:
    text = msg("steps 1 to {place} take {before} ms, those after it {after} ms (medians of {steps} steps)",
               place=change.place, before=milliseconds(change.before), after=milliseconds(change.after), steps=steps)
    if change.place <= steps / 2 and change.before > change.after:
        return Finding("warm-up", "suspect", run.name, text,
                       msg("a warm-up inside the measured part: kernels chosen or compiled, memory taken, caches cold"),
                       msg("make discarded steps before the clock starts"))
    return Finding("warm-up", "note", run.name, text,
                   msg("another load on the machine, a lower clock rate, or other data from there on"),
                   msg("run again on an idle machine and compare"))


def stragglers(run: Run) -> list[Finding]:
    """No replica's own work takes more than twice the median of the others.

    Its own work: synchronised steps are equally long for all. Where communication hides in the backward pass, only
    the probe's steps without synchronisation tell.
    """
    if (figures.replicas(run) or 1) < 2:
        return []
    own = _own_seconds(run)
    if own is None:
        return [Finding("stragglers", "not known", run.name, msg("the file does not tell each replica's own work"))]
    servers = run.results.num_servers or 0
    found = []
    for replica, seconds in enumerate(own):
        others = statistics.median(own[:replica] + own[replica + 1 :])
        if seconds > STRAGGLER * others > 0:
            text = msg("rank {rank} works {own} ms a step by itself, {ratio} times the median of the others ({others} "
                       "ms)", rank=replica + servers, own=milliseconds(seconds), ratio=number(seconds / others, 3),
                       others=milliseconds(others))
            found.append(Finding("stragglers", "suspect", run.name, text,
                                 msg("that rank's device is slower, shared or starved of data; the others wait for it"),
                                 msg("look at what else runs there, or leave that device out")))
    shown = enumerated([milliseconds(seconds) for seconds in own])
    text = msg("each replica's own work: {times} ms a step", times=shown)
    return found or [Finding("stragglers", "pass", run.name, text)]


def _own_seconds(run: Run) -> list[float] | None:
    """Each replica's seconds per step without the wait for the others; None where it cannot be separated."""
    per_step = []
    for epoch in run.results.epochs:
        replicas, steps = epoch.phases_per_replica, figures.steps(run, epoch)
        if replicas and len(replicas) > 1 and steps and not figures.hides_communication(run):
            per_step.append([sum(phases.get(name, 0.0) for name in OWN_WORK) / steps for phases in replicas])
    if per_step and len({len(row) for row in per_step}) == 1:
        return [float(value) for value in np.median(np.array(per_step), axis=0)]
    local = figures.local_steps(run)
    return local if local and len(local) > 1 else None


def threads(run: Run) -> list[Finding]:
    """Ranks x threads fit the cores of a host."""
    facts = run.results.environment
    if facts is None:
        return [Finding("threads", "not known", run.name, msg("cores and threads are not in the file"))]
    wanted = facts.ranks_per_host * facts.threads_per_rank
    text = msg("{ranks} ranks x {threads} threads on {cores} cores", ranks=facts.ranks_per_host,
               threads=facts.threads_per_rank, cores=facts.cpu_cores)
    if wanted <= facts.cpu_cores:
        return [Finding("threads", "pass", run.name, text)]
    fitting = max(1, facts.cpu_cores // max(1, facts.ranks_per_host))
    return [Finding("threads", "note", run.name, text,
                    msg("ranks take the cores from each other, and a wait for a core looks like communication"),
                    msg("set OMP_NUM_THREADS to {threads}, or start fewer ranks", threads=fitting)
                    if fitting < facts.threads_per_rank else msg("start fewer ranks"))]
