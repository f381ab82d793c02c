"""A rank tells a test how far it is, through a named pipe."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path


def wait_for_word(pipe: Path, process: subprocess.Popen[str]) -> str:
    """The line that a rank writes into a named pipe. Fails if the job ends, or two minutes pass, before that."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    give_up = time.monotonic() + 120
    word = b""
    while not word.endswith(b"\n"):
        assert time.monotonic() < give_up, "no rank has announced itself"
        assert process.poll() is None, process.communicate()
        # Without a writer the pipe is at its end, which counts as readable.
        word += os.read(reader, 100) if select.select([reader], [], [], 0.2)[0] else b""
        time.sleep(0.02)
    os.close(reader)
    return word.decode()
