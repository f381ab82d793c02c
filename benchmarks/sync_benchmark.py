"""All synchronisation methods side by side, in one job: the exchange alone, and the full training step.

    python benchmarks/sync_benchmark.py                                   # ResNet-18 and ResNet-50 at 2 and 4 ranks
    python benchmarks/sync_benchmark.py --ranks 4 --models resnet18 --rows baseline_ddp,ps,ps_pipelined,rpc,raw_p2p
    OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 benchmarks/sync_benchmark.py --models resnet18
    sudo python benchmarks/emulated_cluster.py --rate 1gbit --script benchmarks/sync_benchmark.py --models resnet18

Every row has a model of its own in the same processes. A round visits all rows, another one first each time, for
--steps steps from a common start until the slowest replica holds the new parameters; the first round warms up and is
dropped. The table gives medians over the rounds with quartiles, and the median of the rounds' ratios to a reference
row; --json FILE keeps every figure. Rows are variants as --methods of run_all_experiments.sh calls them, and:

    none             the step without synchronisation
    stock_ddp        DistributedDataParallel and SGD with their defaults: buffers broadcast in every forward pass,
                     gradients copied out of the buckets, an optimizer that is not fused
    rpc              a parameter server written with torch.distributed.rpc; ranks of one host read tensors out of
                     each other's memory
    rpc_sockets      the same, its tensors through sockets, as between hosts; in a job without rpc
    raw_all_reduce   the bytes of the gradients in one all-reduce, with no work around it
    raw_p2p          the same bytes between rank 0 and every other one, both directions at once (isend, irecv)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import Measurement, table
from gradsync.config import OneLineParser, TrainConfig
from gradsync.distributed import read_launch
from gradsync.errors import UsageError
from gradsync.files import write_text_atomically

ROWS = ("none", "stock_ddp", "baseline_ddp", "all_reduce", "all_reduce_flat", "all_reduce_bucketed",
        "all_reduce_overlapped", "ps", "ps_flat", "ps_pipelined", "ps_pipelined_2servers", "rpc", "raw_all_reduce",
        "raw_p2p")


def parse() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    parser.add_argument("--models", default="resnet18,resnet50", help="of torchvision (default: %(default)s)")
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks, unless torchrun says (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds, at least 10 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of a row in a round (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="per replica (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--bucket-mb", type=float, help="as in the training scripts")
    parser.add_argument("--chunk-mb", type=float, default=TrainConfig.chunk_mb,
                        help="as in the training scripts (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write every round's figures")
    flags = parser.parse_args()
    if flags.rounds < 10:
        raise UsageError(f"--rounds {flags.rounds}: fewer than 10 rounds say nothing; give 10 or more")
    if {"rpc", "rpc_sockets"} <= set(flags.rows.split(",")):
        raise UsageError("--rows rpc,rpc_sockets: a process has one set of rpc channels; measure each in its own job")
    return flags


def start_jobs(flags: argparse.Namespace) -> list[Measurement]:
    """One torchrun after the other, a number of ranks each."""
    measurements = []
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    for ranks in flags.ranks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "figures.json"
            arguments = [word for word in sys.argv[1:] if not word.startswith("--json=")]
            if "--json" in arguments:
                del arguments[arguments.index("--json"):][:2]
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
                       __file__, *arguments, f"--json={file}"]
            if subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads}, check=False).returncode:
                raise UsageError(f"--ranks {ranks}: this job failed")
            measurements += [Measurement(**one) for one in json.loads(file.read_text())]
    return measurements


def main() -> int:
    flags = parse()
    launch = read_launch()
    if launch.by_torchrun:
        from benchmarks.rows import run_job

        measurements = run_job(launch, flags)
        if measurements and not flags.json:
            print(*map(table, measurements), sep="\n\n", flush=True)
    else:
        measurements = start_jobs(flags)
        print(*map(table, measurements), sep="\n\n", flush=True)
    if measurements and flags.json:
        write_text_atomically(Path(flags.json), json.dumps([vars(one) for one in measurements], indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
