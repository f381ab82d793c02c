"""The commands that documents show, parsed by the real parsers of the scripts that they name, which then do not run."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed.run import get_args_parser

import check_environment
from gradsync import variants
from gradsync.config import parse_config
from gradsync.errors import UsageError
from gradsync.study import expanded

TOP = Path(__file__).resolve().parent.parent
QUICK = "--quick"
Parse = Callable[[list[str]], Any]


class Parsed(Exception):
    """Ends a script that has read its flags."""


@contextlib.contextmanager
def stops_when_parsed() -> Iterator[None]:
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        yield


def only_parsed(module: str, entry: str) -> Parse:
    """For a script that reads its flags inside ``entry``: that, up to the moment when it has read them."""
    def parse(words: list[str]) -> None:
        function = getattr(importlib.import_module(module), entry)
        errors = io.StringIO()
        with mock.patch.object(sys, "argv", [module, *words]), contextlib.redirect_stderr(errors), \
                stops_when_parsed(), contextlib.suppress(Parsed):
            if function() == 2:
                raise UsageError(errors.getvalue().strip())

    return parse


def comparison(words: list[str]) -> None:
    check_environment.parse(expanded(words))


def training(method: str) -> Parse:
    return lambda words: variants.check(method, parse_config(words, None, variants.METHODS.get(method, ())))


def choosing(module: str) -> Parse:
    return lambda words: importlib.import_module(module).choose(words)


def sync_benchmark(words: list[str]) -> None:
    module, rows = importlib.import_module("benchmarks.sync_benchmark"), importlib.import_module("benchmarks.rows")
    with mock.patch.object(sys, "argv", ["sync_benchmark.py", *words]):
        for row in module.parse().rows.split(","):
            if row not in rows.SPECIAL:
                try:
                    variants.parse_variant_name(row)
                except ValueError as error:
                    raise UsageError(f"--rows {row}: unknown") from error


def emulated_cluster(words: list[str]) -> None:
    """Its own flags, then those that it hands on to the comparison or to a script."""
    module = importlib.import_module("benchmarks.emulated_cluster")
    rate = importlib.import_module("benchmarks.namespaces").bits_per_second
    replaced = mock.patch.multiple(
        module, Hosts=lambda count, text: nullcontext(rate(text)),
        compare=lambda hosts, ranks, flags: comparison(flags),
        run_on_hosts=lambda hosts, ranks, command: check_script(command, by_torchrun=True))
    with mock.patch.object(sys, "argv", ["emulated_cluster.py", *words]), replaced:
        module.main()


def tests_run(words: list[str]) -> None:
    for word in words:
        if word != QUICK and not (TOP / word).exists():
            raise UsageError(f"{word}: no such test")


SCRIPTS: dict[str, Parse] = {
    "baseline_multi_card.py": training("single"),
    "all_reduce_train.py": training("all_reduce"),
    "ps_train.py": training("ps"),
    "check_environment.py": comparison,
    "run_all_experiments.sh": comparison,
    "analyze_results.py": only_parsed("analyze_results", "main"),
    "cifar10/data_parallel_train.py": choosing("cifar10.data_parallel_train"),
    "cifar10/model_parallel_train.py": choosing("cifar10.model_parallel_train"),
    "cifar10/compare_parallel.py": choosing("cifar10.compare_parallel"),
    "benchmarks/sync_benchmark.py": sync_benchmark,
    "benchmarks/emulated_cluster.py": emulated_cluster,
    "benchmarks/cost_grid.py": only_parsed("benchmarks.cost_grid", "main"),
    "benchmarks/predict_scaling.py": only_parsed("benchmarks.predict_scaling", "main"),
    "benchmarks/overhead.py": only_parsed("benchmarks.overhead", "main"),
    "tests/run": tests_run,
}
BY_TORCHRUN = {"baseline_multi_card.py": training("baseline_ddp")}


def torchrun_parser() -> argparse.ArgumentParser:
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UsageError(f"torchrun: {message}")

    parser.error = refuse  # instead of leaving the process
    return parser


def check_script(words: Sequence[str], by_torchrun: bool) -> None:
    """Raises UsageError unless the first word is a script of this project that takes the others."""
    name, *rest = words
    name = os.path.normpath(name)
    if name not in SCRIPTS or not (TOP / name).exists():
        raise UsageError(f"{name}: no script of this project")
    (BY_TORCHRUN.get(name, SCRIPTS[name]) if by_torchrun else SCRIPTS[name])(rest)


def check_command(line: str) -> None:
    """Raises UsageError that says why this shell command would be refused."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UsageError(f"no command of a shell ({error})") from error
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if words[:1] == ["sudo"]:
        del words[0]
    program, rest = words[0], words[1:]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if program == "torchrun":
                flags = torchrun_parser().parse_args(rest)
                check_script([flags.training_script, *flags.training_script_args], by_torchrun=True)
            elif program == "python":
                check_script(rest, by_torchrun=False)
            elif program.startswith("./"):
                if not os.access(TOP / program, os.X_OK):
                    raise UsageError(f"{program}: not there, or not executable")
                check_script([program, *rest], by_torchrun=False)
            else:
                raise UsageError(f"{program}: neither torchrun, python nor a script of this project")
    except SystemExit as end:  # --help
        if end.code:
            raise UsageError(f"{line}: exit code {end.code}") from end


def parsers() -> list[argparse.ArgumentParser]:
    """Those that the scripts read their flags with, torchrun's among them."""
    seen = []
    original = argparse.ArgumentParser.parse_known_args

    def note(self, args=None, namespace=None):
        seen.append(self)
        return original(self, args, namespace)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", note):
        for script in SCRIPTS:
            with contextlib.suppress(UsageError):  # of one that needs a file; its parser has been seen by then
                check_command(f"./{script}" if os.access(TOP / script, os.X_OK) else f"python {script}")
        for script in BY_TORCHRUN:
            check_command(f"torchrun {script}")
    return seen
