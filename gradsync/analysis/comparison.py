"""The comparison: which runs are ranked, in which order, and whether their differences show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gradsync.analysis import figures
from gradsync.analysis.audit import audit, reasons_to_withhold
from gradsync.analysis.finding import Finding, Verdict, worst
from gradsync.analysis.load import BASELINE, SINGLE, Loaded, Run


@dataclass(frozen=True)
class Speedup:
    """Throughput relative to the baseline in the same table.

    ``shown`` tells whether the difference is larger than the wider of the two ranges over the epochs;
    ``None`` where a run of one epoch has no range.
    """

    ratio: float
    shown: bool | None


@dataclass(frozen=True)
class Comparison:
    loaded: Loaded
    findings: list[Finding]

    @property
    def runs(self) -> list[Run]:
        return self.loaded.runs

    def run(self, name: str) -> Run | None:
        return next((run for run in self.runs if run.name == name), None)

    def verdict(self, run: Run) -> Verdict:
        """The worst finding about this run."""
        return worst(finding for finding in self.findings if finding.subject == run.name)

    @cached_property
    def withheld(self) -> list[Finding]:
        """Why nothing is ranked; empty where a ranking is allowed."""
        return reasons_to_withhold(self.findings)

    @cached_property
    def rankable(self) -> list[Run]:
        """Runs without an invalid finding and with a known throughput, fastest first."""
        speeds = {run.name: figures.throughput(run) for run in self.runs if self.verdict(run) != "invalid"}
        known = [run for run in self.runs if (spread := speeds.get(run.name)) and spread.median > 0]
        return sorted(known, key=lambda run: speeds[run.name].median, reverse=True)

    @property
    def ranking(self) -> list[Run]:
        return [] if self.withheld else self.rankable

    def speedup(self, run: Run) -> Speedup | None:
        """``run`` against the baseline; None without a sound baseline or where ranking is withheld."""
        baseline = self.run(BASELINE)
        if baseline is None or run not in self.ranking or baseline not in self.ranking:
            return None
        own, other = figures.throughput(run), figures.throughput(baseline)
        return Speedup(own.median / other.median, None if run is baseline else difference_shows(own, other))

    def scaling_efficiency(self, run: Run) -> float | None:
        """throughput(N replicas) / (N x throughput of the single device), between 0 and about 1."""
        single, count = self.run(SINGLE), figures.replicas(run)
        if single is None or run is single or not count or run not in self.ranking or single not in self.ranking:
            return None
        return figures.throughput(run).median / (count * figures.throughput(single).median)


def compare(loaded: Loaded) -> Comparison:
    return Comparison(loaded, audit(loaded.runs, loaded.failed, loaded.siblings))


def difference_shows(first: figures.Spread, second: figures.Spread) -> bool | None:
    """Whether the medians differ by more than the wider range of the two; None where either has no range."""
    if first.width is None or second.width is None:
        return None
    return abs(first.median - second.median) > max(first.width, second.width)


def groups_without_difference(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs, fastest first, in groups within which no two runs show a difference.

    One run of unsteady speed therefore does not put the slowest on a level with the fastest.
    """
    groups: list[list[Run]] = []
    for run in runs:
        spread = figures.throughput(run)
        if groups and all(difference_shows(figures.throughput(other), spread) is not True for other in groups[-1]):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups
