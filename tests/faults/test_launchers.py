"""The launchers as users have them: whatever is killed or interrupted, nothing is left, and nothing is said twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from announcement import wait_for_word
from jobs import HERE, LOOPBACK, MARK, TOP, earlier_run, listening, marked, snapshot

from gradsync.results import read_results

SECONDS = 120
PATIENT = ["--max-steps", "4", "--timeout", "60", "--batch-size", "16"]
PLAIN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(HERE / "inject.py")]
OWN = [sys.executable, str(TOP / "launch" / "torchrun.py"), "2", str(HERE / "inject.py")]
HERE_AND_NOW = {"stage": "training", "epoch": 1, "step": 2}


@dataclass
class Started:
    """A launcher that was started, and the pipe through which a rank announces that it is where it should be."""

    process: subprocess.Popen[str]
    pipe: Path
    mark: str = field(default_factory=lambda: str(uuid.uuid4()))

    def announced(self) -> int:
        """The process id of the rank that has announced itself."""
        return int(wait_for_word(self.pipe, self.process))

    def end(self) -> tuple[int, list[str]]:
        """(exit code, lines that begin with ``error:``)"""
        _, errors = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, [line for line in errors.splitlines() if line.startswith("error: ")]

    def left_over(self, seconds: float) -> list[int]:
        """The processes that are left after ``seconds`` at most."""
        give_up = time.monotonic() + seconds
        while (left := marked(self.mark)) and time.monotonic() < give_up:
            time.sleep(0.05)
        return left


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """start(command, faults) in ``tmp_path / "out"``; ends what is left of it after the test."""
    started: list[Started] = []

    def launch(command: list[str], *faults: dict[str, object]) -> Started:
        pipe, mark = tmp_path / "pipe", str(uuid.uuid4())
        os.mkfifo(pipe)
        (tmp_path / "out").mkdir(exist_ok=True)
        environment = {**os.environ, "FAULT": json.dumps(faults), "ANNOUNCE": str(pipe), MARK: mark,
                       "PYTHON": sys.executable}
        process = subprocess.Popen(command, cwd=tmp_path / "out", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True, env=environment)
        started.append(Started(process, pipe, mark))
        return started[-1]

    yield launch
    for one in started:
        for pid in marked(one.mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_rank_killed_under_plain_torchrun(start, tmp_path):  # rows 1 to 3
    before = earlier_run(tmp_path / "out", "ps")
    started = start([*PLAIN, str(TOP / "ps_train.py"), *PATIENT], {"rank": 1, "action": "SIGKILL", **HERE_AND_NOW})
    code, errors = started.end()
    assert code == 1
    (error,) = errors
    # torchrun takes note of the signal at the same time as the ranks; whoever is first keeps it from the other.
    assert error.replace(", killed by SIGKILL,", "") == "error: ps: rank 1 was lost in training, epoch 1, step 2"
    assert started.left_over(5) == []
    after = snapshot(tmp_path / "out")
    assert json.loads(after.pop("results_ps.failed.json"))["error"] == error.removeprefix("error: ")
    assert after == before


@pytest.mark.slow
def test_a_rank_killed_under_our_launcher(start, tmp_path):
    """Our launcher knows the signal even where the ranks could not learn it. Nothing listens to the outside."""
    started = start([*OWN, str(TOP / "all_reduce_train.py"), *PATIENT],
                    {"rank": 1, "action": "announce", **HERE_AND_NOW})
    rank = started.announced()
    addresses = {address for pid in marked(started.mark) for address in listening(pid)}
    os.kill(rank, signal.SIGKILL)
    assert started.end() == (1, [
        "error: all_reduce: rank 1 was lost, killed by SIGKILL, in training, epoch 1, step 2"])
    assert started.left_over(5) == []
    assert addresses
    assert addresses <= LOOPBACK


@pytest.mark.slow
@pytest.mark.parametrize("command", [PLAIN, OWN], ids=["torchrun", "our launcher"])
def test_the_launcher_is_killed(command, start, tmp_path):  # row 7
    before = earlier_run(tmp_path / "out", "all_reduce")
    images = ["--dataset", "synthetic", "--model", "groupnorm_cnn", "--image-size", "16", "--workers", "1"]
    started = start([*command, str(TOP / "all_reduce_train.py"), *PATIENT, *images],
                    {"rank": 0, "action": "announce", **HERE_AND_NOW})
    started.announced()
    assert len(marked(started.mark)) >= 5, "launcher, two ranks, two data-loading processes"
    started.process.kill()
    assert started.left_over(5) == []
    assert snapshot(tmp_path / "out") == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_plain_torchrun_is_interrupted(number, start, tmp_path):  # row 6
    before = earlier_run(tmp_path / "out", "all_reduce")
    started = start([*PLAIN, str(TOP / "all_reduce_train.py"), *PATIENT],
                    {"rank": 0, "action": "announce", **HERE_AND_NOW})
    started.announced()
    started.process.send_signal(number)
    _, errors = started.end()
    (error,) = errors
    assert error.startswith(f"error: all_reduce: interrupted by {number.name} in training")
    assert started.left_over(5) == []
    assert snapshot(tmp_path / "out") == before


CHECK = """
import shlex, sys
plan, *flags = (word.removeprefix('--plan=') for word in sys.argv[1:])
commands = shlex.join(shlex.join([f'tests/faults/{name}.py', *flags]) for name in ('ps', 'all_reduce'))
open(plan, 'w').write(f'threads=1 repeats=1 resume={int("--resume" in flags)} seed=7 output_dir=. '
                      f'hosts=() host=0 '
                      f'methods=(ps all_reduce) ranks=(2 2) folders=("" "") commands=({commands})\\n')
