"""The audit: which checks run, and which of them a ranking presupposes.

A new check is a function in ``checks_run`` or ``checks_set`` and a line below. Its verdict decides: a run with
an ``invalid`` finding is not ranked, and nothing is ranked while a check that ranking presupposes is
``suspect`` or ``invalid``.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradsync.analysis import checks_run, checks_set
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import Run
from gradsync.analysis.words import printable

RUN_CHECKS = (
    checks_run.finished,
    checks_run.samples,
    checks_run.summary,
    checks_run.time_coverage,
    checks_run.replicas_agree,
    checks_run.server_updates,
    checks_run.input_bound,
)
SET_CHECKS = (
    checks_set.recipe,
    checks_set.environment,
    checks_set.updates,
    checks_set.start,
    checks_set.trajectory,
)
RANKING_PRESUPPOSES = frozenset({"recipe", "environment", "updates", "start", "trajectory", "input-bound"})


def audit(runs: Sequence[Run], failed: Sequence[Run]) -> list[Finding]:
    """All findings: those of failed runs, of each complete run, and of the set where there are two or more."""
    found = [failure(run, runs) for run in failed]
    found += [finding for run in runs for check in RUN_CHECKS for finding in check(run)]
    if len(runs) > 1:
        found += [finding for check in SET_CHECKS for finding in check(runs)]
    return found


def failure(run: Run, runs: Sequence[Run]) -> Finding:
    """A failed run takes part in nothing but the list of findings; its subject is its file."""
    reason = printable(run.results.error or "no reason given").rstrip(".")
    others = [each.file for each in runs if each.name == run.name]
    text = f"{reason}; the figures of {run.name} are of another run, {others[0]}" if others else reason
    return Finding("finished", "invalid", run.file, text, "the run failed", "remove the cause and run it again")


def reasons_to_withhold(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that forbid any ranking."""
    return [finding for finding in findings
            if finding.check in RANKING_PRESUPPOSES and finding.verdict in ("suspect", "invalid")]
