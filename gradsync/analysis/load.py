"""Which results files take part, and what each of them is called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradsync.analysis.message import Text, msg, printable
from gradsync.errors import UsageError
from gradsync.results import RunResults, read_results

BASELINE = "baseline_ddp"
SINGLE = "single"


@dataclass(frozen=True)
class Method:
    title: Text
    command: str  # that produces its results file
    without_it: Text  # what a comparison lacks if the file is missing


METHODS = {
    BASELINE: Method(msg("DDP"), "torchrun --nproc_per_node=N baseline_multi_card.py", msg("no speed-up")),
    "all_reduce": Method(
        msg("All-reduce"), "torchrun --nproc_per_node=N all_reduce_train.py", msg("not compared")),
    "ps": Method(msg("Parameter server"), "torchrun --nproc_per_node=N ps_train.py", msg("not compared")),
    SINGLE: Method(
        msg("Single device"), "python baseline_multi_card.py", msg("scaling efficiency is not known")),
}


@dataclass(frozen=True)
class Assumed:
    """What the user says about runs whose files do not say it."""

    gradient_bytes: float | None = None
    link_bytes_per_second: float | None = None


@dataclass(frozen=True)
class Run:
    """One results file. ``name`` is unique among the files read together and safe to print."""

    path: Path
    results: RunResults
    name: str
    title: Text
    assumed: Assumed = Assumed()

    @property
    def file(self) -> str:
        return printable(self.path.name)

    @property
    def family(self) -> str:
        """The method of which this is a variant, or the method itself."""
        return self.results.method_family or self.name

    @property
    def failed(self) -> bool:
        return self.results.status == "failed" or self.path.name.endswith(".failed.json")


@dataclass(frozen=True)
class Loaded:
    """Everything found in one directory: complete runs in the order of presentation, and failed ones."""

    directory: Path
    runs: list[Run]
    failed: list[Run]
    siblings: tuple[Run, ...] = ()  # runs of other repeats: they only tell how much a seed matters

    @property
    def missing(self) -> list[str]:
        """Known methods without a complete run."""
        present = {run.family for run in self.runs}
        return [name for name in METHODS if name not in present]


def load(directory: Path, assumed: Assumed = Assumed()) -> Loaded:
    """Read every ``results_*.json`` in ``directory``.

    Raises UsageError that names the file and line or key of the first unusable one, or says what to run
    where there is none.
    """
    if not directory.is_dir():
        raise UsageError(f"--results-dir {directory}: no such directory")
    # Our own file names first, so that a copy under another name does not take their place.
    paths = sorted(directory.glob("results_*.json"), key=lambda path: (_stem(path) not in METHODS, path.name))
    if not paths:
        raise UsageError(
            f"--results-dir {directory}: no results_*.json in it; run ./run_all_experiments.sh first, "
            "or any of baseline_multi_card.py, all_reduce_train.py and ps_train.py"
        )
    runs: list[Run] = []
    failed: list[Run] = []
    for path in paths:
        run = _run(path, {other.name for other in runs}, assumed)
        (failed if run.failed else runs).append(run)
    order = list(METHODS)
    runs.sort(key=lambda run: (order.index(run.family) if run.family in order else len(order), run.name))
    return Loaded(directory, runs, failed)


def _stem(path: Path) -> str:
    return path.name.removeprefix("results_").removesuffix(".json").removesuffix(".failed")


def _run(path: Path, taken: set[str], assumed: Assumed) -> Run:
    results = read_results(path)
    stem = _stem(path)
    # Older files call their method anything; the file name then says which of ours it is.
    key = stem if stem in METHODS and results.method not in METHODS else results.method
    known = METHODS.get(results.method_family or key)
    name = printable(key).strip() or printable(stem)
    title: Text = known.title if known else printable(results.title or name).strip() or name
    if known and results.variant:
        title = msg("{method} ({variant})", method=known.title, variant=printable(results.variant))
    if name in taken:
        file = printable(path.name)
        name, title = f"{name} ({file})", msg("{title} ({file})", title=title, file=file)
    return Run(path, results, name, title, assumed)