"""
SCRIPT = """
import json, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inject
from {module} import *
inject.plant(json.loads(os.environ["FAULT"]) if "{module}" == "ps_train" else [], int(os.environ["RANK"]))
open("started {module}", "w").close()
sys.exit(run_script({arguments}))
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A copy of the project whose environment check, which is tested elsewhere, only passes on a plan."""
    top = tmp_path / "suite"
    shutil.copytree(TOP / "launch", top / "launch")
    shutil.copytree(TOP / "gradsync", top / "gradsync", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_all_experiments.sh", "requirements.txt", "ps_train.py", "all_reduce_train.py",
                 "analyze_results.py"):
        shutil.copy(TOP / name, top)
    (top / "check_environment.py").write_text(CHECK)
    (top / "tests" / "faults").mkdir(parents=True)
    shutil.copy(HERE / "inject.py", top / "tests" / "faults")
    arguments = {"ps_train": "lambda launch: ParameterServerWorker, server=ParameterServer",
                 "all_reduce_train": "lambda launch: AllReduce"}
    for module, text in arguments.items():
        path = top / "tests" / "faults" / f"{module.removesuffix('_train')}.py"
        path.write_text(SCRIPT.format(module=module, arguments=text))
    return top


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_the_one_shot_script_is_ended(number, code, start, suite, tmp_path):  # rows 6 and 7
    started = start([str(suite / "run_all_experiments.sh"), *PATIENT],
                    {"rank": 1, "action": "announce", **HERE_AND_NOW})
    started.announced()
    started.process.send_signal(number)
    if number == signal.SIGKILL:
        assert started.process.wait(10) == code
        assert started.left_over(5) == []
    else:
        assert started.end() == (code, ["error: interrupted"])
        assert started.left_over(0) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["started ps_train"]


@pytest.mark.slow
def test_the_one_shot_script_goes_on_where_it_was_interrupted(start, suite, tmp_path):  # rows 6 and 26
    """By the very command that it prints: the interrupted method from its checkpoint, the other one from its start."""
    script, out = str(suite / "run_all_experiments.sh"), tmp_path / "out"
    second = {"rank": 1, "action": "announce", **HERE_AND_NOW, "phase": "forward_backward"}
    started = start([script, *PATIENT, "--checkpoint-every", "1"], second)
    started.announced()
    started.process.send_signal(signal.SIGTERM)
    _, said = started.process.communicate(timeout=SECONDS)
    assert started.process.returncode == 143
    error, advice = said.splitlines()
    assert error == "error: interrupted"
    assert started.left_over(0) == []
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "started ps_train"]

    done = subprocess.run(["bash", "-c", advice.removeprefix("To go on from here: ")], cwd=out, capture_output=True,
                          env={**os.environ, "PYTHON": sys.executable, "FAULT": "[]"}, text=True, timeout=SECONDS,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")
    resumed, fresh = (read_results(out / f"results_{method}.json") for method in ("ps", "all_reduce"))
    assert [(place.epoch, place.step) for place in resumed.resumed_at] == [(1, 1)]
    assert fresh.resumed_at == []
    assert (len(resumed.all_losses), len(fresh.all_losses)) == (4, 4)
    assert (out / "performance_report.txt").exists()
    assert not (out / "checkpoints").exists()
