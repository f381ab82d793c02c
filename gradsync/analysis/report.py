"""The text report and the terminal output: facts gathered here, all wording in ``templates/``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gradsync.analysis import figures, words
from gradsync.analysis.breakdown import breakdown
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.finding import COMPARISON, SEVERITY, Finding
from gradsync.analysis.layout import WIDE_PUNCTUATION, aligned, display_width, wrapped
from gradsync.analysis.links import distance_rows, link_rows, on_one_host
from gradsync.analysis.load import BASELINE, METHODS, SINGLE, Run
from gradsync.analysis.message import ENGLISH, Language, Listing, Text, enumerated, joined, msg, printable, term
from gradsync.analysis.rows import (
    Rows,
    communication_rows,
    convergence_rows,
    equivalence_rows,
    ranking_rows,
    time_rows,
)
from gradsync.analysis.table import comparison_table, exposed


def render_report(comparison: Comparison, language: Language = ENGLISH) -> str:
    """``performance_report.txt``."""
    return templates(language).get_template("performance_report.txt.j2").render(report_facts(comparison, language))


def render_terminal(comparison: Comparison, written: Sequence[object], language: Language = ENGLISH) -> str:
    """What is printed: the table, the verdict, what is wrong or missing, and the files that were written."""
    facts = report_facts(comparison, language)
    return templates(language).get_template("terminal.txt.j2").render(facts, written=written)


def templates(language: Language) -> Environment:
    """Templates write ``{{ _("English with {placeholder}", placeholder=...) }}``, and nothing but that is text."""
    environment = Environment(
        loader=PackageLoader("gradsync.analysis"),
        finalize=language,  # whatever stands in {{ }} is translated, stays on its line, shows its control characters
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
        "joined": joined,
        "replicas": figures.replicas,
        "names": lambda runs: joined([run.name for run in runs]),
        "term": term,
        "said": said,
        "described": described,
        "heading": lambda text: f"{text}\n{'=' * display_width(text)}\n",
    }
    environment.globals["_"] = msg
    return environment


def _filled(text: str, prefix: str) -> str:
    collapsed = re.sub(f"(?<=[{WIDE_PUNCTUATION}]) ", "", " ".join(text.split()))  # it brings its own space
    return "\n".join(wrapped(collapsed, prefix=prefix)) + "\n" if collapsed else ""


def said(finding: Finding) -> Text:
    """A finding in full: check, run, figures, cause, what to do."""
    check: Text = term(finding.check)
    if finding.subject != COMPARISON:
        check = msg("{check}, {run}", check=check, run=finding.subject)
    parts: list[Text] = [msg("{check}: {figures}.", check=check, figures=finding.figures)]
    if finding.cause:
        parts.append(msg("Cause: {cause}.", cause=finding.cause))
    if finding.action:
        parts.append(msg("To do: {action}.", action=finding.action))
    return Listing(tuple(parts), " ", " ")


def merged(findings: Sequence[Finding]) -> list[Finding]:
    """Runs of which the same is to be said share one finding."""
    groups: dict[Finding, list[Text]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, subject=""), []).append(finding.subject)
    return [replace(finding, subject=subjects[0] if len(subjects) == 1 else joined(subjects))
            for finding, subjects in groups.items()]


def described(run: Run) -> Text:
    """A run's title, file and times."""
    results = run.results
    parts: list[Text] = [run.title, run.file]
    if results.start_time:
        parts.append(msg("started {time}", time=results.start_time))
    if results.end_time:
        parts.append(msg("ended {time}", time=results.end_time))
    if run.failed:
        parts.append(msg("FAILED: {error}", error=results.error or msg("no reason given")))
    return msg("{run}: {figures}", run=run.name, figures=enumerated(parts))


def lead(comparison: Comparison) -> Text:
    """The verdict on the whole comparison, in one sentence."""
    runs, sound = comparison.runs, joined([run.name for run in comparison.rankable])
    verdicts = {finding.verdict for finding in comparison.findings}
    if not runs:
        return msg("NOTHING TO COMPARE: no run is complete.")
    if len(runs) == 1:
        return msg("NOTHING TO COMPARE: one complete run ({names}).", names=runs[0].name)
    if comparison.withheld:
        return msg("NOT COMPARABLE: ranking and speed-ups are withheld, because:")
    if len(comparison.rankable) < 2:
        return msg("NOTHING TO COMPARE: fewer than two of {count} runs have figures that hold.", count=len(runs))
    if "suspect" in verdicts:
        return msg('COMPARABLE WITH RESERVATIONS: {names} can be ranked, but some of their figures are doubtful (see '
                   '"suspect" below).', names=sound)
    if "not known" in verdicts:
        return msg('COMPARABLE AS FAR AS KNOWN: nothing contradicts the figures of {names}, but not everything could '
                   'be checked (see what is "not known" below).', names=sound)
    return msg("COMPARABLE: {names} used the same recipe, global batch and machine, and their figures agree with each "
               "other.", names=sound)


