"""``cost_model.txt`` and its two pictures: what the model says, and how far it was from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from gradsync.analysis import cost_grid, words
from gradsync.analysis.answers import answers
from gradsync.analysis.canvas import quiet_matplotlib
from gradsync.analysis.cost_grid import Cell, Errors, Fitted, Judged
from gradsync.analysis.cost_model import Costs, Link, is_modelled, shaped_link
from gradsync.analysis.crossover import crossover_chart
from gradsync.analysis.layout import ruled, wrapped
from gradsync.analysis.load import BASELINE, Run
from gradsync.analysis.message import Language, Text, msg
from gradsync.analysis.projection import Subject, projected_step, projection_chart
from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.probed import Links

WIDTH = 110
SMALL_MESSAGE = 16384  # bytes; up to there an all-reduce takes the time of its messages
MEANING = {
    "latency": msg("a step of a ring, on top of the link's latency, us"),
    "message": msg("a message between two ranks, likewise, us"),
    "byte": msg("to send a MB, and again to receive it, us of a processor"),
    "reduce": msg("to add a received MB to one's own, us of a processor"),
    "collect": msg("to write a MB of gradients into the buffer that is sent, us of a processor"),
    "serial": msg("share of the shorter of link and processor that the longer does not hide"),
}


@dataclass(frozen=True)
class Judgement:
    """The fit to the whole grid, and how fits to parts of it did on the rest."""

    fitted: Fitted
    held_out: list[Judged]
    extrapolated: list[Judged]

    @property
    def errors(self) -> Errors:
        return cost_grid.summarise(self.held_out)

    @property
    def told_apart(self) -> float:
        return cost_grid.told_apart(self.held_out)


def judge_model(cells: Sequence[Cell]) -> Judgement:
    return Judgement(cost_grid.fit_costs(cells), cost_grid.held_out(cells), cost_grid.extrapolated(cells))


def render_cost_model(cells: Sequence[Cell], runs: Sequence[Run] | None, rates: dict[str, float],
                      latency: float | None, tree: bool, language: Language) -> tuple[str, dict[Path, bytes]]:
    """What to print, and relative path and content of each file. ``runs`` None: nothing is projected.

    ``rates``: bits/s of the links to project, by name; none: the link as probed. ``latency``: seconds of a message on
    them. Raises UsageError where no run has what a projection needs.
    """
    judgement = judge_model(cells)
    with quiet_matplotlib():
        pictures = {"crossover": crossover_chart(cells, judgement.fitted.costs, judgement.errors,
                                                  judgement.told_apart)}
    parts = [model_text(judgement, language)]
    if runs is not None:
        run = chosen_run(runs)
        subject, links = make_subject(run, tree), chosen_links(run, rates, latency)
        with quiet_matplotlib():
            pictures["projection"] = projection_chart(subject, links, str(standing(judgement.errors, runs)))
        parts.insert(0, projection_text(runs, run, subject, links, judgement, language))
    text = "\n\n".join(parts)
    files = {Path("plots") / f"{name}.png": content for name, content in pictures.items()}
    return text, files | {Path("cost_model.txt"): f"{text}\n".encode("utf-8", "backslashreplace")}


# The model itself.


def model_text(judgement: Judgement, language: Language) -> str:
    lines = paragraph(language, msg(
        "HOW FAR THE MODEL CAN BE TRUSTED, on emulated hosts that share one machine's processors: it was fitted to one "
        "half of the measured cells and judged by the other, and the other way round; and fitted to the smaller "
        "numbers of hosts and judged by the largest."))
    lines += table(language, [
        [msg("judged by"), "n", msg("median error"), msg("worst error")],
        *([name, str(errors.n), f"{errors.median:.1%}", f"{errors.worst:.1%}"] for name, errors in (
            (msg("cells held out"), judgement.errors),
            (msg("the largest number of hosts"), cost_grid.summarise(judgement.extrapolated))))])
    lines += ["", *table(language, [
        [msg("cells held out, by row"), "n", msg("median error"), msg("worst error")],
        *([row, str(errors.n), f"{errors.median:.1%}", f"{errors.worst:.1%}"]
          for row, errors in by_row(judgement.held_out).items())])]
    lines += ["", *table(language, [[msg("fitted to all cells"), msg("value"), msg("known within a factor of")],
                                    *cost_rows(judgement.fitted)])]
    for hosts in sorted({one.cell.hosts for one in judgement.held_out}):
        lines += ["", *table(language, grid_rows([one for one in judgement.held_out if one.cell.hosts == hosts],
                                                 hosts))]
    return "\n".join(lines)


def grid_rows(judged: Sequence[Judged], hosts: int) -> list[list[Text]]:
    """A line for each row, a column for each rate: what was measured, and how far the prediction is off."""
    rates = sorted({one.cell.rate for one in judged})
    found = {(one.row, one.cell.rate): f"{1e3 * one.measured:,.0f} ({one.error:+.0%})" for one in judged}
    heading = msg("{hosts} hosts: measured ms (error of the prediction)", hosts=hosts)
    return [[heading, *(f"{rate / 1e6:g} Mbit/s" for rate in rates)],
            *([row, *(found.get((row, rate), "-") for rate in rates)] for row in by_row(judged))]


def by_row(judged: Sequence[Judged]) -> dict[str, Errors]:
    rows = dict.fromkeys(one.row for one in judged)
    return {row: cost_grid.summarise([one for one in judged if one.row == row]) for row in rows}


def cost_rows(fitted: Fitted) -> list[list[Text]]:
    """Micro-seconds, of a message or of 10^6 bytes; ``serial`` is a share."""
    shown = []
    for field in fields(Costs):
        value, unit = getattr(fitted.costs, field.name), {"latency": 1e6, "message": 1e6, "serial": 1.0}
        shown.append([MEANING[field.name], words.number(value * unit.get(field.name, 1e12), 3),
                      words.number(fitted.factors[field.name], 3)])
    return shown


# What a user's own results give.


def chosen_run(runs: Sequence[Run]) -> Run:
    """The run that says how this model computes on this device: DDP's if it can. Raises UsageError if none can."""
    able = [run for run in runs if run.results.compute_profile and run.results.links]
    if not able:
        raise UsageError("--results-dir: no run there was made with --probe-links on two ranks or more, which measures "
                         "what a projection starts from; make one, or use --grid-only")
    return sorted(able, key=lambda run: run.family != BASELINE)[0]


