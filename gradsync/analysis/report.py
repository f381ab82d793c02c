"""The text report and the terminal output: facts gathered here, all wording in ``templates/``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gradsync.analysis import figures, words
from gradsync.analysis.breakdown import COMMUNICATION, SEGMENTS, breakdown
from gradsync.analysis.comparison import Comparison, difference_shows, groups_without_difference
from gradsync.analysis.finding import SEVERITY
from gradsync.analysis.load import BASELINE, METHODS, SINGLE, Run
from gradsync.analysis.table import aligned, comparison_table, exposed, speedup


def render_report(comparison: Comparison) -> str:
    """``performance_report.txt``."""
    return _templates().get_template("performance_report.txt.j2").render(_facts(comparison))


def render_terminal(comparison: Comparison, written: Sequence[object]) -> str:
    """What is printed: the table, the verdict, what is wrong or missing, and the files that were written."""
    return _templates().get_template("terminal.txt.j2").render(_facts(comparison), written=written)


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradsync.analysis"),
        finalize=words.printable,  # whatever stands in {{ }} stays on its line and shows its control characters
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "paragraph": lambda text: _filled(text, ""),
        "item": lambda text: _filled(text, "- "),
        "ms": words.milliseconds,
        "number": words.number,
        "percent": words.percent,
        "joined": words.joined,
        "replicas": figures.replicas,
        "names": lambda runs: words.joined([run.name for run in runs]),
    }
    return environment


def _filled(text: str, prefix: str) -> str:
    collapsed = " ".join(text.split())
    return "\n".join(words.wrapped(collapsed, prefix=prefix)) + "\n" if collapsed else ""


def _facts(comparison: Comparison) -> dict[str, Any]:
    runs = comparison.runs
    severity = {verdict: -place for place, verdict in enumerate(SEVERITY)}
    problems = sorted((finding for finding in comparison.findings if finding.verdict != "pass"),
                      key=lambda finding: severity[finding.verdict])
    efficiencies = [(run.name, comparison.scaling_efficiency(run)) for run in runs]
    return {
        "comparison": comparison,
        "runs": runs,
        "methods": METHODS,
        "baseline": comparison.run(BASELINE),
        "single": comparison.run(SINGLE),
        "withheld": comparison.withheld,
        "excluded": [run for run in runs if comparison.verdict(run) == "invalid"],
        "table": comparison_table(comparison),
        "ranking": ranking_lines(comparison),
        "differences": _differences(comparison),
        "problems": problems,
        "further": [finding for finding in problems
                    if finding.verdict != "not known" and finding not in comparison.withheld],
        "not_known": [finding for finding in problems if finding.verdict == "not known"],
        "convergence": convergence_lines(runs),
        "standard_error": _standard_error(runs),
        "meaningless": [run for run in runs if not figures.accuracy_is_meaningful(run)],
        "time": time_lines(runs),
        "no_phases": [run for run in runs if breakdown(run) is None],
        "communication": communication_lines(runs),
        "explained": _explained(comparison),
        "no_probe": [run for run in runs if exposed(run) == words.NOT_KNOWN],
        "efficiencies": [(name, share) for name, share in efficiencies if share is not None],
        "threads": sorted({run.results.environment.threads_per_rank for run in runs if run.results.environment}),
        "serving": [run for run in runs if (figures.replicas(run) or 0) < (run.results.world_size or 0)],
        "recipe": _by_value(runs, lambda run: run.results.recipe),
        "dataset": _by_value(runs, lambda run: run.results.dataset and run.results.dataset.model_dump()),
        "model": _by_value(runs, lambda run: run.results.model and run.results.model.model_dump()),
        "environment": _by_value(runs, lambda run: run.results.environment and run.results.environment.model_dump()),
    }


def ranking_lines(comparison: Comparison) -> list[str]:
    """Fastest first, with spread and convergence; runs without a shown difference share a rank."""
    rows = [("", "Method", "img/s", "min - max", "n", "Speed-up", "Train loss", "Best val acc. %", "")]
    place = 1
    for group in groups_without_difference(comparison.ranking):
        for run in group:
            speed = figures.throughput(run)
            shows = difference_shows(figures.throughput(group[0]), speed)
            remark = "" if run is group[0] else "no difference shown" if shows is False else "spread not known"
            rows.append((
                f"{place}.", words.shortened(run.name, 22), words.number(speed.median),
                f"{words.number(speed.low)} - {words.number(speed.high)}", str(speed.n), speedup(comparison, run),
                words.number(figures.final_loss(run)), _accuracy(run), remark,
            ))
        place += len(group)
    return aligned(rows, left=(0, 1, 8)) if len(rows) > 1 else []


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    """Each ranked run against the baseline: relative change of throughput, and the wider range it must exceed."""
    baseline = comparison.run(BASELINE)
    found = []
    for run in comparison.ranking:
        gain = comparison.speedup(run)
        if gain is None or run is baseline:
            continue
        reference = figures.throughput(baseline)
        widths = [spread.width for spread in (figures.throughput(run), reference)]
        found.append({"name": run.name, "ratio": gain.ratio, "shown": gain.shown,
                      "width": max(width or 0.0 for width in widths) / reference.median})
    return found


def _accuracy(run: Run) -> str:
    return words.accuracy(figures.best_accuracy(run), figures.accuracy_is_meaningful(run))


def convergence_lines(runs: Sequence[Run]) -> list[str]:
    """Losses and accuracies of each run."""
    rows = [("Method", "First loss", "Final train loss", "Final val loss", "Final train acc. %", "Best val acc. %",
             "Steps")]
    for run in runs:
        losses, last = run.results.all_losses, run.results.epochs[-1] if run.results.epochs else None
        rows.append((
            words.shortened(run.name, 28),
            words.number(losses[0] if losses else None),
            words.number(figures.final_loss(run)),
            words.number(last.val_loss if last else None),
            words.accuracy(last.train_accuracy if last else None, figures.accuracy_is_meaningful(run)),
            _accuracy(run),
            words.count(figures.total_steps(run)),
        ))
    return aligned(rows)


def _standard_error(runs: Sequence[Run]) -> tuple[float, int] | None:
    """Largest standard error of a best accuracy in points, and its validation samples: sqrt(p (1 - p) / n)."""
    found = []
    for run in runs:
        best, data = figures.best_accuracy(run), run.results.dataset
        if best is not None and 0 <= best <= 100 and data and data.val_samples and data.accuracy_is_meaningful:
            found.append(((best * (100 - best) / data.val_samples) ** 0.5, data.val_samples))
    return max(found, default=None)


def time_lines(runs: Sequence[Run]) -> list[str]:
    """Milliseconds per step of each segment, and its share."""
    known = [(run, parts) for run in runs if (parts := breakdown(run))]
    if not known:
        return []
    rows = [("ms per step", *(words.shortened(run.name, 24) for run, _ in known))]
    for segment in SEGMENTS:
        values = [parts.segments.get(segment) for _, parts in known]
        if any(values):
            rows.append((segment, *(f"{words.milliseconds(value)} ({value / parts.total:4.0%})" if value else "-"
                                    for value, (_, parts) in zip(values, known, strict=True))))
    rows.append(("step", *(f"{words.milliseconds(parts.total)} (100%)" for _, parts in known)))
    return aligned(rows)


def communication_lines(runs: Sequence[Run]) -> list[str]:
    """Exposed communication, measured phases, and volume per step."""
    rows = [("Method", "Exposed ms", "quartiles", "of the step", "Pull ms", "All-reduce ms", "Push ms", "MB/replica",
             "MB/server")]
    for run in runs:
        spread, step = figures.exposed_communication(run), figures.step_time(run)
        phases = figures.communication_phases(run)
        sent = run.results.communication
        rows.append((
            words.shortened(run.name, 22),
            exposed(run),
            f"{words.milliseconds(spread.low)} - {words.milliseconds(spread.high)}" if spread else "-",
            words.percent(spread.median / step) if spread and step else "-",
            *(words.milliseconds(phases[phase]) if phase in phases else "-" for phase in COMMUNICATION),
            *(words.number(volume / 1e6) if volume is not None else "-" for volume in (
                sent and sent.replica_bytes_per_step, sent and sent.server_bytes_per_step)),
        ))
    return aligned(rows)


def _explained(comparison: Comparison) -> list[dict[str, Any]]:
    """Difference of step time from the baseline beside the difference of exposed communication, in seconds."""
    baseline = comparison.run(BASELINE)
    if baseline is None or comparison.withheld:
        return []
    step, communication = figures.step_time(baseline), figures.exposed_communication(baseline)
    found = []
    for run in comparison.rankable:
        own_step, own = figures.step_time(run), figures.exposed_communication(run)
        if run is not baseline and None not in (step, communication, own_step, own):
            found.append({"name": run.name, "step": own_step - step, "exposed": own.median - communication.median})
    return found


def _by_value(runs: Sequence[Run], facts: Any) -> list[tuple[str, str, str]]:
    """(key, value, names of the runs if not all) for every known fact."""
    table: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for key, value in (facts(run) or {}).items():
            if value in ("", None):
                continue
            table.setdefault(key, {}).setdefault(words.printable(value), []).append(run.name)
    return [(key, value, "" if len(names) == len(runs) else words.joined(names))
            for key, values in table.items() for value, names in values.items()]