def limits(runs: Sequence[Run]) -> list[Text]:
    """What the hardware of these runs leaves open."""
    known = [facts for run in runs if (facts := run.results.environment)]
    found: list[Text] = []
    if cpu := next((facts for facts in known if facts.device.lower().startswith("cpu")), None):
        shared = max((facts.ranks_per_host for facts in known), default=1)
        found.append(msg("The speed of a GPU: these are times of a CPU.") if shared == 1 else
                     msg("The speed of a GPU: these are times of a CPU, whose {cores} cores are shared by {ranks} "
                         "ranks.", cores=cpu.cpu_cores, ranks=shared))
    if one_host := next((facts for facts in known if facts.num_hosts == 1), None):
        found.append(msg("A network: all ranks ran on one host ({transport}). Between hosts communication takes "
                         "longer, and differently so for each method.", transport=one_host.transport))
    return found


def report_facts(comparison: Comparison, language: Language) -> dict[str, Any]:
    runs = comparison.runs
    severity = {verdict: -place for place, verdict in enumerate(SEVERITY)}
    findings = merged(comparison.findings)
    problems = sorted((finding for finding in findings if finding.verdict != "pass"),
                      key=lambda finding: severity[finding.verdict])
    efficiencies = [(run.name, comparison.scaling_efficiency(run)) for run in runs]
    not_known = [finding for finding in problems if finding.verdict == "not known"]

    def table(rows: Rows, left: Sequence[int] = (0,)) -> list[str]:
        return aligned([[language(cell) for cell in row] for row in rows], left) if len(rows) > 1 else []

    return {
        "comparison": comparison,
        "lead": lead(comparison),
        "runs": runs,
        "methods": METHODS,
        "baseline": comparison.run(BASELINE),
        "single": comparison.run(SINGLE),
        "withheld": merged(comparison.withheld),
        "excluded": [run for run in runs if comparison.verdict(run) == "invalid"],
        "table": comparison_table(comparison, language),
        "ranking": table(ranking_rows(comparison), left=(0, 1, 8)),
        "differences": differences(comparison),
        "problems": problems,
        "passed": [finding for finding in findings if finding.verdict == "pass"],
        "further": [finding for finding in problems
                    if finding.verdict != "not known" and finding not in merged(comparison.withheld)],
        "unknown_checks": [term(check) for check in dict.fromkeys(finding.check for finding in not_known)],
        "convergence": table(convergence_rows(runs)),
        "equivalence": table(equivalence_rows(runs, comparison.loaded.siblings), left=(0, 1, 5)),
        "standard_error": _standard_error(runs),
        "meaningless": [run for run in runs if not figures.accuracy_is_meaningful(run)],
        "time": table(time_rows(runs)),
        "no_phases": [run for run in runs if breakdown(run) is None],
        "communication": table(communication_rows(runs)),
        "links": table(link_rows(runs)),
        "distances": table(distance_rows(runs)),
        "one_host": any(on_one_host(run) for run in runs),
        "explained": explained(comparison),
        "no_probe": [run for run in runs if exposed(run) == words.NOT_KNOWN],
        "efficiencies": [(name, share) for name, share in efficiencies if share is not None],
        "limits": limits(runs),
        "threads": sorted({run.results.environment.threads_per_rank for run in runs if run.results.environment}),
        "serving": [run for run in runs if (figures.replicas(run) or 0) < (run.results.world_size or 0)],
        "by_value": {title: _by_value(runs, key) for title, key in (
            ("flag", "recipe"), ("data set", "dataset"), ("model", "model"), ("environment", "environment"))},
    }


def differences(comparison: Comparison) -> list[dict[str, Any]]:
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


def _standard_error(runs: Sequence[Run]) -> tuple[float, int] | None:
    """Largest standard error of a best accuracy in points, and its validation samples: sqrt(p (1 - p) / n)."""
    found = []
    for run in runs:
        best, data = figures.best_accuracy(run), run.results.dataset
        if best is not None and 0 <= best <= 100 and data and data.val_samples and data.accuracy_is_meaningful:
            found.append(((best * (100 - best) / data.val_samples) ** 0.5, data.val_samples))
    return max(found, default=None)


def explained(comparison: Comparison) -> list[dict[str, Any]]:
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


def _by_value(runs: Sequence[Run], section: str) -> list[tuple[str, str, Text]]:
    """(key, value, names of the runs if not all) for every known fact of a section of the files."""
    table: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        facts = getattr(run.results, section) or {}
        for key, value in (facts if isinstance(facts, dict) else facts.model_dump()).items():
            if value not in ("", None):
                table.setdefault(key, {}).setdefault(printable(value), []).append(run.name)
    return [(key, value, "" if len(names) == len(runs) else joined(names))
            for key, values in table.items() for value, names in values.items()]
