"""Compare the runs whose results_*.json lie in one directory: a table, a report and plots.

    python analyze_results.py
    python analyze_results.py --results-dir runs/monday --output-dir reports/monday

Any subset of the results files will do; what is missing or does not add up is said.
Exit codes: 0 done, 1 could not write (disk full), 2 input or directory that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gradsync.analysis.comparison import compare
from gradsync.analysis.load import load
from gradsync.analysis.output import render, write
from gradsync.analysis.report import render_terminal
from gradsync.analysis.words import printable
from gradsync.config import OneLineParser
from gradsync.errors import RunError, UsageError


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("."), metavar="DIR",
                        help="where the results_*.json are (default: .)")
    parser.add_argument("--output-dir", type=Path, default=Path("."), metavar="DIR",
                        help="for performance_report.txt and plots/, made if need be (default: .)")
    try:
        arguments = parser.parse_args(argv)
        comparison = compare(load(arguments.results_dir))
        written = write(arguments.output_dir, render(comparison))
    except (UsageError, RunError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    text = render_terminal(comparison, written)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
