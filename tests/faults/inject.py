"""Runs a training script that does something to itself at a chosen place: ``python inject.py SCRIPT [FLAG ...]``.

FAULT in the environment is a JSON list of faults, each with ``rank``, a place (``stage`` and, if given, ``epoch``,
``step``, ``phase``) and an ``action``: the name of a signal that the rank sends itself, or of a function below.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from gradsync import probe
from gradsync.method import Method
from gradsync.position import SharedPosition


def announce() -> None:
    """Tell the test, which waits at the other end of a named pipe, and wait for what it does."""
    Path(os.environ["ANNOUNCE"]).write_text(f"{os.getpid()}\n")
    time.sleep(600)


def wait_for_go() -> None:
    """Tell the test, and go on when it has made a file for that."""
    Path(os.environ["ANNOUNCE"]).write_text(f"{os.getpid()}\n")
    while not Path("go").exists():
        time.sleep(0.02)


def stay() -> None:
    """Alive, but as good as gone: a data set on a file server that does not answer, say."""
    time.sleep(600)


def leave() -> None:
    os._exit(3)


def run_out_of_memory() -> None:
    raise MemoryError("Unable to allocate 3.00 GiB for an array")


def slow_down() -> None:
    """From now on this rank computes as on a slower device."""
    autocast = Method.autocast  # entered by every forward pass, within its phase

    def slowly(self: Method) -> Any:
        time.sleep(0.1)
        return autocast(self)

    Method.autocast = slowly


ACTIONS = {function.__name__: function
           for function in (announce, wait_for_go, stay, leave, run_out_of_memory, slow_down)}
PLACE = ("stage", "epoch", "step", "phase")


def act(action: str) -> None:
    if action in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[action])
    else:
        ACTIONS[action]()


def plant(faults: list[dict[str, Any]], rank: int) -> None:
    """Let every move look for a fault that is due; each happens once."""
    mine = [fault for fault in faults if fault["rank"] == rank]
    probe.WARM_UP_STEPS, probe.MIN_ROUNDS, probe.MAX_ROUNDS = 1, 2, 2

    def watched(move: Any) -> Any:
        def moved(self: SharedPosition) -> None:
            move(self)
            for fault in mine:
                if all(getattr(self, key) == fault[key] for key in PLACE if key in fault):
                    mine.remove(fault)
                    return act(fault["action"])
            return None

        return moved

    SharedPosition.moved = watched(SharedPosition.moved)


if __name__ == "__main__":
    plant(json.loads(os.environ["FAULT"]), int(os.environ["RANK"]))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
