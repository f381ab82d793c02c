"""The report and the chart over all repeats; each repeat has its own report beside its results."""

from __future__ import annotations

from pathlib import Path

from gradsync.analysis import canvas
from gradsync.analysis.canvas import FAINT, INK, new_chart, quiet_matplotlib, say_instead, to_png
from gradsync.analysis.figures import Spread
from gradsync.analysis.layout import aligned, display_width, shortened
from gradsync.analysis.load import BASELINE
from gradsync.analysis.message import ENGLISH, Language, Text, enumerated, msg, term
from gradsync.analysis.output import render
from gradsync.analysis.repeats import Repeated, Repeats
from gradsync.analysis.report import templates
from gradsync.analysis.words import NOT_KNOWN, number

NAME_WIDTH = 22
HEADER: tuple[Text, ...] = (
    msg("Method"), msg("img/s, median"), msg("min - max"), "n", msg("against baseline_ddp"), msg("95% interval"),
    msg("Final train loss"), msg("Best val acc. %"), msg("Verdict"),
)


def render_repeats(repeats: Repeats, language: Language = ENGLISH) -> dict[Path, bytes]:
    """Relative path and content of each file: those of every repeat, then what is said of all of them."""
    files = {Path(folder.name) / path: content
             for folder, comparison in zip(repeats.folders, repeats.comparisons, strict=True)
             for path, content in render(comparison, language).items()}
    with quiet_matplotlib():
        files[Path("plots") / "repeats.png"] = ratios_chart(repeats)
    files[Path("performance_report.txt")] = summary(repeats, language).encode("utf-8", "backslashreplace")
    return files


def summary(repeats: Repeats, language: Language = ENGLISH) -> str:
    """Table, conclusions, and where the single repeats are described."""
    return templates(language).get_template("repeats.txt.j2").render(
        repeats=repeats, table=_table(repeats, language), seeds=enumerated(map(str, repeats.seeds)),
        differences=[method for method in repeats.ranking if method.name != BASELINE],
    )


def _table(repeats: Repeats, language: Language) -> list[str]:
    rows = [HEADER, *(_row(method, bool(repeats.withheld)) for method in repeats.methods)]
    lines = aligned([[language(cell) for cell in row] for row in rows], left=(0, len(HEADER) - 1))
    return [lines[0], "-" * max(map(display_width, lines)), *lines[1:]]


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
    """Throughput against the baseline of the same repeat: each repeat a dot, the 95% interval a bar."""
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
        axes.text(ratio.low, place + 0.36, _bought(method), va="center", fontsize=5.8, color=FAINT)
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
