"""What is handed to Slurm and to Kubernetes. Neither is here: Slurm has stand-ins, and the YAML is only read."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from doc_commands import comparison

from check_environment import parse
from gradsync.hosts import Hosts

LAUNCH = Path(__file__).resolve().parent.parent / "launch"
# Runs what srun would on each of two nodes, in its order of words; hands SIGTERM on, as srun does.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >>srun_options; shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >>scontrol_calls
[[ $1 == show ]] && printf 'node7\\nnode8\\n' || true
"""
SCRIPT = """#!/usr/bin/env bash
printf '%q ' "$@" >"told_$SLURM_NODEID"
[[ -z ${ENDLESS:-} ]] && exit "${ENDS_WITH:-0}"
trap 'exit 143' TERM
echo >"running_$SLURM_NODEID"
echo x >started
while :; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script, in a directory with an awkward name."""
    here = tmp_path / "my jobs"
    (here / "bin").mkdir(parents=True)
    for path, text in (("bin/srun", SRUN), ("bin/scontrol", SCONTROL), ("run_all_experiments.sh", SCRIPT)):
        (here / path).write_text(text)
        (here / path).chmod(0o755)
    os.mkfifo(here / "started")
    return {**os.environ, "PATH": f"{here / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(here),
            "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4",
            "SLURM_CPUS_PER_TASK": "32"}


def told(job: dict[str, str], node: int) -> list[str]:
    return shlex.split((Path(job["SLURM_SUBMIT_DIR"]) / f"told_{node}").read_text())


def submit(job: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LAUNCH / "slurm.sbatch", *flags], cwd=job["SLURM_SUBMIT_DIR"], env=job, text=True,
                          capture_output=True, timeout=60, check=False)


def test_slurm_starts_a_launcher_on_each_node(job):
    done = submit(job, "--epochs", "2", "--data-dir", "a b")
    assert (done.returncode, done.stderr) == (0, "")
    for node in (0, 1):
        comparison(told(job, node))
        config, scope, _ = parse(told(job, node))
        assert scope.hosts == Hosts(2, node, "node7", 23456, config.timeout)
        assert (scope.nproc, config.epochs, config.data_dir, config.resume) == (4, 2, "a b", True)
        assert config.output_dir == f"{job['SLURM_SUBMIT_DIR']}/runs/slurm-123456"
    options = (Path(job["SLURM_SUBMIT_DIR"]) / "srun_options").read_text().split()
    assert options == ["--kill-on-bad-exit=1", "--cpus-per-task=32"]


def test_slurm_is_told_of_a_failure(job):
    assert submit({**job, "ENDS_WITH": "3"}).returncode == 3
    assert "requeue" not in (Path(job["SLURM_SUBMIT_DIR"]) / "scontrol_calls").read_text()


def test_slurm_ends_the_run_in_order_before_its_time_is_up(job):
    """The launchers get the signal, the job waits for them, and goes back into the queue."""
    here = Path(job["SLURM_SUBMIT_DIR"])
    process = subprocess.Popen([LAUNCH / "slurm.sbatch"], cwd=here, env={**job, "ENDLESS": "1"})
    started = ""
    while started.count("x") < 2:  # both may write before the first is read
        started += (here / "started").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (here / "scontrol_calls").read_text().splitlines()[-1] == "requeue 123456"
    assert {"running_0", "running_1"} <= set(os.listdir(here))


def test_what_a_user_of_slurm_must_set_is_at_the_top():
    directives = re.findall(r"^#SBATCH (--[\w-]+)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert directives[1:5] == ["--nodes", "--gpus-per-node", "--cpus-per-task", "--time"]
    assert {"--ntasks-per-node", "--signal", "--requeue"} <= set(directives)


def lines_of(text: str) -> list[tuple[int, str, str]]:
    """(indentation, key, value) of each line of YAML that has a key, without comments and dashes."""
    found = re.findall(r"^( *(?:- )?)([\w.-]+(?:/\w+)?):(?: +(.*?))?(?: +#.*)?$", text, re.MULTILINE)
    return [(len(indent), key, value) for indent, key, value in found]


def test_kubernetes_starts_the_script_on_each_pod():
    text = (LAUNCH / "kubernetes.yaml").read_text()
    assert "\t" not in text
    lines = lines_of(text)
    assert (0, "apiVersion", "kubeflow.org/v1") in lines
    assert (0, "kind", "PyTorchJob") in lines
    assert [value for _, key, value in lines if key == "template"] == ["&pod", "*pod"]
    assert "- name: pytorch  #" in text  # the name by which the operator finds the container
    pods = sum(int(value) for _, key, value in lines if key == "replicas")
    block = re.search(r"- >-\n((?: {18}.+\n)+)", text)
    assert block
    for rank in range(pods):
        values = {"RANK": str(rank), "MASTER_ADDR": "gradsync-master-0", "MASTER_PORT": "23456"}
        command = re.sub(r"\$(\w+)", lambda name, values=values: values[name[1]], " ".join(block[1].split()))
        program, script, *flags = shlex.split(command)
        assert (program, script) == ("exec", "./run_all_experiments.sh")
        comparison(flags)
        config, scope, _ = parse(flags)
        assert scope.hosts == Hosts(pods, rank, "gradsync-master-0", 23456, config.timeout)
        assert config.resume
    volumes = set(re.findall(r"- name: ([\w-]+)\n +mountPath", text))
    assert volumes == {"results", "shared-memory"}
    assert all(len(re.findall(rf"- name: {name}\b", text)) == 2 for name in volumes)  # mounted, and defined
