"""Check that this machine can run the comparison, and how long it will take.

    python check_environment.py
    python check_environment.py --nproc 4 --methods all_reduce,ps --epochs 10 --data-dir ./

Takes --nproc, --methods, --scaling and any flag of the training scripts. It starts the ranks for real: they do an
all-reduce whose result is verified, then a few steps of each method with the model, batch size and data that
were asked for. Nothing is trained, downloaded or written.

With --nnodes, --node-rank and --master-addr, started once on each of several hosts, the ranks are those of all hosts.

Exit codes: 0 this machine is fit, 1 something failed, 2 refused input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from gradsync import hosts
from gradsync.config import OneLineParser, TrainConfig, add_arguments, add_method_arguments
from gradsync.errors import RunError, UsageError
from gradsync.requirements_check import check_files
from gradsync.study import STUDIES, Scaling, expanded, rank_counts
from gradsync.variants import METHODS, parse_variant_name

if TYPE_CHECKING:  # importing torch takes seconds, and bad input is to be refused before
    from gradsync.preflight import Script

ROOT = Path(__file__).resolve().parent
MAX_RANKS = 1024
MAX_REPEATS = 1000


@dataclass(frozen=True)
class Scope:
    """What is to be compared: (method, settings) of each variant. ``nproc``: per host; None: as fits this machine."""

    nproc: int | None
    methods: tuple[tuple[str, dict[str, Any]], ...]
    repeats: int
    scaling: Scaling | None = None
    hosts: hosts.Hosts | None = None


def parse(argv: list[str]) -> tuple[TrainConfig, Scope, Path | None]:
    """(recipe, what is to be compared, file for the plan). Raises UsageError that names the flag."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    group = parser.add_argument_group("comparison")
    group.add_argument("--nproc", type=whole_number("ranks", MAX_RANKS), metavar="N",
                       help="ranks per host (default: the GPUs, or 4 on a CPU; of several hosts the GPUs, or 1)")
    group.add_argument("--methods", type=method_names, default=method_names(",".join(METHODS)), metavar="A,B",
                       help=f"of {','.join(METHODS)} (default: all), and variants of them: all_reduce_overlapped, "
                            "all_reduce_overlapped_fp16, ps_pipelined, ps_async_2servers ...")
    group.add_argument("--repeats", type=whole_number("repeats", MAX_REPEATS), default=1, metavar="N",
                       help="train everything N times with other seeds, methods in rotating order (default: 1)")
    group.add_argument("--scaling", type=lambda text: rank_counts(text, MAX_RANKS), metavar="N,N",
                       help="a speed-up study: the single device, and each method at these numbers of ranks, with "
                            "one global batch (strong scaling)")
    group.add_argument("--weak", action="store_true",
                       help="with --scaling: one batch per replica, so that the global batch grows (weak scaling)")
    group.add_argument("--study", choices=tuple(STUDIES),
                       help="a study by its name, that is, its flags; further ones prevail. "
                            + "; ".join(f"{name}: {shlex.join(words)}" for name, words in STUDIES.items()))
    hosts.add_arguments(parser)
    group.add_argument("--plan", type=Path, help=argparse.SUPPRESS)  # for run_all_experiments.sh
    add_arguments(parser)
    add_method_arguments(parser, [flag for flags in METHODS.values() for flag in flags])
    parsed = parser.parse_args(argv)
    several = hosts.taken_from(parsed, parsed.timeout)
    flags = {name: value for name, value in vars(parsed).items() if name not in hosts.NAMES}
    ranks, weak, _ = flags.pop("scaling"), flags.pop("weak"), flags.pop("study")
    scope = Scope(flags.pop("nproc"), flags.pop("methods"), flags.pop("repeats"), ranks and Scaling(ranks, weak),
                  several)
    plan = flags.pop("plan")
    config = TrainConfig(**flags)
    if scope.scaling:
        scope.scaling.check(config, scope.nproc, several)
    elif weak:
        raise UsageError("--weak: says how a study keeps its batch; add --scaling, such as --scaling 1,2,4")
    if config.seed + scope.repeats > 2**32:
        raise UsageError(f"--seed {config.seed}: too large for {scope.repeats} repeats, each of which takes the next")
    return config, scope, plan


def whole_number(what: str, highest: int) -> Callable[[str], int]:
    """A parser of the number of ``what``, from 1 to ``highest``."""
    def parse_number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= highest:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no number of {what}; give a whole number from 1 to {highest}")
        return int(text)

    return parse_number


def method_names(text: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(method, settings) of each variant, once, in the order given."""
    chosen = {}
    for name in text.split(","):
        try:
            chosen[name.strip()] = parse_variant_name(name.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{str(error)!r} is unknown; choose from {','.join(METHODS)} and their variants") from None
    return tuple(chosen.values())


def preload_torch() -> None:
    """Start the fork server of the ranks, which imports torch while this process does so too."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    multiprocessing.set_forkserver_preload(["gradsync.preflight"])
    forkserver.ensure_running()


def load_scripts(methods: tuple[tuple[str, dict[str, Any]], ...]) -> tuple[Script, ...]:
    """The training scripts of the methods. Imports torch."""
    from all_reduce_train import AllReduce
    from baseline_multi_card import Baseline
    from gradsync.preflight import Script
    from ps_train import ParameterServer, ParameterServerWorker

    scripts = {
        "baseline_ddp": Script("baseline_multi_card.py", Baseline),
        "all_reduce": Script("all_reduce_train.py", AllReduce),
        "ps": Script("ps_train.py", ParameterServerWorker, ParameterServer),
    }
    return tuple(replace(scripts[name], settings=tuple(settings.items())) for name, settings in methods)


def single_device() -> Script:
    """The script of a study's reference, which torchrun does not start. Imports torch."""
    from baseline_multi_card import SingleDevice
    from gradsync.preflight import Script

    return Script("baseline_multi_card.py", SingleDevice)


def leave(number: int, frame: FrameType | None) -> None:
    """Leave by way of every ``finally``, one of which ends the ranks."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: list[str] | None = None) -> int:
    try:
        flags = expanded(sys.argv[1:] if argv is None else argv)
        config, scope, plan_file = parse(flags)
        lacking = check_files([ROOT / "requirements.txt"])
        if lacking:
            print(f"error: packages: {', '.join(lacking)}; ./run_all_experiments.sh sets up a .venv that has them",
                  file=sys.stderr)
            return 1
        if scope.hosts:  # to whose addresses no name may belong, of each of which torch would warn
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        preload_torch()
        start = time.process_time()
        from gradsync.survey import Survey

        survey = Survey(config, scope.nproc, load_scripts(scope.methods), scope.repeats,
                        import_seconds=time.process_time() - start, scaling=scope.scaling, single=single_device(),
                        hosts=scope.hosts)
        if plan_file:
            plan_file.write_text(survey.plan(flags), encoding="utf-8", errors="surrogateescape")
        return survey.report(flags)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    sys.exit(main())