def make_subject(run: Run, tree: bool = False) -> Subject:
    results = run.results
    settings = {key: value for key, value in (results.settings or {}).items() if key in ("bucket_mb", "chunk_mb")}
    return Subject(results.model.name if results.model else run.name, results.compute_profile, TrainConfig(**settings),
                   probed_costs(results.links), tree)


def probed_costs(links: Links) -> Costs:
    """What an all-reduce takes beside its messages: steps of a few bytes, and the bytes of a large one."""
    ranks, large = len(links.hosts), links.all_reduce[-1]
    small = statistics.median(sample.seconds for sample in links.all_reduce if sample.bytes <= SMALL_MESSAGE)
    share = 2 * (ranks - 1) / ranks * large.bytes  # into each rank, half of it to be added up
    rest = max(0.0, large.seconds - small - share / links.bandwidth)
    return Costs(latency=max(0.0, small / (2 * (ranks - 1)) - links.latency), message=0.0, byte=0.0,
                 reduce=rest / (share / 2), collect=0.0, serial=1.0)


def chosen_links(run: Run, rates: dict[str, float], latency: float | None) -> dict[str, Link]:
    probed = run.results.links
    latency = probed.latency if latency is None else latency
    if not rates:
        return {f"{8 * probed.bandwidth / 1e9:.3g} Gbit/s, as probed": Link(probed.bandwidth, latency)}
    return {name: shaped_link(rate, latency) for name, rate in rates.items()}


def own_errors(runs: Sequence[Run]) -> list[tuple[Run, float, float]]:
    """Of each run with all that it takes: seconds of its step as measured by its probe, and as predicted."""
    found = []
    for run in runs:
        results = run.results
        if results.compute_profile and results.links and results.probe and is_modelled(run.name):
            link = Link(results.links.bandwidth, results.links.latency)
            # The probe times single steps from a common start.
            predicted = projected_step(make_subject(run), run.name, link, results.num_replicas, steps=1)
            found.append((run, statistics.median(results.probe.step_times), predicted))
    return found


def standing(errors: Errors, runs: Sequence[Run]) -> Text:
    """The error that stands beside every prediction."""
    own = own_errors(runs)
    ours = msg("On held-out cells of emulated hosts the model's median error was {median}, its worst {worst}; no "
               "larger cluster was measured.", median=f"{errors.median:.0%}", worst=f"{errors.worst:.0%}")
    if not own:
        return ours
    off = max(abs(predicted / measured - 1) for _, measured, predicted in own)
    return msg("{ours} Of the runs here ({count}) the farthest is {off} off.", ours=ours, count=len(own),
               off=f"{off:.0%}")


def projection_text(runs: Sequence[Run], run: Run, subject: Subject, links: dict[str, Link], judgement: Judgement,
                    language: Language) -> str:
    lines = paragraph(language, msg("PREDICTED, NOT MEASURED: {model}, from the compute profile and links of {name}.",
                                    model=subject.name, name=run.name))
    lines += paragraph(language, standing(judgement.errors, runs))
    own = own_errors(runs)
    told_apart = max([judgement.told_apart, *(abs(predicted / measured - 1) for _, measured, predicted in own)])
    if own:
        lines += ["", *table(language, [
            [msg("runs here"), msg("replicas"), msg("measured ms"), msg("predicted ms"), msg("error")],
            *([one.name, str(one.results.num_replicas), words.milliseconds(measured), words.milliseconds(predicted),
               f"{predicted / measured - 1:+.0%}"] for one, measured, predicted in own)])]
    lines.append("")
    lines += paragraph(language, msg("Two predictions that differ by less than {share} are not told apart.",
                                     share=f"{told_apart:.0%}"))
    for name, link in links.items():
        for sentence in answers(subject, name, link, run.results.num_replicas or 2, told_apart):
            lines += wrapped(language(sentence), WIDTH, "- ")
    return "\n".join(lines)


def paragraph(language: Language, text: Text) -> list[str]:
    return wrapped(language(text), WIDTH, "")


def table(language: Language, rows: Sequence[Sequence[Text]]) -> list[str]:
    """Columns with a rule below the first row."""
    return ruled([[language(cell) for cell in row] for row in rows])
