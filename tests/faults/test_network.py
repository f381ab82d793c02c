"""The link between two hosts goes down, for longer and for shorter than --timeout.

The hosts are network namespaces, joined by a pair of virtual interfaces.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import HERE, TOP, wait_for_word

TIMEOUT = 15


@dataclass
class Hosts:
    """Two hosts, a and b, with addresses 10.213.77.1 and .2."""

    names: tuple[str, str]

    def link(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.names[1], "link", "set", "eth", state], check=True)

    def start(self, host: int, folder: Path, *faults: dict[str, object]) -> subprocess.Popen[str]:
        """One rank of an all-reduce job of two."""
        folder.mkdir()
        environment = {
            **os.environ, "MASTER_ADDR": "10.213.77.1", "MASTER_PORT": "29400", "WORLD_SIZE": "2", "RANK": str(host),
            "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "eth", "FAULT": json.dumps(faults),
            "ANNOUNCE": str(folder.parent / "pipe")}
        command = [sys.executable, HERE / "inject.py", TOP / "all_reduce_train.py", "--max-steps", "6", "--timeout",
                   str(TIMEOUT), "--batch-size", "16"]
        return subprocess.Popen(["ip", "netns", "exec", self.names[host], *map(str, command)], cwd=folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    mark = uuid.uuid4().hex[:6]
    hosts = Hosts((f"gsa{mark}", f"gsb{mark}"))
    made = subprocess.run(["ip", "netns", "add", hosts.names[0]], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this host lets nobody make network namespaces: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "netns", "add", hosts.names[1]], check=True)
        subprocess.run(["ip", "-n", hosts.names[0], "link", "add", "eth", "type", "veth",
                        "peer", "name", "eth", "netns", hosts.names[1]], check=True)
        for number, name in enumerate(hosts.names, start=1):
            subprocess.run(["ip", "-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", "eth"], check=True)
            for interface in ("lo", "eth"):
                subprocess.run(["ip", "-n", name, "link", "set", interface, "up"], check=True)
        yield hosts
    finally:
        for name in hosts.names:
            with suppress(subprocess.CalledProcessError):
                subprocess.run(["ip", "netns", "del", name], check=True, capture_output=True)


def finish(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """(exit codes, all lines that begin with ``error:``)"""
    try:
        errors = [line for process in processes for line in process.communicate(timeout=90)[1].splitlines()]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [line for line in errors if line.startswith("error: ")]


DOWN = {"rank": 1, "action": "wait_for_go", "stage": "training", "epoch": 1, "step": 3, "phase": "forward_backward"}


@pytest.mark.slow
def test_a_link_that_stays_down(hosts: Hosts, tmp_path):  # row 32
    """Neither side can tell the other, so each names what it misses."""
    os.mkfifo(tmp_path / "pipe")
    processes = [hosts.start(0, tmp_path / "a"), hosts.start(1, tmp_path / "b", DOWN)]
    wait_for_word(tmp_path / "pipe", processes[1])
    hosts.link("down")
    (tmp_path / "b" / "go").touch()
    codes, errors = finish(processes)
    assert codes == [1, 1]
    assert len(errors) == 2, errors
    assert "rank 1 has not answered for" in errors[0]
    assert "in training" in errors[0]
    assert "rank 0 has not answered for" in errors[1]


@pytest.mark.slow
def test_a_link_that_comes_back(hosts: Hosts, tmp_path):  # row 32
    os.mkfifo(tmp_path / "pipe")
    processes = [hosts.start(0, tmp_path / "a"), hosts.start(1, tmp_path / "b", DOWN)]
    wait_for_word(tmp_path / "pipe", processes[1])
    hosts.link("down")
    (tmp_path / "b" / "go").touch()
    with pytest.raises(subprocess.TimeoutExpired):  # a third of --timeout: long enough for a send to get lost
        processes[0].wait(TIMEOUT / 3)
    hosts.link("up")
    assert finish(processes) == ([0, 0], [])
