"""The comparison over two hosts, and how it ends when one of them fails. The hosts are network namespaces."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from announcement import wait_for_word
from emulated import two_hosts
from kill_once import killed_once

from benchmarks.namespaces import Hosts
from gradsync.results import read_results

TOP = Path(__file__).resolve().parent.parent
FAULTS = TOP / "tests" / "faults"
PORT = "29500"
SECONDS = 400  # two hosts share the cores of one, and every rank imports torch


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def start(hosts: Hosts, index: int, command: Sequence[str | Path], folder: Path, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "TORCH_CPP_LOG_LEVEL": "ERROR", **more}
    return subprocess.Popen(hosts.command(index, [str(word) for word in command]), cwd=folder, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def where(hosts: Hosts, index: int) -> list[str]:
    return ["--nnodes", "2", "--node-rank", str(index), "--master-addr", hosts.addresses[0], "--master-port", PORT]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, list[str]]]:
    """Of each: exit code, standard output, and the lines on standard error that begin with ``error:``."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out, [line for line in errors.splitlines() if line.startswith("error: ")])
            for process, (out, errors) in zip(processes, said, strict=True)]


def compare(hosts: Hosts, index: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    flags = ["--nproc", "2", "--methods", "all_reduce,ps_2servers", "--max-steps", "2", "--output-dir", folder, *more]
    return start(hosts, index, [TOP / "run_all_experiments.sh", *where(hosts, index), *flags], folder)


@pytest.mark.slow
def test_the_one_shot_script_on_two_hosts(hosts, tmp_path):
    """Two ranks each, no shared directory. The recorder of two servers is on host 1, yet host 0 gets all results."""
    folders = [tmp_path / f"on host {index}" for index in range(2)]
    for folder in folders:
        folder.mkdir()
        (folder / "results_all_reduce.json").write_text("earlier")
    outcomes = finish([compare(hosts, index, folder) for index, folder in enumerate(folders)])
    assert [(code, errors) for code, _, errors in outcomes] == [(0, []), (0, [])], outcomes
    for name in ("all_reduce", "ps_2servers"):
        results = read_results(folders[0] / f"results_{name}.json")
        environment = results.environment
        assert (results.world_size, environment.num_hosts, environment.ranks_per_host) == (4, 2, 2)
        assert environment.transport == "gloo over TCP (eth0)"
        assert (folders[0] / "saved_models" / f"{name}_best.pth").is_file()
    assert "COMPARABLE" in (folders[0] / "performance_report.txt").read_text()
    assert len(list((folders[0] / "previous_results").iterdir())) == 1
    left_alone = [path for path in folders[1].rglob("*") if path.is_file()]
    assert [path.read_text() for path in left_alone] == ["earlier"], left_alone
    assert re.search(r"\[ok\] +gloo: +all-reduce of 1 MiB over 4 ranks verified", outcomes[0][1])
    assert f"on host 0 (--master-addr {hosts.addresses[0]}), in its output directory" in outcomes[1][1]

    # Host 1, which has no results, believes host 0 that there is nothing left to do.
    (folders[1] / "results_all_reduce.json").unlink()
    again = finish([compare(hosts, index, folder, "--resume") for index, folder in enumerate(folders)])
    assert [(code, errors) for code, _, errors in again] == [(0, []), (0, [])], again
    assert again[0][1].count("Already finished: ") == 2


def launch(hosts: Hosts, index: int, folder: Path, fault: dict[str, object]) -> subprocess.Popen[str]:
    """One rank on each host, under our launcher."""
    folder.mkdir()
    command = [sys.executable, TOP / "launch" / "torchrun.py", *where(hosts, index), "1", FAULTS / "inject.py",
               TOP / "all_reduce_train.py", "--max-steps", "6", "--timeout", "60", "--batch-size", "16"]
    return start(hosts, index, command, folder, FAULT=json.dumps([fault]), ANNOUNCE=str(folder.parent / "pipe"))


@pytest.mark.slow
def test_a_rank_of_one_host_is_killed(hosts, tmp_path):
    """Each host's user reads the cause; the host itself knows the signal."""
    fault = {"rank": 1, "action": "SIGKILL", "stage": "training", "epoch": 1, "step": 2}
    first, second = finish([launch(hosts, index, tmp_path / f"{index}", fault) for index in range(2)])
    assert (first[0], second[0]) == (1, 1)
    lost = r"error: all_reduce: rank 1 was lost(, killed by SIGKILL,)? in training.*, epoch 1, step [12]"
    for _, _, errors in (first, second):
        assert len(errors) == 1, errors
        assert re.fullmatch(lost, errors[0])
    assert "SIGKILL" in second[2][0]


@pytest.mark.slow
def test_a_host_dies(hosts, tmp_path):
    """All its processes at once, the launcher among them; and the other host does not wait for it."""
    os.mkfifo(tmp_path / "pipe")
    fault = {"rank": 1, "action": "announce", "stage": "training", "epoch": 1, "step": 2}
    processes = [launch(hosts, index, tmp_path / f"{index}", fault) for index in range(2)]
    wait_for_word(tmp_path / "pipe", processes[1])
    there = subprocess.run(["ip", "netns", "pids", hosts.names[1]], capture_output=True, text=True, check=True)
    for pid in there.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    (code, _, errors), (killed, _, _) = finish(processes)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert len(errors) == 1, errors
    assert re.fullmatch(r"error: all_reduce: rank 1 was lost in training.*, epoch 1, step [12]", errors[0])


def rendezvous(hosts: Hosts, index: int, backend: str) -> list[str]:
    if backend == "static":
        return where(hosts, index)
    return ["--nnodes", "2", "--rdzv-backend=c10d", f"--rdzv-endpoint={hosts.addresses[0]}:{PORT}",
            f"--rdzv-conf=is_host={int(index == 0)}", f"--local-addr={hosts.addresses[index]}"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_torchrun_restarts_the_ranks_of_all_hosts(backend, hosts, tmp_path):
    """A rank is killed; both agents restart theirs, which meet anew and go on from the checkpoint.

    With c10d the agent of the other host only follows, and does not count that as a restart.
    """
    (tmp_path / "script.py").write_text(killed_once("all_reduce_train", "lambda launch: script.AllReduce"))
    flags = ["--max-steps", "6", "--global-batch-size", "8", "--checkpoint-every", "3", "--resume", "--timeout", "60"]
    processes = [
        start(hosts, index, [sys.executable, "-m", "torch.distributed.run", *rendezvous(hosts, index, backend),
                             "--max-restarts=2", "--nproc-per-node=1", "script.py", *flags], tmp_path)
        for index in range(2)]
    outcomes = finish(processes)
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    results = read_results(tmp_path / "results_all_reduce.json")
    assert [(stop.epoch, stop.step) for stop in results.resumed_at] == [(1, 3)]
    assert len(results.all_losses) == 6
