"""The speed-up study: the single device and each method at several numbers of ranks, audited as a whole.

The runs at N ranks lie together in ``ranks_N/`` and are a comparison of their own, with its own audit and report; the
single device lies in ``ranks_1/``. Repeats of a study are ``repeat_K/ranks_N/``. Speed-ups are ratios within a repeat,
because what slows a machine down for a while slows neighbours alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gradsync.analysis import figures
from gradsync.analysis.checks_scaling import (
    Rule,
    batch_rule,
    excused,
    failure,
    forbidding,
    oversubscribed,
    study_checks,
    superlinear,
)
from gradsync.analysis.comparison import Comparison, compare
from gradsync.analysis.figures import Spread, spread_of
from gradsync.analysis.finding import SEVERITY, Finding, Verdict, worst
from gradsync.analysis.load import METHODS, SINGLE, Assumed, Run, load
from gradsync.analysis.message import Text, msg
from gradsync.analysis.repeats import FOLDER as REPEAT
from gradsync.analysis.repeats import find_repeats
from gradsync.analysis.step_parts import Lost, StepParts, lost, median_parts, step_parts

FOLDER = re.compile(r"ranks_([1-9]\d*)")


@dataclass(frozen=True)
class Point:
    """What was run at one number of ranks in one repeat."""

    folder: Path
    ranks: int
    comparison: Comparison

    @property
    def place(self) -> str:
        """``ranks_2``, or ``repeat_1/ranks_2``."""
        repeat = self.folder.parent.name
        return f"{repeat}/{self.folder.name}" if REPEAT.fullmatch(repeat) else self.folder.name


@dataclass(frozen=True)
class Scaled:
    """One method at one number of ranks, over the repeats that have it; ``absent`` says, in short, why none has.

    ``speedup``: throughput / throughput of the single device in the same repeat. None where it is not known, or where
    the audit objects to either run.
    """

    name: str
    ranks: int
    runs: list[Run]
    speedup: Spread | None
    verdict: Verdict
    absent: Text = ""

    @property
    def label(self) -> Text:
        return msg("{name}, ranks: {ranks}", name=self.name, ranks=self.ranks)

    @property
    def replicas(self) -> int | None:
        return figures.replicas(self.runs[0]) if self.runs else None

    @property
    def throughput(self) -> Spread | None:
        """img/s over all replicas."""
        return spread_of(map(_speed, self.runs))

    @property
    def total_time(self) -> Spread | None:
        """Seconds of training in all epochs of a run, evaluation excluded."""
        return spread_of(_total_time(run) for run in self.runs)

    @property
    def step_time(self) -> Spread | None:
        """Seconds: the average batch time."""
        return spread_of(map(figures.step_time, self.runs))

    @property
    def efficiency(self) -> Spread | None:
        """throughput / (replicas x throughput of the single device)."""
        return _divided(self.speedup, self.replicas)

    @property
    def efficiency_per_rank(self) -> Spread | None:
        """The same for every rank that was started: servers take hardware, too."""
        return _divided(self.speedup, self.ranks)

    @cached_property
    def parts(self) -> StepParts | None:
        return median_parts([parts for run in self.runs if (parts := step_parts(run))])


@dataclass(frozen=True)
class Study:
    """All repeats, each a list of points with ascending numbers of ranks."""

    repeats: list[list[Point]]

    @property
    def points(self) -> Iterator[Point]:
        return (point for points in self.repeats for point in points)

    @cached_property
    def rule(self) -> Rule:
        """How the batch follows the replicas."""
        rules = {batch_rule(_runs(points)) for points in self.repeats}
        return rules.pop() if len(rules) == 1 else "neither"

    @cached_property
    def objections(self) -> list[Finding]:
        """What the study as a whole, and not a run of it, is found to be; each finding once."""
        return list(dict.fromkeys(finding for points in self.repeats for finding in study_checks(
            [(point.ranks, point.comparison.runs) for point in points])))

    @cached_property
    def withheld(self) -> list[tuple[str, Finding]]:
        """Why no speed-up is given, and where; empty where they may be."""
        runs = [run for point in self.points for run in point.comparison.runs]
        allowed = excused(self.rule, runs)
        return [("", finding) for finding in forbidding(self.objections)] + [
            (point.place, finding) for point in self.points for finding in point.comparison.withheld
            if finding.check not in allowed]

    @cached_property
    def findings(self) -> list[Finding]:
        """Of the study as a whole and of its rows."""
        failures = [failure(run.results.error, row.label)
                    for row in self.rows for run in self._failed(row.name, row.ranks)]
        return [*self.objections, *failures, *(
            finding for row in self.rows for check in (superlinear, oversubscribed) for finding in check(row))]

    @cached_property
    def rows(self) -> list[Scaled]:
        """The single device, then method by method with ascending ranks, absent ones included."""
        names = dict.fromkeys(run.name for point in self.points
                              for run in (*point.comparison.runs, *point.comparison.loaded.failed))
        order = sorted(names, key=lambda name: (name != SINGLE, list(METHODS).index(name) if name in METHODS
                                                else len(METHODS)))
        counts = sorted({point.ranks for point in self.points})
        methods = [name for name in order if name != SINGLE]
        # Where only the single device was to run on one rank, the other methods are not missing there.
        compared = [ranks for ranks in counts if any(
            run.name != SINGLE for point in self.points if point.ranks == ranks
            for run in (*point.comparison.runs, *point.comparison.loaded.failed))]
        single = [self._row(SINGLE, 1)] if SINGLE in names else []
        return single + [self._row(name, ranks) for name in methods for ranks in compared]

    @property
    def single(self) -> Scaled | None:
        return next((row for row in self.rows if row.name == SINGLE and row.runs), None)

    def verdict(self, row: Scaled) -> Verdict:
        """The worst finding about this row, in any repeat."""
        about = worst(finding for finding in self.findings if finding.subject == row.label)
        return max(row.verdict, about, key=SEVERITY.index)

    def lost(self, row: Scaled) -> Lost | None:
        """Where its efficiency went; None where it has none, or nothing to compare with."""
        if row.speedup is None or self.single is None or not row.parts or not self.single.parts or not row.replicas:
            return None
        batches = [figures.global_batch(scaled.runs[0]) for scaled in (row, self.single)]
        if None in batches:
            return None
        return lost(row.parts, self.single.parts, batches[0] / batches[1] / row.replicas,
                    row.efficiency.median)

    def _row(self, name: str, ranks: int) -> Scaled:
        runs, ratios, findings = [], [], []
        for points in self.repeats:
            here = next((point.comparison for point in points if point.ranks == ranks), None)
            run = here.run(name) if here else None
            if here is None or run is None:
                continue
            runs.append(run)
            findings += [finding for finding in here.findings if finding.subject == name]
            reference = _sound_speed(points, 1, SINGLE)
            speed = _sound_speed(points, ranks, name)
            if reference and speed and not self.withheld:
                ratios.append(speed / reference)
        return Scaled(name, ranks, runs, spread_of(ratios), worst(findings), "" if runs else self._absence(name, ranks))

    def _absence(self, name: str, ranks: int) -> Text:
        if self._failed(name, ranks):
            return msg("failed")
        servers = max((run.results.num_servers or 0 for point in self.points for run in point.comparison.runs
                       if run.name == name), default=0)
        if servers >= ranks:
            return msg("needs {count} ranks", count=servers + 1)
        return msg("no results file")

    def _failed(self, name: str, ranks: int) -> list[Run]:
        return [run for point in self.points if point.ranks == ranks for run in point.comparison.loaded.failed
                if run.name == name]


def find_study(directory: Path) -> list[list[Path]]:
    """The folders ``ranks_N`` of each repeat, ascending; empty where the directory holds anything but a study."""
    if any(directory.glob("results_*.json")):
        return []
    found = []
    for repeat in find_repeats(directory) or [directory]:
        places = [(int(match[1]), path) for path in repeat.glob("ranks_*")
                  if path.is_dir() and (match := FOLDER.fullmatch(path.name))]
        if places:
            found.append([path for _, path in sorted(places)])
    return found


def compare_study(repeats: Sequence[Sequence[Path]], assumed: Assumed) -> Study:
    """Read and audit each point. Raises UsageError as ``load`` does."""
    return Study([[Point(folder, int(FOLDER.fullmatch(folder.name)[1]), compare(load(folder, assumed)))
                   for folder in folders] for folders in repeats])


def _runs(points: Sequence[Point]) -> list[Run]:
    return [run for point in points for run in point.comparison.runs]


def _speed(run: Run) -> float | None:
    spread = figures.throughput(run)
    return spread.median if spread else None


def _sound_speed(points: Sequence[Point], ranks: int, name: str) -> float | None:
    """Throughput of a run to which the audit does not object."""
    here = next((point.comparison for point in points if point.ranks == ranks), None)
    run = here.run(name) if here else None
    return _speed(run) if here and run and here.verdict(run) != "invalid" else None


def _total_time(run: Run) -> float | None:
    known = [epoch.train_time for epoch in run.results.epochs]
    return None if None in known or not known else sum(known)


def _divided(spread: Spread | None, count: int | None) -> Spread | None:
    if spread is None or not count:
        return None
    return Spread(spread.median / count, spread.low / count, spread.high / count, spread.n)
