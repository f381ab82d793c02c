"""The conservation of samples: throughput x time = samples consumed, in each run and across runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gradsync.analysis import figures
from gradsync.analysis.finding import COMPARISON, Finding, Verdict
from gradsync.analysis.load import BASELINE, Run
from gradsync.analysis.message import Text, clauses, msg
from gradsync.analysis.words import number, percent

TOLERANCE = 0.02  # rounding in older files; ours agree to the last digit


@dataclass(frozen=True)
class Claim:
    """What one epoch claims to have consumed, and what it can have consumed."""

    epoch: int
    throughput: float
    time: float
    consumed: figures.Samples

    @property
    def claimed(self) -> float:
        return self.throughput * self.time

    @property
    def nearest(self) -> float:
        return self.consumed.nearest(self.claimed)

    @property
    def ratio(self) -> float:
        return self.claimed / self.nearest


def claims(run: Run) -> list[Claim]:
    return [Claim(epoch.epoch, epoch.train_throughput, epoch.train_time, consumed) for epoch in run.results.epochs
            if epoch.train_time and epoch.train_throughput is not None and (consumed := figures.samples(run, epoch))]


def samples(run: Run) -> list[Finding]:
    """Throughput x training time = samples consumed, in every epoch, within 2%."""
    known = claims(run)
    if not known:
        text = msg("throughput, time or number of samples is not in the file")
        return [Finding("samples", "not known", run.name, text)]
    worst = max(known, key=lambda claim: abs(claim.ratio - 1))
    if abs(worst.ratio - 1) <= TOLERANCE:
        text = msg("throughput x time = samples in {known} of {total} epochs (ratio {ratio})", known=len(known),
                   total=len(run.results.epochs), ratio=f"{worst.ratio:.3f}")
        return [Finding("samples", "pass", run.name, text)]
    factor, cause = _miscount(run, worst)
    consumed = worst.claimed / factor if cause else worst.nearest
    text = msg("epoch {epoch}: {throughput} img/s x {time} s = {claimed} samples, {ratio} times the {consumed} "
               "consumed ({source}); corrected throughput {corrected} img/s", epoch=worst.epoch,
               throughput=number(worst.throughput), time=number(worst.time), claimed=number(worst.claimed),
               ratio=f"{worst.claimed / consumed:.3f}", consumed=number(consumed), source=worst.consumed.source,
               corrected=number(consumed / worst.time))
    verdict: Verdict = "invalid" if worst.consumed.counted or cause else "suspect"
    return [Finding("samples", verdict, run.name, text,
                    cause or msg("throughput and time are not of the same work"),
                    msg("compute throughput as samples of all replicas / wall time, then run again"))]


def _miscount(run: Run, claim: Claim) -> tuple[float, Text]:
    """The known mistake that explains the claim, and the factor by which it multiplies a throughput; else 1 and ""."""
    low, high = ((1 - TOLERANCE) * claim.consumed.low, (1 + TOLERANCE) * claim.consumed.high)
    return next(((factor, text) for factor, text in _mistakes(run).items() if low <= claim.claimed / factor <= high),
                (1.0, ""))


def _mistakes(run: Run) -> dict[float, Text]:
    world, count = run.results.world_size, figures.replicas(run)
    if not count and figures.serves(run) and world and world > 1:
        count = world - 1
    if not count or (count == 1 and (world or 1) == 1):
        return {}
    known = {
        float(count): msg("multiplied by the number of replicas what was already a total"),
        1 / count: msg("counted the samples of one replica only"),
    }
    if figures.serves(run):
        ranks = max(world or 0, count + 1)
        known |= {
            ranks / count: msg("counted the server as a worker"),
            float(ranks): msg("multiplied by the number of ranks, the server among them, what was already a total"),
        }
    return {factor: text for factor, text in known.items() if factor != 1}


def _near(ratio: float, factor: float) -> bool:
    return abs(ratio / factor - 1) <= TOLERANCE


def same_samples(runs: Sequence[Run]) -> list[Finding]:
    """An epoch of every run consumes equally many samples, up to one global batch that is dropped or padded."""
    known = {run.name: count for run in runs if (count := _per_epoch(run))}
    reference = next((run for run in runs if run.name in known), None)
    if reference is None or len(known) < 2:
        text = msg("fewer than two files tell how many samples an epoch consumes")
        return [Finding("same samples", "not known", COMPARISON, text)]
    expected = known[reference.name]
    found = [_other_samples(run, reference, known[run.name], expected) for run in runs
             if run.name in known and abs(known[run.name] - expected) > _slack(run, reference, expected)]
    text = msg("{count} samples in an epoch of each of {runs} runs", count=number(expected), runs=len(known))
    return found or [Finding("same samples", "pass", COMPARISON, text)]


def _per_epoch(run: Run) -> float | None:
    """Samples of a median epoch: counted, else the possible number nearest to the claim, else the claim."""
    counted = [consumed.low for epoch in run.results.epochs
               if (consumed := figures.samples(run, epoch)) and consumed.low == consumed.high]
    inferred = [claim.nearest for claim in claims(run)]
    claimed = [epoch.train_throughput * epoch.train_time for epoch in run.results.epochs
               if epoch.train_throughput and epoch.train_time]
    best = counted or inferred or claimed
    return statistics.median(best) if best else None


def _slack(run: Run, reference: Run, expected: float) -> float:
    batches = [figures.global_batch(each) or 0 for each in (run, reference)]
    return max(TOLERANCE * expected, *batches)


def _other_samples(run: Run, reference: Run, count: float, expected: float) -> Finding:
    """Where the run's own figures cannot refute its claim, the other runs can."""
    ratio, text = count / expected, msg(
        "an epoch of {name} has {count} samples, one of {reference} {expected}: {ratio} times as many", name=run.name,
        count=number(count), reference=reference.name, expected=number(expected), ratio=f"{count / expected:.3f}")
    cause = next((cause for factor, cause in _mistakes(run).items() if _near(ratio, factor)), "")
    if cause and not claims(run):
        corrected = msg("corrected throughput {corrected} img/s",
                        corrected=number(figures.throughput(run).median / ratio))
        return Finding("samples", "invalid", run.name, clauses([text, corrected]), cause,
                       msg("compute throughput as samples of all replicas / wall time, then run again"))
    world, workers = run.results.world_size or 0, figures.replicas(run) or 0
    if figures.serves(run) and workers and _near(ratio, workers / max(world, workers + 1)):
        cause = msg("the data was cut into as many shares as there are ranks, and the server's was never trained on")
    else:
        cause = msg("the runs do not go through the same data in an epoch")
    return Finding("same samples", "suspect", COMPARISON, text, cause,
                   msg("cut the data into one share for each replica, and give all runs the same data set"))


