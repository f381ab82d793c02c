"""Step times over a grid of hosts and link rates, for the cost model to be fitted to and judged by.

    sudo python benchmarks/cost_grid.py                                                 # takes about half an hour
    sudo python benchmarks/cost_grid.py grid.json --hosts 2,4 --rates 1gbit --rows baseline_ddp,ps

Each cell is one job on emulated hosts (emulated_cluster.py), one rank each, in which all rows take turns, and in which
each compute profile is measured while all replicas compute. A cell that is in FILE already is not measured again, so an
interrupted grid goes on where it stopped. FILE holds medians and quartiles in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import quartiles
from gradsync.config import OneLineParser, TrainConfig
from gradsync.distributed import Launch, read_launch
from gradsync.errors import RunError, UsageError
from gradsync.files import write_text_atomically
from gradsync.rates import bits_per_second

if TYPE_CHECKING:
    from benchmarks.rows import Job
    from gradsync.probed import ComputeProfile

ROOT = Path(__file__).resolve().parent.parent
HOSTS = "2,3,4"
RATES = "100mbit,300mbit,1gbit,3gbit,10gbit"
ROWS = ("none,baseline_ddp,all_reduce,all_reduce_flat,all_reduce_overlapped,all_reduce_overlapped_fp16,"
        "all_reduce_overlapped_powersgd,ps,ps_flat,ps_pipelined,ps_pipelined_2servers")
# By bits/s: measured rounds and steps a round. A slow link spreads little and takes long: at 100 Mbit/s four hosts
# need 80 s for one step of each row.
EFFORT = {200e6: (2, 1), 500e6: (3, 1), float("inf"): (4, 2)}
PROFILED_STEPS = 2  # in a round


def parse() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    parser.add_argument("file", type=Path, nargs="?", default=Path("cost_grid.json"), metavar="FILE",
                        help="cells are added to it (default: %(default)s)")
    parser.add_argument("--hosts", default=HOSTS, help="numbers of hosts (default: %(default)s)")
    parser.add_argument("--rates", default=RATES, help="of each host's link, both directions (default: %(default)s)")
    parser.add_argument("--rows", default=ROWS, help="as in sync_benchmark.py (default: %(default)s)")
    parser.add_argument("--model", default="resnet18", help="of torchvision (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="per replica (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--max-cells", type=int, help="stop after so many new cells")
    return parser.parse_args()


def measure_grid(flags: argparse.Namespace) -> None:
    """One job after the other. Raises RunError where one fails."""
    cells = json.loads(flags.file.read_text()) if flags.file.exists() else []
    known = {(cell["hosts"], cell["rate"]) for cell in cells}
    wanted = [(int(hosts), rate) for rate in flags.rates.split(",") for hosts in flags.hosts.split(",")]
    todo = [(hosts, rate) for hosts, rate in wanted if (hosts, bits_per_second(rate)) not in known]
    for hosts, rate in todo[: flags.max_cells]:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "cell.json"
            command = [sys.executable, str(ROOT / "benchmarks" / "emulated_cluster.py"), f"--hosts={hosts}",
                       f"--rate={rate}", f"--script={__file__}", str(part), f"--rates={rate}", f"--rows={flags.rows}",
                       f"--model={flags.model}", f"--batch-size={flags.batch_size}",
                       f"--image-size={flags.image_size}"]
            if subprocess.run(command, check=False).returncode:
                raise RunError(f"{hosts} hosts at {rate}: this job failed")
            cells.append(json.loads(part.read_text()))
        write_text_atomically(flags.file, json.dumps(cells, indent=1) + "\n")


def measure_cell(launch: Launch, flags: argparse.Namespace) -> dict[str, Any] | None:
    """One rank's part of a cell; the cell on the last rank, which never serves, and nothing on the others."""
    from benchmarks.rows import RPC_SECONDS, Job, contexts_by_servers
    from gradsync.distributed import choose_backend, process_group
    from gradsync.link_probe import probe_links

    rate = bits_per_second(flags.rates)
    rounds, flags.steps = next(effort for limit, effort in EFFORT.items() if rate < limit)
    flags.bucket_mb, flags.chunk_mb = None, TrainConfig().chunk_mb
    backend, device = choose_backend("auto", launch)
    with process_group(launch, backend, device, 0, RPC_SECONDS) as ctx:
        links = probe_links(ctx)
        job = Job(contexts_by_servers(ctx, flags.rows.split(",")), flags.model, flags)
        seconds, profiles = measure_rounds(job, rounds)
    return None if launch.rank != launch.world_size - 1 else {
        "hosts": launch.world_size, "rate": rate, "cores": os.cpu_count(), "model": flags.model,
        "batch_size": flags.batch_size, "image_size": flags.image_size, "rounds": rounds, "steps": flags.steps,
        "bucket_mb": job.config.bucket_mb, "chunk_mb": job.config.chunk_mb,
        "step": {row: quartiles(values) for row, values in seconds.items()},
        "profiles": {servers: profile.model_dump() for servers, profile in profiles.items()},
        "links": {"latency": links.latency, "bandwidth": links.bandwidth,
                  "all_reduce": {sample.bytes: sample.seconds for sample in links.all_reduce}},
    }


def measure_rounds(job: Job, rounds: int) -> tuple[dict[str, list[float]], dict[int, ComputeProfile]]:
    """Seconds of a step by row, a figure a round; the compute profiles by number of servers, observed in between.

    The round before them warms up.
    """
    from gradsync.compute_profile import ComputeProfiler
    from gradsync.method import Method

    ctx, names, found = job.ctx, list(job.rows), defaultdict(list)
    profilers = {servers: ComputeProfiler(Method(job.copy(), job.config, context, job.plan))
                 for servers, context in job.contexts.items() if not context.is_server}
    for number in range(rounds + 1):
        if ctx.rank == 0:
            print(f"{ctx.world_size} hosts: round {number} of {rounds}", file=sys.stderr, flush=True)
        for name in names[number % len(names):] + names[: number % len(names)]:
            seconds = job.visit(job.rows[name], job.rows[name].step)
            if number:
                found[name].append(seconds)
        for servers, context in job.contexts.items():
            if number and not context.is_server:
                for _ in range(PROFILED_STEPS):
                    profilers[servers].observe(job.batch(context))
            ctx.barrier()  # servers must not go on meanwhile
    return found, {servers: profiler.finish() for servers, profiler in profilers.items()}


def main() -> int:
    flags = parse()
    launch = read_launch()
    if not launch.by_torchrun:
        measure_grid(flags)
    elif cell := measure_cell(launch, flags):
        write_text_atomically(flags.file, json.dumps(cell))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
