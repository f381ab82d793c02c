"""Compare single device, data parallelism and model parallelism (plain and pipelined) under one recipe.

    python cifar10/compare_parallel.py --epochs 5 --batch-size 128
    python cifar10/compare_parallel.py --epochs 5 --batch-size 128 --dataset digits        # no data set needed
    OMP_NUM_THREADS=1 python cifar10/compare_parallel.py --dataset digits --epochs 5 --device cpu

The last one needs no GPU: a core stands in for a device, so it takes two cores. What needs more GPUs than there are is
skipped, and stays in the table with the reason. Prints the table and writes parallel_comparison.json,
plots/parallel_speedup.png, plots/loss_curves.png, plots/accuracy_curves.png and a results_*.json for each run, all in
cifar10_results/ unless --output-dir says otherwise; analyze_results.py --results-dir cifar10_results audits the runs.
"""

from __future__ import annotations

import dataclasses
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cifar10.comparison import Entry, ParallelComparison, complete_entry, draw, table
from cifar10.data_parallel_train import DataParallel
from cifar10.model_parallel_train import ModelParallel, Pipeline
from cifar10.one_process import (
    OneProcessConfig,
    OneProcessMethod,
    OneProcessRun,
    SingleDevice,
    add_chunks,
    config_of,
    find_devices,
    make_parser,
    open_data,
)
from gradsync.analysis.output import write
from gradsync.distributed import Launch
from gradsync.main import exit_code
from gradsync.results import TIME_FORMAT, encode_json
from gradsync.screen import say


def why_skipped(method: type[OneProcessMethod], config: OneProcessConfig) -> str:
    """The reason, or an empty string where this machine can run ``method`` in a way that means something."""
    devices = find_devices(config, 2)
    if method is SingleDevice or len(devices) == 2:
        return ""
    if config.device == "cpu":
        return "needs two GPUs; on a CPU nn.DataParallel does nothing" if method is DataParallel else ""
    needs = f"needs two GPUs, this machine has {'one' if devices[0].type == 'cuda' else 'none'}"
    return needs if method is DataParallel else f"{needs}; --device cpu runs it with both parts on the CPU"


class Study:
    """The runs of one comparison. Raises UsageError for input that they cannot use, before anything is trained."""

    def __init__(self, config: OneProcessConfig) -> None:
        plain = dataclasses.replace(config, chunks=1)
        methods = [(SingleDevice, plain), (DataParallel, plain), (ModelParallel, plain)]
        methods += [(Pipeline, config)] if config.chunks > 1 else []
        data = open_data(config)
        self.directory = Path(config.output_dir)
        self.plan: list[OneProcessRun | Entry] = []
        for method, own in methods:
            reason = why_skipped(method, own)
            self.plan.append(
                Entry(method=method.name, title=method.title, status="skipped", reason=reason) if reason
                else OneProcessRun(method, own, data))
        self.running: OneProcessRun | None = None

    def run(self) -> None:
        """Train, then print the table and write the comparison."""
        runs = [job for job in self.plan if isinstance(job, OneProcessRun)]
        start = datetime.now().strftime(TIME_FORMAT)
        for self.running in runs:
            self.running.run()
            say("")
        self.running = None
        single = runs[0].results
        entries = [job if isinstance(job, Entry) else complete_entry(job.results, single) for job in self.plan]
        comparison = ParallelComparison(
            start_time=start, end_time=datetime.now().strftime(TIME_FORMAT), dataset=single.dataset,
            model=single.model, recipe=single.recipe, environment=single.environment, entries=entries)
        pictures = draw(entries, [run.results for run in runs], self.directory)
        written = write(self.directory, pictures | {Path("parallel_comparison.json"): encode_json(comparison)})
        say("\n".join(table(entries)))
        say("Written: " + ", ".join(map(str, written)))

    def report_failure(self, error: Exception) -> int:
        if self.running is not None:
            return self.running.report_failure(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def choose(argv: list[str] | None = None) -> OneProcessConfig:
    parser = make_parser(__doc__)
    add_chunks(parser, 4, "1 leaves the pipelined run out")
    return config_of(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(exit_code(Launch(), lambda: Study(choose())))
