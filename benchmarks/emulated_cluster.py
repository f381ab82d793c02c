"""A cluster on one machine: run the comparison, or any script of this project, on emulated hosts.

    sudo python benchmarks/emulated_cluster.py --hosts 4 --ranks-per-host 1 --rate 1gbit --methods baseline_ddp,ps
    sudo python benchmarks/emulated_cluster.py --hosts 2 --rate 100mbit --model resnet18 --output-dir slow_link
    sudo python benchmarks/emulated_cluster.py --hosts 2 --rate 1gbit --script benchmarks/sync_benchmark.py --rounds 10

Each host is a network namespace whose link carries --rate in each direction; the hosts share this machine's
processors, so the more ranks there are per core, the less compute times say. torchrun's own rendezvous, over
that network, starts the ranks. Without --script the methods are trained one after the other and compared, and
every further flag is one of the training scripts; with --script it is one of that script.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.namespaces import Hosts
from gradsync.config import OneLineParser
from gradsync.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PORT = 29400
GRACE_SECONDS = 40.0  # torchrun waits 30 s for a rank that does not react


def torchrun_command(hosts: Hosts, index: int, ranks_per_host: int, command: Sequence[str]) -> list[str]:
    """torchrun on one of the hosts, which all meet at the first."""
    options = [f"--nnodes={len(hosts.names)}", f"--nproc-per-node={ranks_per_host}", "--rdzv-backend=c10d",
               f"--rdzv-endpoint={hosts.addresses[0]}:{PORT}", f"--rdzv-conf=is_host={int(index == 0)}",
               f"--local-addr={hosts.addresses[index]}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *command]


def run_on_hosts(hosts: Hosts, ranks_per_host: int, command: Sequence[str]) -> int:
    """``command`` (a script and its flags) as one job over all hosts; the exit code of the first that failed."""
    defaults = {
        "OMP_NUM_THREADS": "1",  # the hosts share this machine's cores
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would warn that no name belongs to the emulated addresses
    }
    # The interfaces of this machine are not those of the hosts.
    own = {name: value for name, value in os.environ.items() if not name.endswith("_SOCKET_IFNAME")}
    environment = {**defaults, **own}
    agents = [
        subprocess.Popen(hosts.command(index, torchrun_command(hosts, index, ranks_per_host, command)),
                         env=environment, start_new_session=True)
        for index in range(len(hosts.names))
    ]
    try:
        return _first_failure(agents)
    finally:
        _end(agents)


def _first_failure(agents: list[subprocess.Popen[bytes]]) -> int:
    waiting = list(agents)
    while waiting:
        for agent in waiting:
            try:
                code = agent.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            if code:
                return code
            waiting.remove(agent)
            break
    return 0


def _end(agents: list[subprocess.Popen[bytes]]) -> None:
    for agent in agents:
        if agent.poll() is None:
            agent.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for agent in agents:
        try:
            agent.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            agent.kill()


def compare(hosts: Hosts, ranks_per_host: int, flags: list[str]) -> int:
    """Train with each method on the hosts, then analyse."""
    from check_environment import load_scripts, parse
    from gradsync.survey import Survey

    config, scope, _ = parse(flags)
    if scope.nproc is not None or scope.repeats > 1:
        raise UsageError("--nproc, --repeats: not here; the hosts and --ranks-per-host say how many ranks there are")
    survey = Survey(config, len(hosts.names) * ranks_per_host, load_scripts(scope.methods), 1, import_seconds=0.0)
    for script, prepared in zip(survey.scripts, survey.prepared, strict=True):
        print(f"\n=== {prepared.name} on {len(hosts.names)} hosts, {hosts.rate / 1e6:g} Mbit/s each ===", flush=True)
        command = [str(ROOT / script.file), *survey.training_flags(flags, prepared)]
        if code := run_on_hosts(hosts, ranks_per_host, command):
            return code
    analysis = [sys.executable, str(ROOT / "analyze_results.py"), f"--results-dir={config.output_dir}",
                f"--output-dir={config.output_dir}"]
    return subprocess.run(analysis, check=False).returncode


def main() -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    parser.add_argument("--hosts", type=int, default=2, help="emulated hosts (default: %(default)s)")
    parser.add_argument("--ranks-per-host", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--rate", default="1gbit", help="of each host's link, in each direction (default: %(default)s)")
    parser.add_argument("--script", help="run this script instead of the comparison")
    own, others = parser.parse_known_args()
    if own.ranks_per_host < 1:
        raise UsageError(f"--ranks-per-host {own.ranks_per_host}: give a whole number of at least 1")
    with Hosts(own.hosts, own.rate) as hosts:
        if own.script:
            return run_on_hosts(hosts, own.ranks_per_host, [own.script, *others])
        return compare(hosts, own.ranks_per_host, others)


def leave(number: int, frame: object) -> None:
    """Leave by way of every ``finally``."""
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        sys.exit(main())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
