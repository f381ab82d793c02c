"""Repeats of one comparison: the same methods with other seeds, in another order, each repeat audited by itself.

A repeat's runs lie together in ``repeat_1/``, ``repeat_2/`` ... Whatever slows the machine down for a while slows
the neighbours in a repeat alike, so methods are compared by the ratio within each repeat, never across repeats.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gradsync.analysis import figures
from gradsync.analysis.comparison import Comparison, compare
from gradsync.analysis.figures import Spread, spread_of
from gradsync.analysis.finding import Finding, Verdict, worst
from gradsync.analysis.load import BASELINE, METHODS, Assumed, Run, load
from gradsync.analysis.paired import PairedRatio, paired_ratio

FOLDER = re.compile(r"repeat_(\d+)")


@dataclass(frozen=True)
class Repeated:
    """One method over all repeats that have it. ``ratio`` is None for the baseline and without two sound pairs."""

    name: str
    runs: list[Run]
    throughput: Spread | None
    final_loss: Spread | None
    best_accuracy: Spread | None
    ratio: PairedRatio | None
    verdict: Verdict


@dataclass(frozen=True)
class Repeats:
    """The comparisons of all repeats, in order."""

    folders: list[Path]
    comparisons: list[Comparison]

    @cached_property
    def withheld(self) -> list[tuple[Path, Finding]]:
        """Why nothing is ranked: what forbids it in some repeat."""
        return [(folder, finding) for folder, comparison in zip(self.folders, self.comparisons, strict=True)
                for finding in comparison.withheld]

    @cached_property
    def seeds(self) -> list[object]:
        """The seed of each repeat; None where a file does not tell."""
        return [next(((run.results.recipe or {}).get("seed") for run in comparison.runs), None)
                for comparison in self.comparisons]

    @cached_property
    def methods(self) -> list[Repeated]:
        """In the order of presentation."""
        names = list(dict.fromkeys(run.name for comparison in self.comparisons for run in comparison.runs))
        names.sort(key=lambda name: list(METHODS).index(name) if name in METHODS else len(METHODS))
        return [self._method(name) for name in names]

    @cached_property
    def ranking(self) -> list[Repeated]:
        """Methods that are sound in every repeat, fastest first; empty where ranking is withheld."""
        if self.withheld:
            return []
        sound = [method for method in self.methods if method.verdict != "invalid" and method.throughput]
        return sorted(sound, key=lambda method: method.throughput.median, reverse=True)

    def _method(self, name: str) -> Repeated:
        runs = [run for comparison in self.comparisons if (run := comparison.run(name))]
        verdicts = [finding for comparison in self.comparisons for finding in comparison.findings
                    if finding.subject == name]
        return Repeated(
            name, runs, spread_of(map(_speed, runs)), spread_of(map(figures.final_loss, runs)),
            spread_of(map(figures.best_accuracy, runs)), self._ratio(name), worst(verdicts),
        )

    def _ratio(self, name: str) -> PairedRatio | None:
        """Against the baseline of the same repeat, where both are sound and ranking is not withheld."""
        if name == BASELINE or self.withheld:
            return None
        pairs = []
        for comparison in self.comparisons:
            sound = {run.name: speed for run in comparison.rankable if (speed := _speed(run))}
            if name in sound and BASELINE in sound:
                pairs.append((sound[name], sound[BASELINE]))
        return paired_ratio(*zip(*pairs, strict=True)) if pairs else None


def _speed(run: Run) -> float | None:
    spread = figures.throughput(run)
    return spread.median if spread else None


def find_repeats(directory: Path) -> list[Path]:
    """``repeat_1``, ``repeat_2`` ... in order; empty where the directory has results of its own."""
    if any(directory.glob("results_*.json")):
        return []
    found = [(int(match[1]), path) for path in directory.glob("repeat_*")
             if path.is_dir() and (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def compare_repeats(folders: Sequence[Path], assumed: Assumed) -> Repeats:
    """Read and audit each repeat. Raises UsageError as ``load`` does."""
    loaded = [load(folder, assumed) for folder in folders]
    comparisons = []
    for each in loaded:
        others = tuple(run for other in loaded if other is not each for run in other.runs)
        comparisons.append(compare(replace(each, siblings=others)))  # they tell how much a seed matters
    return Repeats(list(folders), comparisons)
