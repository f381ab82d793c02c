"""``report.html``: the facts of the text report as one page that needs no network, no script and no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gradsync.analysis import figures, words
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.conclusions import conclusions
from gradsync.analysis.links import distance_rows, link_rows
from gradsync.analysis.message import ENGLISH, Language, Text, msg
from gradsync.analysis.pictures import PICTURES
from gradsync.analysis.report import (
    Rows,
    communication_rows,
    convergence_rows,
    equivalence_rows,
    ranking_rows,
    report_facts,
    templates,
    time_rows,
)
from gradsync.analysis.table import row

RUNS_HEADER: tuple[Text, ...] = (
    msg("Method"), msg("Verdict"), msg("Replicas (ranks)"), msg("Throughput img/s"), msg("min - max"),
    msg("Time per epoch s"), msg("Step ms"), msg("Exposed comm. ms"), msg("Speed-up"), msg("Final train loss"),
    msg("Best val acc. %"))


@dataclass(frozen=True)
class Table:
    """``left``: columns of words, flush left. ``states``: verdict of each row, where rows have one."""

    header: tuple[Text, ...]
    rows: Sequence[tuple[Text, ...]]
    left: frozenset[int] = frozenset({0})
    states: Sequence[str] = ()


def render_page(comparison: Comparison, pictures: Mapping[str, bytes], language: Language = ENGLISH) -> str:
    """``pictures``: the PNG of each chart by its name, as in ``output.CHARTS``."""
    facts = report_facts(comparison, language)
    tables = {
        "ranking": table(ranking_rows(comparison), 0, 1, 8),
        "runs_table": runs_table(comparison),
        "convergence": table(convergence_rows(comparison.runs)),
        "equivalence": table(equivalence_rows(comparison.runs, comparison.loaded.siblings), 0, 1, 5),
        "time": table(time_rows(comparison.runs)),
        "communication": table(communication_rows(comparison.runs)),
        "links": table(link_rows(comparison.runs)),
        "distances": table(distance_rows(comparison.runs)),
    }
    page = page_templates(language).get_template("report.html.j2")
    return page.render(
        facts | tables,
        language=language.code,
        standing=standing(comparison),
        conclusions=conclusions(comparison, facts["standard_error"]),
        charts=[{"name": name, "title": picture.title, "alternative": picture.alternative(comparison),
                 "data": base64.b64encode(pictures[name]).decode()}
                for name, picture in PICTURES.items() if name in pictures],
    )


def page_templates(language: Language) -> Any:
    """The templates of the text report's kind, but whatever stands in ``{{ }}`` is escaped as well."""
    return templates(language).overlay(autoescape=True, finalize=_translated(language))


def _translated(language: Language) -> Callable[[object], object]:
    # What a macro returns is markup that was escaped when it was made; nothing a user wrote is ever Markup.
    return lambda value: value if isinstance(value, Markup) else language(value)


def standing(comparison: Comparison) -> str:
    """What the verdict amounts to, for its colour: the words of it stand beside."""
    if comparison.withheld:
        return "invalid"
    if len(comparison.rankable) < 2:
        return "note"
    return "suspect" if any(finding.verdict not in ("pass", "note") for finding in comparison.findings) else "pass"


def table(rows: Rows, *left: int) -> Table | None:
    """Rows of which the first is the header; None where there are no others."""
    if len(rows) < 2:
        return None
    tidy = [tuple(cell.replace("( ", "(").replace("( ", "(") if isinstance(cell, str) else cell for cell in row)
            for row in rows[1:]]  # the spaces align shares in plain text
    return Table(rows[0], tidy, frozenset(left or (0,)))


def runs_table(comparison: Comparison) -> Table:
    """Speed with its range beside convergence, one line a run; what did not finish is listed, too."""
    rows: list[tuple[Text, ...]] = []
    states: list[str] = []
    for run in comparison.runs:
        name, replicas, speed, *others, verdict = row(comparison, run)
        rows.append((name, verdict, replicas, speed, ranged(figures.throughput(run)), *others))
        states.append(comparison.verdict(run))
    for run in comparison.loaded.failed:
        rows.append((run.name, msg("failed"), *["-"] * (len(RUNS_HEADER) - 2)))
        states.append("failed")
    return Table(RUNS_HEADER, rows, frozenset({0, 1}), states)


def ranged(spread: figures.Spread | None) -> Text:
    return f"{words.number(spread.low)} - {words.number(spread.high)}" if spread and spread.n > 1 else "-"
