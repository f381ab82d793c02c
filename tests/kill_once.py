"""A training script whose rank 1 is killed once, in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, sys
sys.path.insert(0, {top!r})
import {script} as script
from gradsync import main, method, probe
probe.WARM_UP_STEPS, probe.MIN_ROUNDS, probe.MAX_ROUNDS = 1, 2, 2
add, steps = method.Tally.add, 0
def add_and_die(self, *arguments):
    global steps
    add(self, *arguments)
    steps += 1
    if os.environ["RANK"] == "1" and steps == 4 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), 9)
method.Tally.add = add_and_die
sys.exit(main.run_script({arguments}))
"""


def killed_once(module: str, classes: str) -> str:
    """Text of a script that trains as ``module`` does; ``classes``: what it passes to ``main.run_script``.

    The first time, rank 1 is killed after four steps, and leaves the file ``killed``.
    """
    return SCRIPT.format(top=str(TOP), script=module, arguments=classes)