def corrected_throughput(run: Run) -> figures.Spread | None:
    """Samples really consumed / time (img/s) of a run whose own claim is refuted."""
    return figures.spread_of(
        claim.throughput if abs(claim.ratio - 1) <= TOLERANCE else
        claim.throughput / factor if (factor := _miscount(run, claim)[0]) != 1 else claim.nearest / claim.time
        for claim in claims(run))


def corrections(runs: Sequence[Run]) -> list[Finding]:
    """What becomes of a published comparison with the baseline once the samples are counted right."""
    baseline = next((run for run in runs if run.name == BASELINE), None)
    refuted = {run.name: run for run in runs
               for finding in samples(run) if finding.verdict in ("suspect", "invalid")}
    if baseline is None:
        return []
    affected = [run for run in runs if run is not baseline and {run.name, baseline.name} & refuted.keys()]
    return [_correction(run, baseline) for run in affected if figures.throughput(run) and corrected_throughput(run)
            and corrected_throughput(baseline) and figures.throughput(baseline).median > 0]


def _correction(run: Run, baseline: Run) -> Finding:
    claimed = figures.throughput(run).median / figures.throughput(baseline).median
    corrected = corrected_throughput(run).median / corrected_throughput(baseline).median
    text = msg("as the files have it, {name} is {claimed} than {baseline}; by the samples really consumed it is "
               "{corrected} ({speed} against {reference} img/s)", name=run.name, baseline=baseline.name,
               claimed=pace(claimed), corrected=pace(corrected), speed=number(corrected_throughput(run).median),
               reference=number(corrected_throughput(baseline).median))
    return Finding("samples", "suspect", COMPARISON, text, msg("a throughput that its own file refutes"),
                   msg("quote the corrected figures, or better, run again"))


def pace(ratio: float) -> Text:
    """A ratio of throughputs in words."""
    share = percent(abs(ratio - 1))
    return msg("{share} faster", share=share) if ratio > 1 else msg("{share} slower", share=share)
