"""What the shared loop costs: its step time against that of a bare DistributedDataParallel loop.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 benchmarks/overhead.py
    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 benchmarks/overhead.py --model resnet18 --rounds 9

Both loops run in the same processes on the same model, data and loader, in turn, the order changing from round
to round. Prints the median of the rounds' ratios, their quartiles and n; with --json FILE also every figure.
The target is a median of at most 1.02.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from baseline_multi_card import NO_BUFFER_SYNC, Baseline
from benchmarks.side_by_side import quartiles
from gradsync.checkpoint import Checkpoints
from gradsync.config import OneLineParser, Plan, TrainConfig, add_arguments
from gradsync.data import ReplicaData
from gradsync.distributed import process_group, read_launch
from gradsync.errors import UsageError
from gradsync.files import write_text_atomically
from gradsync.main import Prepared
from gradsync.method import Method
from gradsync.placement import place, replica_data
from gradsync.results import RunResults
from gradsync.timing import synchronize
from gradsync.training import train_epoch


def bare_epoch(network: DistributedDataParallel, optimizer: torch.optim.Optimizer, data: ReplicaData) -> None:
    """The loop of any DDP tutorial: no clock, no record."""
    network.train()
    for batch in data.train_batches():
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(batch.images), batch.labels).backward()
        optimizer.step()


def measure(method: Method, bare: DistributedDataParallel, data: ReplicaData, rounds: int) -> list[tuple[float, float]]:
    """(shared, bare) seconds per step of each round, on the slowest replica. The first round warms up."""
    ctx, config = method.ctx, method.config
    none = Checkpoints(ctx, Plan((), config.lr, config.lr_schedule))
    optimizer = torch.optim.SGD(bare.parameters(), lr=config.lr, momentum=config.momentum,
                                weight_decay=config.weight_decay)
    times = []
    for number in range(rounds + 1):
        data.sampler.set_epoch(number)
        loops = {
            "shared": lambda number=number: train_epoch(method, data, number, RunResults(method=method.name), none, {}),
            "bare": lambda: bare_epoch(bare, optimizer, data),
        }
        seconds = {}
        for name in (("shared", "bare") if number % 2 else ("bare", "shared")):
            synchronize(ctx.device)
            ctx.barrier()
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):  # the progress bar is drawn, and not shown
                epoch = loops[name]()
            synchronize(ctx.device)
            ctx.barrier()
            # The shared loop's own time has the same edges, and stops before it writes down its records of the epoch.
            seconds[name] = epoch[0].train_time if epoch else time.perf_counter() - start
        if number:
            times.append((seconds["shared"] / len(data.sampler), seconds["bare"] / len(data.sampler)))
    return times


def report(times: list[tuple[float, float]]) -> str:
    ratios = [shared / bare for shared, bare in times]
    low, median, high = quartiles(ratios)
    shared, bare = (statistics.median(column) * 1000 for column in zip(*times, strict=True))
    return (f"step: shared loop {shared:.2f} ms, bare loop {bare:.2f} ms (medians of {len(times)} rounds)\n"
            f"ratio: median {median:.4f}, quartiles {low:.4f} - {high:.4f}, n = {len(times)}")


def main() -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of one epoch each (default: 15)")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures")
    add_arguments(parser)
    flags = vars(parser.parse_args())
    rounds, file = max(7, flags.pop("rounds")), flags.pop("json")
    launch = read_launch()
    if not launch.by_torchrun:
        raise UsageError("start it with torchrun, as the examples of --help show")
    prepared = Prepared(Baseline, None, launch, TrainConfig(**flags))
    config = prepared.config
    with process_group(launch, prepared.backend, prepared.device, 0, config.timeout) as ctx:
        module = place(prepared.model, config, ctx)
        bare = DistributedDataParallel(deepcopy(module), gradient_as_bucket_view=True, **NO_BUFFER_SYNC)
        method = Baseline(module, config, ctx, prepared.plan)
        data = replica_data(prepared.data, config, ctx, prepared.global_batch, torch.float32)
        times = measure(method, bare, data, rounds)
        if ctx.is_recorder:
            print(report(times), flush=True)
            if file:
                write_text_atomically(Path(file), json.dumps({"shared_and_bare_seconds_per_step": times}, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
