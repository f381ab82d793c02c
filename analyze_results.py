"""Compare the runs whose results_*.json lie in one directory: a table, a report (as text and as a page) and plots.

    python analyze_results.py
    python analyze_results.py --results-dir runs/monday --output-dir reports/monday
    python analyze_results.py --lang zh
    python analyze_results.py --results-dir published --gradient-mb 102     # files that do not name their model

Any subset of the results files will do; what is missing or does not add up is said. Where the directory holds
repeat_1/ ... (of --repeats) or ranks_1/ ... (of --scaling) instead, they are analysed together.
Exit codes: 0 done, 1 could not write (disk full), 2 input or directory that cannot be used.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from gradsync.analysis.comparison import compare
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.load import Assumed, load
from gradsync.analysis.message import Language, printable
from gradsync.analysis.output import render, write
from gradsync.analysis.repeat_report import render_repeats, summary
from gradsync.analysis.repeats import compare_repeats, find_repeats
from gradsync.analysis.report import render_terminal
from gradsync.analysis.scaling import compare_study, find_study
from gradsync.analysis.scaling_report import render_study, study_summary
from gradsync.config import OneLineParser
from gradsync.errors import RunError, UsageError


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def analyse(results_dir: Path, output_dir: Path, assumed: Assumed, language: Language) -> str:
    """Compare what is there, one set of runs, repeats of it, or a study, and write it up. Returns what to print."""
    if points := find_study(results_dir):
        study = compare_study(points, assumed)
        write(output_dir, render_study(study, language))
        return study_summary(study, language)
    folders = find_repeats(results_dir)
    if folders:
        repeats = compare_repeats(folders, assumed)
        write(output_dir, render_repeats(repeats, language))
        return summary(repeats, language)
    comparison = compare(load(results_dir, assumed))
    written = write(output_dir, render(comparison, language))
    return render_terminal(comparison, written, language)


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("."), metavar="DIR",
                        help="where the results_*.json are (default: .)")
    parser.add_argument("--output-dir", type=Path, default=Path("."), metavar="DIR",
                        help="for performance_report.txt, report.html and plots/, made if need be (default: .)")
    parser.add_argument("--lang", choices=tuple(LANGUAGES), default="en",
                        help="of the report and of what is printed; charts stay English (default: %(default)s)")
    parser.add_argument("--gradient-mb", type=_positive, metavar="MB",
                        help="10^6 bytes of one set of gradients, for files that name no model (ResNet-50: 102)")
    parser.add_argument("--link-gbs", type=_positive, metavar="GB/S",
                        help="10^9 bytes per second that a link can carry in one direction, to judge bandwidths by "
                             "(default: a generous figure for the hardware that a file names, else PCIe 4.0)")
    try:
        arguments = parser.parse_args(argv)
        language = LANGUAGES[arguments.lang]
        assumed = Assumed(_scaled(arguments.gradient_mb, 1e6), _scaled(arguments.link_gbs, 1e9))
        text = analyse(arguments.results_dir, arguments.output_dir, assumed, language)
    except (UsageError, RunError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
