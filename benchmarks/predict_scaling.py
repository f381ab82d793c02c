"""Predict step times on other links and with more replicas: a cost model, always with its error beside it.

    torchrun --nproc_per_node=4 baseline_multi_card.py --probe-links      # measures your model, device and links
    python benchmarks/predict_scaling.py                                  # on the links as probed
    python benchmarks/predict_scaling.py --links 1gbit,25gbit,400gbit --latency-us 10
    python benchmarks/predict_scaling.py --links 100gbit --all-reduce tree --lang zh
    python benchmarks/predict_scaling.py --grid-only                      # the model alone: its fit, its errors

Reads the results files of a directory. Of the runs made with --probe-links, one gives the compute profile and the
links; every one of them is also predicted and compared with what it measured. How far the model can be trusted
is found on a grid of measured cells (--grid, benchmarks/cost_grid.py makes one): it is fitted to one half and judged
by the other. Writes plots/projection.png, plots/crossover.png and cost_model.txt.
Exit codes: 0 done, 1 could not write (disk full), 2 input that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gradsync.analysis.cost_grid import read_grid
from gradsync.analysis.cost_report import render_cost_model
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.load import load
from gradsync.analysis.message import printable
from gradsync.analysis.output import write
from gradsync.analysis.projection import MOST_LINKS
from gradsync.config import OneLineParser
from gradsync.errors import RunError, UsageError
from gradsync.rates import bits_per_second

GRID = Path(__file__).resolve().parent / "cost_grid.json"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("."), metavar="DIR",
                        help="where the results_*.json are (default: .)")
    parser.add_argument("--output-dir", type=Path, default=Path("."), metavar="DIR",
                        help="for cost_model.txt and plots/, made if need be (default: .)")
    parser.add_argument("--links", default="", metavar="RATE,...",
                        help="of a replica's link in each direction, as in 10gbit (default: the link as probed)")
    parser.add_argument("--latency-us", type=float, metavar="US",
                        help="of a message between two of those (default: as probed)")
    parser.add_argument("--all-reduce", choices=("ring", "tree"), default="ring",
                        help="how all-reduces are made: gloo's ring, or double binary trees (default: %(default)s)")
    parser.add_argument("--grid", type=Path, default=GRID, metavar="FILE",
                        help="measured cells to fit and to judge the model (default: those that come with it)")
    parser.add_argument("--grid-only", action="store_true", help="no results are read, and nothing is projected")
    parser.add_argument("--lang", choices=tuple(LANGUAGES), default="en",
                        help="of the text; charts stay English (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.latency_us is not None and not 0 <= arguments.latency_us < 1e6:
        raise UsageError(f"--latency-us {arguments.latency_us:g}: give microseconds from 0 to 1000000")
    arguments.rates = {name: bits_per_second(name, "--links") for name in arguments.links.split(",") if name}
    if len(arguments.rates) > MOST_LINKS:
        raise UsageError(f"--links {arguments.links}: at most {MOST_LINKS} fit into one picture")
    return arguments


def main(argv: list[str] | None = None) -> int:
    try:
        flags = parse(argv)
        runs = [] if flags.grid_only else load(flags.results_dir).runs
        latency = None if flags.latency_us is None else flags.latency_us / 1e6
        text, files = render_cost_model(read_grid(flags.grid), None if flags.grid_only else runs, flags.rates, latency,
                                        flags.all_reduce == "tree", LANGUAGES[flags.lang])
        written = write(flags.output_dir, files)
    except (UsageError, RunError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    encoding = sys.stdout.encoding or "utf-8"
    shown = "\n".join([text, *(f"-> {path}" for path in written)]) + "\n"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
