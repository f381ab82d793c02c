"""Runs a training script that does something to itself at a chosen place: ``python inject.py SCRIPT [FLAG ...]``.

FAULT in the environment is a JSON list of faults, each with ``rank``, a place (``stage`` and, if given, ``epoch``,
``step``, ``phase``) and an ``action``: the name of a signal that the rank sends itself, or a function below.
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

from gradsync.position import Position, here


def act(action: str) -> None:
    print(f"{action} in {here}", file=sys.stderr, flush=True)
    if action in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[action])
    else:
        ACTIONS[action]()


def announce() -> None:
    """Tell the test, which reads the other end of the pipe, and wait for what it does."""
    Path(os.environ["ANNOUNCE"]).write_text(f"{os.getpid()}\n")
    time.sleep(600)


def sleep() -> None:
    time.sleep(600)


def leave() -> None:
    os._exit(3)


def no_memory() -> None:
    raise MemoryError("Unable to allocate 3.00 GiB")


ACTIONS = {function.__name__: function for function in (announce, sleep, leave, no_memory)}


def plant(faults: list[dict[str, Any]]) -> None:
    """Let every move look for a fault that is due; each happens once."""
    mine = [dict(fault) for fault in faults if fault["rank"] == int(os.environ.get("RANK", "0"))]

    def watch(move: Any) -> Any:
        def moved(self: Position, *arguments: Any, **named: Any) -> None:
            move(self, *arguments, **named)
            for fault in mine:
                if all(getattr(self, key) == fault[key] for key in ("stage", "epoch", "step", "phase") if key in fault):
                    mine.remove(fault)
                    act(fault["action"])
                    break

        return moved

    for name in ("enter", "next_step", "begin"):
        setattr(Position, name, watch(getattr(Position, name)))


if __name__ == "__main__":
    plant(json.loads(os.environ["FAULT"]))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
