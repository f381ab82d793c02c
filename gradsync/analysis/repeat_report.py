"""The report over all repeats, as text and as a page; each repeat has its own report beside its results."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from gradsync.analysis import canvas
from gradsync.analysis.canvas import FAINT, INK, new_chart, quiet_matplotlib, say_instead, to_png
from gradsync.analysis.figures import Spread
from gradsync.analysis.finding import worst
from gradsync.analysis.html_report import Table, page_templates
from gradsync.analysis.layout import ruled, shortened
from gradsync.analysis.load import BASELINE
from gradsync.analysis.message import ENGLISH, Language, Text, clauses, enumerated, joined, msg, term
from gradsync.analysis.output import render
from gradsync.analysis.paired import PairedRatio
from gradsync.analysis.repeats import Repeated, Repeats
from gradsync.analysis.report import templates
from gradsync.analysis.rows import Rows
from gradsync.analysis.words import NOT_KNOWN, number, percent

NAME_WIDTH = 22
HEADER: tuple[Text, ...] = (
    msg("Method"), msg("img/s, median"), msg("min - max"), "n", msg("against baseline_ddp"), msg("95% interval"),
    msg("Final train loss"), msg("Best val acc. %"), msg("Verdict"),
)
LEFT = (0, len(HEADER) - 1)  # columns of words


def render_repeats(repeats: Repeats, language: Language = ENGLISH) -> dict[Path, bytes]:
    """Relative path and content of each file: those of every repeat, then what is said of all of them."""
    files = {Path(folder.name) / path: content
             for folder, comparison in zip(repeats.folders, repeats.comparisons, strict=True)
             for path, content in render(comparison, language).items()}
    with quiet_matplotlib():
        picture = ratios_chart(repeats)
    pages = {"report.html": repeats_page(repeats, picture, language),
             "performance_report.txt": summary(repeats, language)}
    files[Path("plots") / "repeats.png"] = picture
    return files | {Path(name): text.encode("utf-8", "backslashreplace") for name, text in pages.items()}


def summary(repeats: Repeats, language: Language = ENGLISH) -> str:
    """Table, conclusions, and where the single repeats are described."""
    table = ruled([[language(cell) for cell in row] for row in _rows(repeats)], LEFT)
    return templates(language).get_template("repeats.txt.j2").render(_facts(repeats), table=table)


def repeats_page(repeats: Repeats, picture: bytes, language: Language = ENGLISH) -> str:
    """``report.html`` over all repeats."""
    header, *rows = _rows(repeats)
    ratios = [msg("{run}: {figures}", run=method.name, figures=_interval(method.ratio))
              for method in repeats.methods if method.ratio]
    chart = {"title": msg("Throughput against DDP, by repeat"), "data": base64.b64encode(picture).decode(),
             "alternative": msg("{kind}. {figures}.", kind=msg("Ratios of throughput with their 95% intervals"),
                                figures=clauses(ratios) if ratios else NOT_KNOWN)}
    return page_templates(language).get_template("repeats.html.j2").render(
        _facts(repeats), language=language.code, chart=chart, table=Table(header, rows, frozenset(LEFT)))


def _facts(repeats: Repeats) -> dict[str, Any]:
    verdicts = {folder.name: worst(comparison.findings)
                for folder, comparison in zip(repeats.folders, repeats.comparisons, strict=True)}
    doubtful = [name for name, verdict in verdicts.items() if verdict in ("suspect", "invalid")]
    return {
        "repeats": repeats,
        "verdicts": verdicts,
        "standing": "invalid" if repeats.withheld else "suspect" if doubtful else "pass",
        "lead": _lead(repeats, doubtful),
        "design": msg("{count} repeats with seeds {seeds}, the methods in rotating order. Each repeat is audited by "
                      "itself; ratios are those within a repeat (geometric mean, 95% bootstrap interval).",
                      count=len(repeats.comparisons), seeds=enumerated(map(str, repeats.seeds))),
        "conclusions": [_difference(method) for method in repeats.ranking if method.name != BASELINE],
    }


def _lead(repeats: Repeats, doubtful: list[str]) -> Text:
    """The verdict on all repeats, in one sentence."""
    if repeats.withheld:
        return msg("NOT COMPARABLE: ranking and speed-ups are withheld, because:")
    if doubtful:
        return msg("COMPARABLE WITH RESERVATIONS: the audit doubts or rejects figures of {names}; see their reports.",
                   names=joined(doubtful))
    return msg("COMPARABLE: the audit of no repeat objects to anything.")


def _difference(method: Repeated) -> Text:
    """What the ratio to DDP allows to be said."""
    ratio = method.ratio
    if ratio is None:
        return msg("{name}: not compared; it takes two repeats in which it and baseline_ddp are sound.",
                   name=method.name)
    facts = {"name": method.name, "low": number(ratio.low, 3), "high": number(ratio.high, 3), "n": ratio.n}
    if ratio.shown:
        return msg("{name} is {change} {direction} than baseline_ddp ({low} to {high} times its throughput, {n} "
                   "pairs).", change=percent(abs(ratio.ratio - 1)),
                   direction=msg("faster") if ratio.ratio > 1 else msg("slower"), **facts)
    if ratio.low > 1 or ratio.high < 1:
        return msg("{name} against baseline_ddp: no difference shown yet ({low} to {high} times its throughput): {n} "
                   "pairs are too few to trust this interval; run more --repeats.", **facts)
    return msg("{name} against baseline_ddp: no difference shown ({low} to {high} times its throughput, {n} pairs).",
               **facts)


def _interval(ratio: PairedRatio) -> Text:
    return msg("{median} ({low} to {high})", median=f"{ratio.ratio:.3f}", low=f"{ratio.low:.3f}",
               high=f"{ratio.high:.3f}")


def _rows(repeats: Repeats) -> Rows:
    return [HEADER, *(_row(method, bool(repeats.withheld)) for method in repeats.methods)]


def _row(method: Repeated, withheld: bool) -> tuple[Text, ...]:
    speed, ratio = method.throughput, method.ratio
    against: Text = msg("withheld") if withheld else "1.000" if method.name == BASELINE else "-"
    return (
        shortened(method.name, NAME_WIDTH),
        number(speed.median if speed else None), _range(speed), str(speed.n if speed else 0),
        f"{ratio.ratio:.3f}" if ratio else against,
        f"{ratio.low:.3f} - {ratio.high:.3f}" if ratio else "-",
        number(method.final_loss.median if method.final_loss else None),
        f"{method.best_accuracy.median:.2f}" if method.best_accuracy else NOT_KNOWN,
        term(method.verdict),
    )


def _range(spread: Spread | None) -> Text:
    if spread is None:
        return NOT_KNOWN
    return msg("{low} - {high}", low=number(spread.low), high=number(spread.high))


def ratios_chart(repeats: Repeats) -> bytes:
    """Throughput against the baseline of the same repeat: the 95% interval a bar, the mean a tick."""
    methods = [method for method in repeats.methods if method.ratio]
    caption = ("Bar: 95% bootstrap interval of the mean ratio; tick: the mean; in words: whether a difference is "
               "shown. The line at 1 is DDP in the same repeat. Below: medians of final training loss and accuracy.")
    figure, (axes,) = new_chart(0.75 + 0.45 * max(2, len(methods)), "Throughput against DDP, by repeat",
                                caption if methods else "")
    if not methods:
        say_instead(axes, "no ratios: ranking is withheld, or fewer than two repeats have the baseline")
        return to_png(figure)
    for place, method in enumerate(methods):
        colour = canvas.METHOD_COLOURS.get(method.name, canvas.PURPLE)
        ratio = method.ratio
        axes.barh(place, max(ratio.high - ratio.low, 0.002), 0.3, left=ratio.low, color=colour, alpha=0.45)
        axes.plot([ratio.ratio, ratio.ratio], [place - 0.22, place + 0.22], color=colour, linewidth=2)
        words = f"{ratio.ratio:.2f}x, n = {ratio.n}" + ("" if ratio.shown else ", no difference shown")
        axes.annotate(words, (ratio.high, place), (4, 0), textcoords="offset points", va="center", color=INK,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        axes.text(ratio.low, place + 0.36, _bought(method), va="center", fontsize=5.8, color=FAINT,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})
    axes.axvline(1, color=canvas.BLUE, linewidth=1, zorder=1)
    low, high = min(m.ratio.low for m in methods), max(m.ratio.high for m in methods)
    axes.set_xlim(min(low, 1) - 0.1, max(high, 1) + 0.45)
    axes.set_ylim(len(methods) - 0.4, -0.5)
    axes.set_yticks(range(len(methods)), [shortened(method.name, 18) for method in methods])
    axes.set_xlabel("throughput / throughput of DDP")
    return to_png(figure)


def _bought(method: Repeated) -> str:
    loss, best = method.final_loss, method.best_accuracy
    return (f"loss {number(loss.median if loss else None, 3)}, acc. "
            + (f"{best.median:.2f} %" if best else "not known"))
