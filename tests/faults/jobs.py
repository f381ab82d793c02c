"""Jobs for the fault tests: ranks that are forked from one import of torch, and what they leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from gradsync.errors import UsageError

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
SHORT = ["--max-steps", "4", "--timeout", "4", "--batch-size", "16"]
MARK = "GRADSYNC_TEST"  # in the environment of every process that a test starts


@dataclass
class Outcome:
    codes: list[int | None]
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


class Nursery:
    """A process that forks jobs on demand; see nursery.py."""

    def __init__(self) -> None:
        self.mark = str(uuid.uuid4())
        self._process = subprocess.Popen([sys.executable, HERE / "nursery.py"], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, env={**os.environ, MARK: self.mark})

    def run(self, method: str, folder: Path, *faults: dict[str, Any], ranks: int = 3, flags: list[str] = SHORT,
            **more: Any) -> Outcome:
        """Run a job in ``folder`` and check that nothing of it is left."""
        listener = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        store = TCPStore("127.0.0.1", listener.getsockname()[1], is_master=True, wait_for_workers=False,
                         master_listen_fd=listener.detach())
        folder.mkdir(parents=True, exist_ok=True)
        output = folder.parent / f"{uuid.uuid4()}.output"
        job = {"method": method, "ranks": ranks, "flags": flags, "flags_of": {}, "faults": faults, "store": address,
               "folder": str(folder), "output": str(output), "tell_others": True, "environment": {}, **more}
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(job), file=self._process.stdin, flush=True)
        codes = json.loads(self._process.stdout.readline())
        del store
        assert marked(self.mark) == [self._process.pid], "a process is left"
        assert not list(folder.rglob("*.tmp")), "a temporary file is left"
        return Outcome(codes, output.read_text())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


def marked(mark: str) -> list[int]:
    """The processes that have ``mark`` in their environment, but for those that only wait to be reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
    return sorted(found)


def listening(pid: int) -> set[str]:
    """Addresses (hexadecimal, as the kernel writes them) at which a process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[1].split(":")[0] for row in rows if len(row) > 9 and row[3] == "0A" and row[9] in inodes}


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def refusal(call: Callable[[], Any]) -> str | None:
    """The line with which a call refuses its input, None where it accepts it. Anything else that it raises passes."""
    try:
        call()
    except UsageError as error:
        return str(error)
    return None


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def earlier_run(folder: Path, method: str) -> dict[str, bytes]:
    """What an earlier run has left, which a failed one must leave alone."""
    for name in (f"results_{method}.json", f"saved_models/{method}_best.pth", "performance_report.txt", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of an earlier run")
    return snapshot(folder)
