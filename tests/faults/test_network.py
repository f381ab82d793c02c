"""The link between two hosts goes down, for longer and for shorter than --timeout. The hosts are network namespaces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from announcement import wait_for_word
from emulated import two_hosts
from jobs import HERE, TOP

from benchmarks.namespaces import Hosts

TIMEOUT = 15
DOWN = {"rank": 1, "action": "wait_for_go", "stage": "training", "epoch": 1, "step": 3, "phase": "forward_backward"}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def start(hosts: Hosts, index: int, folder: Path, *faults: dict[str, object]) -> subprocess.Popen[str]:
    """One rank of an all-reduce job of two, on a host of its own."""
    folder.mkdir()
    environment = {
        **os.environ, "MASTER_ADDR": hosts.addresses[0], "MASTER_PORT": "29400", "RANK": str(index), "LOCAL_RANK": "0",
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "FAULT": json.dumps(faults),
        "ANNOUNCE": str(folder.parent / "pipe")}
    command = [sys.executable, HERE / "inject.py", TOP / "all_reduce_train.py", "--max-steps", "6", "--timeout",
               str(TIMEOUT), "--batch-size", "16"]
    return subprocess.Popen(hosts.command(index, [str(word) for word in command]), cwd=folder, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str]]]:
    """Of each, the exit code and the lines that begin with ``error:``."""
    try:
        said = [process.communicate(timeout=90)[1].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, [line for line in lines if line.startswith("error: ")])
            for process, lines in zip(processes, said, strict=True)]


@pytest.fixture
def cut_off(hosts: Hosts, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Two ranks in the middle of a step, when the link of the second has just gone down."""
    os.mkfifo(tmp_path / "pipe")
    processes = [start(hosts, 0, tmp_path / "a"), start(hosts, 1, tmp_path / "b", DOWN)]
    wait_for_word(tmp_path / "pipe", processes[1])
    hosts.set_link(1, up=False)
    (tmp_path / "b" / "go").touch()
    return processes


@pytest.mark.slow
def test_a_link_that_stays_down(cut_off):  # row 32
    """Neither side can tell the other, so each names what it misses. The job's store is with rank 0."""
    (code, (first,)), (other_code, (second,)) = finish(cut_off)
    assert (code, other_code) == (1, 1)
    assert re.fullmatch(r"error: all_reduce: rank 1 has not answered for \d+ s \(stopped, or its host cannot be "
                        r"reached\), last seen in .+", first)
    assert re.fullmatch(r"error: all_reduce, rank 1: the launcher's store has not answered for \d+ s \(is its host, "
                        r"or the network, down\?\), in training.*, epoch 1, step 3", second)


@pytest.mark.slow
def test_a_link_that_comes_back(hosts: Hosts, cut_off):  # row 32
    with pytest.raises(subprocess.TimeoutExpired):  # a third of --timeout: long enough for a send to get lost
        cut_off[0].wait(TIMEOUT / 3)
    hosts.set_link(1, up=True)
    assert finish(cut_off) == [(0, []), (0, [])]
