"""The report of a speed-up study, as text and as a page; each point has its own report beside its results."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from gradsync.analysis import figures, words
from gradsync.analysis.canvas import quiet_matplotlib
from gradsync.analysis.figures import Spread
from gradsync.analysis.finding import SEVERITY
from gradsync.analysis.html_report import page_templates, table
from gradsync.analysis.layout import ruled, shortened
from gradsync.analysis.load import SINGLE
from gradsync.analysis.message import ENGLISH, Language, Text, clauses, enumerated, msg, term
from gradsync.analysis.output import render
from gradsync.analysis.report import merged, templates
from gradsync.analysis.rows import Rows
from gradsync.analysis.scaling import Scaled, Study
from gradsync.analysis.scaling_charts import breakdown_chart, speedup_chart
from gradsync.analysis.step_parts import PARTS

CHARTS = {"speedup": speedup_chart, "scaling_breakdown": breakdown_chart}
LEFT = (0, 11)  # columns of words in the table of the study
NAME_WIDTH = 26


def render_study(study: Study, language: Language = ENGLISH) -> dict[Path, bytes]:
    """Relative path and content of each file: those of every point, then what is said of all of them."""
    files = {Path(point.place) / path: content for point in study.points
             for path, content in render(point.comparison, language).items()}
    with quiet_matplotlib():
        pictures = {name: draw(study) for name, draw in CHARTS.items()}
    facts = _facts(study)
    charts = [{"title": title, "alternative": alternative, "data": base64.b64encode(pictures[name]).decode()}
              for name, title, alternative in _described(study)]
    page = page_templates(language).get_template("scaling.html.j2")
    pages = {"report.html": page.render(facts, language=language.code, charts=charts, tables=_page_tables(study)),
             "performance_report.txt": study_summary(study, language)}
    files |= {Path("plots") / f"{name}.png": picture for name, picture in pictures.items()}
    return files | {Path(name): text.encode("utf-8", "backslashreplace") for name, text in pages.items()}


def study_summary(study: Study, language: Language = ENGLISH) -> str:
    """``performance_report.txt``, which is also what the terminal shows."""
    def lines(rows: Rows, left: tuple[int, ...]) -> list[str]:
        if len(rows) < 2:
            return []
        return ruled([[language(cell) for cell in row] for row in rows], left)

    return templates(language).get_template("scaling.txt.j2").render(
        _facts(study), table=lines(scaling_rows(study), LEFT), parts=lines(parts_rows(study), (0,)),
        losses=lines(lost_rows(study), (0,)))


def _facts(study: Study) -> dict[str, Any]:
    severity = {verdict: -place for place, verdict in enumerate(SEVERITY)}
    problems = [finding for finding in merged(study.findings) if finding.verdict != "pass"]
    return {
        "study": study,
        "lead": lead(study),
        "standing": "invalid" if study.withheld else "note" if study.single is None else
                    "suspect" if any(finding.verdict == "suspect" for finding in problems) else "pass",
        "conclusions": conclusions(study),
        "problems": sorted(problems, key=lambda finding: severity[finding.verdict]),
        "passed": [finding for finding in merged(study.findings) if finding.verdict == "pass"],
        "serving": any((row.replicas or row.ranks) < row.ranks for row in study.rows),
        "places": [point.place for point in study.points],
    }


def lead(study: Study) -> Text:
    """What the study is, and whether it may say anything."""
    if study.withheld:
        return msg("NOT COMPARABLE: speed-ups are withheld, because:")
    if study.single is None:
        return msg("NO SPEED-UP: there is no run of the single device to compare with.")
    run, count = study.single.runs[0], len(study.repeats)
    batch, repeats = words.count(figures.global_batch(run)), _repeats(count)
    if study.rule == "weak":
        return msg("WEAK SCALING: a batch of {batch} for each replica, so more replicas do more work in a step; "
                   "{repeats}.", batch=batch, repeats=repeats)
    if study.rule == "strong":
        return msg("STRONG SCALING: one global batch of {batch} at every number of ranks; {repeats}.", batch=batch,
                   repeats=repeats)
    return msg("Whether the global batch stays the same is not known; {repeats}.", repeats=repeats)


def _repeats(count: int) -> Text:
    if count == 1:
        return msg("each run made once, so no range is known")
    return msg("{count} repeats, figures are medians (and ranges) over them", count=count)


def conclusions(study: Study) -> list[Text]:
    """For each method at its most ranks: what it reaches, and where the rest went."""
    widest = {row.name: row for row in study.rows if row.speedup and row.name != SINGLE}
    return [_conclusion(study, row) for row in widest.values()]


def _conclusion(study: Study, row: Scaled) -> Text:
    text = msg("{name}: {speedup} times the throughput of the single device on {replicas} replica(s), efficiency "
               "{efficiency}", name=row.name, speedup=ranged(row.speedup), replicas=row.replicas,
               efficiency=words.percent(row.efficiency.median))
    lost = study.lost(row)
    if lost is None or lost.total <= 0:
        return msg("{figures}.", figures=text)
    known = sorted(((share, name) for name, share in lost.shares.items() if share is not None), reverse=True)
    parts = [msg("{points} {part}", points=_points(share), part=term(name)) for share, name in known]
    if len(parts) < len(PARTS):
        parts.append(msg("the others not known"))
    where = msg("of the {points} points that are missing: {parts}", points=_points(lost.total), parts=enumerated(parts))
    return msg("{figures}.", figures=clauses([text, where]))


def scaling_rows(study: Study) -> Rows:
    """The table of the study, a header first."""
    rows: Rows = [(msg("Method"), msg("Ranks"), msg("Replicas"), msg("Total s"), msg("Batch ms"), "img/s",
                   msg("Speed-up"), msg("min - max"), msg("Efficiency"), msg("per rank"), "n", msg("Verdict"))]
    for row in study.rows:
        if not row.runs:
            rows.append((shortened(row.name, NAME_WIDTH), str(row.ranks), *["-"] * 8, "0", row.absent))
            continue
        time, step, speed = row.total_time, row.step_time, row.throughput
        rows.append((
            shortened(row.name, NAME_WIDTH), str(row.ranks), words.count(row.replicas),
            words.number(time.median if time else None), words.milliseconds(step.median if step else None),
            words.number(speed.median if speed else None), *_speedup_cells(study, row), str(len(row.runs)),
            term(study.verdict(row)),
        ))
    return rows


def _speedup_cells(study: Study, row: Scaled) -> tuple[Text, ...]:
    """Speed-up, its range, efficiency per replica and per rank."""
    if row.speedup is None:
        return (msg("withheld") if study.withheld else "-", "-", "-", "-")
    spread = f"{row.speedup.low:.2f} - {row.speedup.high:.2f}" if row.speedup.n > 1 else "-"
    return (f"{row.speedup.median:.2f}", spread, words.percent(row.efficiency.median),
            words.percent(row.efficiency_per_rank.median))


def parts_rows(study: Study) -> Rows:
    """Milliseconds of the parts of a step."""
    rows: Rows = [(msg("ms per step"), msg("Ranks"), msg("step"), *(term(name) for name in PARTS))]
    for row in study.rows:
        if row.parts:
            cells = (words.milliseconds(seconds) for seconds in row.parts.by_name.values())
            rows.append((shortened(row.name, NAME_WIDTH), str(row.ranks), words.milliseconds(row.parts.step), *cells))
    return rows


def lost_rows(study: Study) -> Rows:
    """Points of efficiency that each part costs."""
    rows: Rows = [(msg("Efficiency lost, points"), msg("Ranks"), msg("in all"), *(term(name) for name in PARTS))]
    for row in study.rows:
        if row.name != SINGLE and (lost := study.lost(row)):
            rows.append((shortened(row.name, NAME_WIDTH), str(row.ranks), _points(lost.total),
                         *(_points(share) for share in lost.shares.values())))
    return rows


def _points(share: float | None) -> Text:
    return words.NOT_KNOWN if share is None else f"{round(100 * share, 1) + 0:.1f}"  # no -0.0


def ranged(spread: Spread) -> Text:
    """``1.75 (1.72 to 1.78)``, without a range where there is none."""
    if spread.n == 1:
        return f"{spread.median:.2f}"
    return msg("{median} ({low} to {high})", median=f"{spread.median:.2f}", low=f"{spread.low:.2f}",
               high=f"{spread.high:.2f}")


def _page_tables(study: Study) -> dict[str, Any]:
    return {"scaling": table(scaling_rows(study), *LEFT), "parts": table(parts_rows(study)),
            "losses": table(lost_rows(study))}


def _described(study: Study) -> list[tuple[str, Text, Text]]:
    """Name, title and alternative text of each chart."""
    speeds = [msg("{run}: {figures}", run=row.label, figures=ranged(row.speedup)) for row in study.rows if row.speedup]
    steps = [msg("{run}: {figures}", run=row.label, figures=msg("{step} ms", step=words.milliseconds(row.parts.step)))
             for row in study.rows if row.parts]
    return [
        ("speedup", msg("Speed-up over the single device"),
         msg("{kind}. {figures}.", kind=msg("Lines of speed-up and efficiency by replicas, against ideal"),
             figures=clauses(speeds) if speeds else words.NOT_KNOWN)),
        ("scaling_breakdown", msg("Where the time of a step goes"),
         msg("{kind}. {figures}.", kind=msg("Stacked bars of the parts of a step at each number of ranks"),
             figures=clauses(steps) if steps else words.NOT_KNOWN)),
    ]
