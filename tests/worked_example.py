"""The worked example of docs/ARCHITECTURE.md, followed by the letter in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
DOCUMENT = TOP / "docs" / "ARCHITECTURE.md"
HEADING = "## Adding a fourth method"
NAME = "reduce_broadcast"
RANKS = 3
# Run in the copy: what it registers is seen there as in the project, were the method really added.
FOLLOW = f"""
import json, sys
from check_environment import load_scripts, parse
from gradsync.analysis.language import CHINESE
from gradsync.analysis.load import METHODS as SHOWN
from parity import FAULTS, Job, oracle, train_on_rank
from ranks import run_ranks
from test_parity import differences

_, scope, _ = parse(["--methods", "{NAME}"])
script, = load_scripts(scope.methods)
assert script.method.name == "{NAME}", script
assert SHOWN["{NAME}"].title.template in CHINESE, SHOWN["{NAME}"]
job = Job(66, double=True)
planted = [fault for fault, methods in FAULTS.items() if "{NAME}" in methods]
runs = [("{NAME}", job, fault) for fault in [None, *planted]]
reference = oracle(job)
last = run_ranks(train_on_rank, {RANKS}, runs)[-1]
found = {{str(fault): differences(run, reference) for (_, _, fault), run in zip(runs, last, strict=True)}}
phases = last[0].results.epochs[-1].avg_comm_time
sent = last[0].results.communication.replica_bytes_per_step
print(json.dumps({{"differences": found, "phases": phases, "bytes": sent,
                   "gradient_bytes": sum(value.nbytes for value in reference.parameters.values())}}))
"""


def blocks(document: str) -> list[str]:
    """The Python blocks of the example: the script first, then what is to be entered where."""
    return re.findall(r"^```python\n(.*?)^```$", document[document.index(HEADING):], re.MULTILINE | re.DOTALL)


def entered(source: str, variable: str, block: str) -> str:
    """``source`` with the entries of ``block`` first in the dictionary ``variable``, and its imports among the others.

    Raises AssertionError where the document names a dictionary or a place that is not there.
    """
    imports = [line for line in block.splitlines() if re.match(r"\s*(from \S+ )?import ", line)]
    entries = [line for line in block.splitlines() if line.strip() and line not in imports]
    indent = min(len(line) - len(line.lstrip()) for line in entries)
    for line in imports:
        margin = re.match(r"\s*", line)[0]
        place = re.search(rf"^{margin}(from|import) (all_reduce_train|baseline_multi_card)\b", source, re.MULTILINE)
        assert place, f"no import beside which {line!r} could stand"
        source = f"{source[:place.start()]}{line}\n{source[place.start():]}"
    place = re.search(rf"^( *){variable}\b[^\n]*= \{{\n", source, re.MULTILINE)
    assert place, f"no dictionary {variable}"
    assert indent == len(place[1]) + 4, f"the entries of {variable} are indented by {len(place[1]) + 4}"
    return source[:place.end()] + "\n".join(entries) + "\n" + source[place.end():]


def follow(document: str, folder: Path) -> dict:
    """Add the example to a copy of the project in ``folder``, and run it there.

    Returns its differences from the oracle by planted fault ("None": without), in a step's loss and in a parameter.
    """
    for name in ("gradsync", "tests", *(path.name for path in TOP.glob("*.py")), "requirements.txt"):
        source, target = TOP / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    script, *entries = blocks(document)
    (folder / f"{NAME}_train.py").write_text(script)
    for block in entries:
        where, rest = block.split("\n", 1)
        file, variable = re.fullmatch(r"# (\S+): (\w+)", where).groups()
        path = folder / file
        path.write_text(entered(path.read_text(), variable, rest))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests")])}
    done = subprocess.run([sys.executable, "-c", FOLLOW], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
