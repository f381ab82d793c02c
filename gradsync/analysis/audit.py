"""The audit: which checks run, and which of them a ranking presupposes.

A new check is a function ``(run)`` or ``(runs)`` that returns findings, a line below, and its name in ``CHECKS``. Its
verdict decides: a run with an ``invalid`` finding is not ranked, and nothing is ranked while a check that ranking
presupposes is ``suspect`` or ``invalid``.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.analysis import (
    checks_bandwidth,
    checks_links,
    checks_run,
    checks_samples,
    checks_set,
    checks_time,
    trajectory,
)
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import Run
from gradsync.analysis.message import clauses, msg, printable

RUN_CHECKS = (
    checks_run.finished,
    checks_run.values,
    checks_samples.samples,
    checks_run.summary,
    checks_time.time_coverage,
    checks_time.clocks,
    checks_bandwidth.bandwidth,
    checks_links.links,
    checks_links.lower_bound,
    checks_time.warm_up,
    checks_time.stragglers,
    checks_time.threads,
    checks_run.replicas_agree,
    checks_run.server_updates,
    checks_run.staleness,
    checks_run.resumed,
    checks_run.evaluation,
    checks_time.input_bound,
)
SET_CHECKS = (
    checks_samples.same_samples,
    checks_samples.corrections,
    checks_time.outside_timers,
    checks_set.recipe,
    checks_set.environment,
    checks_set.updates,
    checks_set.evaluation,
    checks_set.start,
)
# The names of all checks, as findings and the catalogue have them.
CHECKS = ("finished", "values", "samples", "same samples", "summary", "phases", "step time", "clocks", "bandwidth",
          "links", "lower bound", "warm-up", "stragglers", "threads", "replicas", "server updates", "staleness",
          "resumed", "evaluation", "input-bound", "recipe", "environment", "updates", "start", "trajectory")
RANKING_PRESUPPOSES = frozenset({"recipe", "environment", "updates", "start", "trajectory", "input-bound",
                                 "same samples"})


def audit(runs: Sequence[Run], failed: Sequence[Run], siblings: Sequence[Run] = ()) -> list[Finding]:
    """All findings: those of failed runs, of each complete run, and of the set where there are two or more.

    ``siblings`` are the runs of other repeats of this comparison, from which the noise of the seed is known.
    """
    found = [failure(run, runs) for run in failed]
    found += [finding for run in runs for check in RUN_CHECKS for finding in check(run)]
    if len(runs) > 1:
        found += [finding for check in SET_CHECKS for finding in check(runs)]
        found += trajectory.trajectory(runs, siblings)
    return found


def failure(run: Run, runs: Sequence[Run]) -> Finding:
    """A failed run takes part in nothing but the list of findings; its subject is its file."""
    reason = printable(run.results.error).rstrip(".") if run.results.error else msg("no reason given")
    others = [each.file for each in runs if each.name == run.name]
    text = clauses([reason, msg("the figures of {name} are of another run, {file}", name=run.name, file=others[0])]
                   ) if others else reason
    return Finding("finished", "invalid", run.file, text, msg("the run failed"),
                   msg("remove the cause and run it again"))


def reasons_to_withhold(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that forbid any ranking."""
    return [finding for finding in findings
            if finding.check in RANKING_PRESUPPOSES and finding.verdict in ("suspect", "invalid")]
