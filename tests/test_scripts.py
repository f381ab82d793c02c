"""The shell scripts, the environment they set up and the environment check, as a user meets them.

Where torch would cost seconds and matters nothing, the scripts run in a copy of the tree whose training
scripts are stand-ins that note down how they were called.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from check_environment import load_scripts
from gradsync.command_lines import without
from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.estimate import in_words
from gradsync.requirements_check import problems, read_requirements, satisfies
from gradsync.survey import Survey

TOP = Path(__file__).resolve().parent.parent
ENOUGH = {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.0"}
NEEDS = {"torchvision": ["numpy", "torch (==2.11.0)", "scipy ; extra == 'scipy'"]}
LAUNCHED_AS = "import json, sys; open('calls', 'a').write(json.dumps(sys.argv) + '\\n')\n"
CHECK = LAUNCHED_AS + """
import os, shlex
flags = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)
folder, repeats = flags.get('--output-dir', '.'), flags.get('--repeats', '1')
commands = shlex.join(shlex.join([file, '--data-dir=-x y', '--model', "a'\\nb"]) for file in ('one.py', 'two.py'))
study = os.environ.get('STUDY', 'ranks=(3 3) folders=("" "")')
open(flags['--plan'], 'w').write(
    f'threads=2\\nrepeats={repeats}\\nresume={int("--resume" in sys.argv)}\\nseed=7\\noutput_dir={shlex.quote(folder)}'
    f'\\n{os.environ.get("HOSTS", "hosts=() host=0")}\\nmethods=(first second)\\n{study}\\ncommands=({commands})\\n')
sys.exit(int(os.environ.get('CHECK_EXIT', '0')))
"""
TORCHRUN = LAUNCHED_AS + """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: (open('ended', 'w').close(), sys.exit(143)))
if 'one.py' in sys.argv[2]:
    open('started', 'w').close()
    time.sleep(float(os.environ.get('TRAIN_SECONDS', '0')))
    sys.exit(int(os.environ.get('TRAIN_EXIT', '0')))
"""
# Stands in for any Python: satisfied once its own pip has installed something.
PYTHON = """#!/usr/bin/env bash
echo "$0 $*" >>"$CALLS"
case "$*" in
    *requirements_check.py*) [[ -e ${0%/*}/satisfied ]] || { echo "torch>=2.11 is missing"; exit 1; } ;;
    "-m venv "*) mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python" ;;
    "-m pip "*) [[ -z ${PIP_FAILS:-} ]] || exit 1; touch "${0%/*}/satisfied" ;;
    *ensurepip*) [[ -z ${NO_ENSUREPIP:-} ]] || exit 1 ;;
esac
"""


@pytest.mark.parametrize(("version", "specifiers", "expected"), [
    ("2.11.0", ">=2.11", True),
    ("2.11.0+cpu", "==2.11.0", True),
    ("2.9.1", ">=2.11", False),
    ("2.11.0a0+git1", ">=2.11", False),
    ("3.0", ">=2.11,<3", False),
    ("8.3.2", "!=8.3.*,>=5.3.0", False),
    ("8.4", "!=8.3.*", True),
    ("3.9.4", "~=3.9.0", True),
    ("3.10", "~=3.9.0", False),
    ("1", "", True),
])
def test_version_specifiers(version: str, specifiers: str, expected: bool) -> None:
    assert satisfies(version, specifiers) is expected


@pytest.mark.parametrize(("installed", "expected"), [
    ({}, []),
    ({"numpy": "1.20"}, ["numpy>=1.26 is needed, 1.20 is installed"]),
    ({"numpy": None}, ["numpy>=1.26 is missing"]),
    ({"torch": "2.12.0"}, ["torchvision 0.26.0 needs torch==2.11.0, 2.12.0 is installed"]),
    ({"torch": "2.11.0+cu130"}, []),
    ({"torch": None}, ["torch>=2.11 is missing"]),
])
def test_requirements(installed: dict[str, str | None], expected: list[str]) -> None:
    wanted = read_requirements("# a remark\ntorch>=2.11\ntorchvision>=0.26  # the pair\n\nnumpy>=1.26\n")
    assert list(problems(wanted, {**ENOUGH, **installed}.get, NEEDS.get)) == expected


def test_seconds_in_words() -> None:
    assert [in_words(s) for s in (0.2, 59, 80, 3700, 190_000)] == ["1 s", "59 s", "1 min 20 s", "1 h 1 min",
                                                                 "2 days 4 h"]


def test_flags_without_own() -> None:
    flags = ["--nproc", "4", "--lr=0.1", "--methods=ps", "--data-dir", "a b"]
    assert without(("--nproc", "--methods"), flags) == ["--lr=0.1", "--data-dir", "a b"]


@pytest.mark.parametrize("flags", [
    ["--nproc", "0"], ["--nproc=x"], ["--nproc", "-3"], ["--methods", "sync"], ["--methods="], ["--epochs", "0"],
    ["--data-dir"], ["--no-such-flag"], ["--lr=nan"],
])
def test_bad_flags_are_refused_before_anything_is_touched(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "results_ps.json").write_text("earlier")
    done = run_all(TOP, tmp_path, *flags)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("error: ")
    assert flags[0].split("=")[0] in lines[0]
    assert os.listdir(tmp_path) == ["results_ps.json"]


def test_parameter_server_needs_two_ranks() -> None:
    with pytest.raises(UsageError, match="needs 2 ranks or more"):
        Survey(TrainConfig(), 1, load_scripts((("ps", {}),)), 1, 0.0)


def test_each_script_gets_the_flags_that_it_knows() -> None:
    methods = (("baseline_ddp", {}), ("all_reduce", {"variant": "overlapped"}), ("ps", {"num_servers": 2}))
    config = TrainConfig(bucket_mb=8.0, transfer="flat", output_dir="a 'b")
    flags = ["--bucket-mb", "8", "--nproc=4", "--transfer=flat", "--output-dir", "a 'b", "--plan", "x"]
    survey = Survey(config, 4, load_scripts(methods), 1, 0.0)
    ends = ["--output-dir", "a 'b", "--global-batch-size", "256"]
    assert [survey.training_flags(flags, prepared) for prepared in survey.prepared] == [
        ["--bucket-mb", "8", *ends],
        ["--bucket-mb", "8", *ends[:2], "--variant", "overlapped", *ends[2:]],
        ["--transfer=flat", *ends[:2], "--num-servers", "2", *ends[2:]],
    ]
    shown = subprocess.run(["bash", "-c", f'{survey.plan(flags)} eval "words=(${{commands[2]}})"; '
                            'printf "%s\\n" "${methods[2]}" "${words[@]}"'], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["ps_flat_2servers", "ps_train.py", "--transfer=flat", *ends[:2],
                                         "--num-servers", "2", *ends[2:]]


def test_help_needs_no_python(tmp_path: Path) -> None:
    done = run_all(TOP, tmp_path, "--help", PYTHON="/nowhere")
    assert done.returncode == 0
    assert "--global-batch-size" in done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts, in a directory with an awkward name, with stand-ins for what they start."""
    top = tmp_path / "a copy ü"
    (top / "gradsync").mkdir(parents=True)
    shutil.copytree(TOP / "launch", top / "launch")
    shutil.copy(TOP / "run_all_experiments.sh", top)
    shutil.copy(TOP / "gradsync" / "requirements_check.py", top / "gradsync")
    (top / "requirements.txt").write_text("pytest>=1\n")
    (top / "check_environment.py").write_text(CHECK)
    (top / "analyze_results.py").write_text(LAUNCHED_AS)
    (top / "launch" / "torchrun.py").write_text(TORCHRUN)
    return top


@pytest.fixture
def here(tmp_path: Path) -> Path:
    directory = tmp_path / "my work"
    directory.mkdir()
    return directory


def run_all(top: Path, cwd: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([top / "run_all_experiments.sh", *flags], cwd=cwd, capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHON": sys.executable, **environment})


def calls(cwd: Path) -> list[list[str]]:
    """[script name, argument, ...] of each stand-in that ran."""
    words = [json.loads(line) for line in (cwd / "calls").read_text().splitlines()]
    return [[Path(first).name, *rest] for first, *rest in words]


def test_flags_reach_every_script_unharmed(copy: Path, here: Path) -> None:
    done = run_all(copy, here, "--nproc", "3", "--data-dir=-x y", "--output-dir=-ö t", "--methods=first", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, "")
    check, first, second, analysis = calls(here)
    theirs = ["--data-dir=-x y", "--model", "a'\nb"]  # what the plan says
    assert check[2:] == ["--nproc", "3", "--data-dir=-x y", "--output-dir=-ö t", "--methods=first", "--seed", "7"]
    assert first == ["torchrun.py", "3", str(copy / "one.py"), *theirs]
    assert second == ["torchrun.py", "3", str(copy / "two.py"), *theirs]
    assert analysis == ["analyze_results.py", "--results-dir=-ö t", "--output-dir=-ö t"]


def test_earlier_results_are_moved_not_lost(copy: Path, here: Path) -> None:
    for name in ("results_ps.json", "performance_report.txt", "plots/a.png", "saved_models/ps.pth", "notes.txt"):
        (here / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "out" / name).write_text(name)
    for _ in range(2):  # the second run finds nothing to move
        assert run_all(copy, here, "--output-dir=out").returncode == 0
    assert sorted(os.listdir(here / "out")) == ["notes.txt", "previous_results"]
    (stamp,) = (here / "out" / "previous_results").iterdir()
    assert sorted(os.listdir(stamp)) == ["performance_report.txt", "plots", "results_ps.json", "saved_models"]
    assert (stamp / "plots" / "a.png").read_text() == "plots/a.png"


def test_repeats_rotate_the_methods_and_record_their_seeds(copy: Path, here: Path) -> None:
    assert run_all(copy, here, "--output-dir=out", "--repeats=3").returncode == 0
    trained = [call for call in calls(here) if call[0].endswith("torchrun.py")]
    assert [Path(call[2]).name for call in trained] == ["one.py", "two.py", "two.py", "one.py", "one.py", "two.py"]
    seeds = [[word for word in call if word.startswith("--seed")] for call in trained]
    assert seeds == [["--seed=7"]] * 2 + [["--seed=8"]] * 2 + [["--seed=9"]] * 2
    folders = [[word for word in call if word.startswith("--output-dir")][-1] for call in trained]
    assert folders == [f"--output-dir=out/repeat_{number}" for number in (1, 1, 2, 2, 3, 3)]
    assert not any(word.startswith("--repeats") for call in trained for word in call)


def test_a_study_runs_each_point_in_its_folder_and_its_repeats_interleaved(copy: Path, here: Path) -> None:
    study = "ranks=(0 2) folders=(ranks_1 ranks_2)"
    assert run_all(copy, here, "--output-dir=out", "--repeats=2", STUDY=study).returncode == 0
    trained = [call for call in calls(here) if call[0] == "torchrun.py"]
    places = [(call[1], Path(call[2]).name, call[-1].removeprefix("--output-dir=")) for call in trained]
    assert places == [
        ("0", "one.py", "out/repeat_1/ranks_1"), ("2", "two.py", "out/repeat_1/ranks_2"),
        ("2", "two.py", "out/repeat_2/ranks_2"), ("0", "one.py", "out/repeat_2/ranks_1"),
    ]
    assert [call[-2] for call in trained] == ["--seed=7"] * 2 + ["--seed=8"] * 2


@pytest.mark.parametrize("host", [0, 1])
def test_one_of_several_hosts(host: int, copy: Path, here: Path) -> None:
    """Each launcher is told which run it is; host 0 alone moves earlier results away, and compares."""
    (here / "results_ps.json").write_text("earlier")
    flags = f"--nnodes 2 --node-rank {host} --master-addr 10.0.0.1 --master-port 29500 --timeout 9"
    done = run_all(copy, here, HOSTS=f"hosts=({flags}) host={host}")
    assert (done.returncode, done.stderr) == (0, "")
    _, first, second, *analysis = calls(here)
    assert [call[1:15] for call in (first, second)] == [
        [*flags.split(), "--run", str(run), "3", str(copy / script)] for run, script in ((1, "one.py"), (2, "two.py"))]
    assert [call[0] for call in analysis] == ([] if host else ["analyze_results.py"])
    assert (here / "results_ps.json").exists() is bool(host)
    assert ("on host 0 (--master-addr 10.0.0.1)" in done.stdout) is bool(host)


def test_an_earlier_study_is_moved_not_mixed_with_the_new_one(copy: Path, here: Path) -> None:
    (here / "out" / "ranks_8").mkdir(parents=True)
    assert run_all(copy, here, "--output-dir=out", STUDY="ranks=(0 2) folders=(ranks_1 ranks_2)").returncode == 0
    (stamp,) = (here / "out" / "previous_results").iterdir()
    assert os.listdir(stamp) == ["ranks_8"]
    assert [call[-1] for call in calls(here)[1:3]] == ["--output-dir=out/ranks_1", "--output-dir=out/ranks_2"]


def test_launcher_of_a_single_device_is_replaced_by_its_script(tmp_path: Path) -> None:
    script = tmp_path / "one device.py"
    script.write_text("import ctypes, os, sys\nsignal = ctypes.c_int()\n"
                      "ctypes.CDLL(None).prctl(2, ctypes.byref(signal))  # PR_GET_PDEATHSIG\n"
                      "print(sys.argv[1:], 'RANK' in os.environ, signal.value)\nsys.exit(3)\n")
    done = subprocess.run([sys.executable, TOP / "launch" / "torchrun.py", "0", script, "a b"], capture_output=True,
                          text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, f"['a b'] False {signal.SIGTERM.value}\n")


@pytest.mark.parametrize(("environment", "code", "started"), [
    ({"CHECK_EXIT": "2"}, 2, ["check_environment.py"]),
    ({"CHECK_EXIT": "1"}, 1, ["check_environment.py"]),
    ({"TRAIN_EXIT": "2"}, 2, ["check_environment.py", "torchrun.py"]),
    ({"TRAIN_EXIT": "1"}, 1, ["check_environment.py", "torchrun.py"]),
])
def test_stops_at_the_first_failure(environment: dict[str, str], code: int, started: list[str], copy: Path,
                                    here: Path) -> None:
    (here / "results_ps.json").write_text("earlier")
    assert run_all(copy, here, **environment).returncode == code
    assert [call[0] for call in calls(here)] == started
    assert (here / "results_ps.json").exists() is ("CHECK_EXIT" in environment)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_method_and_the_script(number: signal.Signals, code: int, copy: Path, here: Path) -> None:
    process = subprocess.Popen([copy / "run_all_experiments.sh", "--output-dir=it's out"], cwd=here,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHON": sys.executable, "TRAIN_SECONDS": "30"})
    give_up = time.monotonic() + 20
    while not (here / "started").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    error, advice = errors.splitlines()
    assert (process.returncode, error) == (code, "error: interrupted")
    assert (here / "ended").exists()  # the method was told, and waited for
    assert [call[0] for call in calls(here)] == ["check_environment.py", "torchrun.py"]
    command = advice.removeprefix("To go on from here: ")
    done = subprocess.run(["bash", "-c", command], cwd=here, check=True, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHON": sys.executable})
    assert done.stderr == ""
    check, first, second, analysis = calls(here)[2:]
    assert check[2:] == ["--output-dir=it's out", "--resume"]
    assert [call[0] for call in (first, second, analysis)] == ["torchrun.py", "torchrun.py", "analyze_results.py"]


def test_resume_moves_nothing_away(copy: Path, here: Path) -> None:
    kept = ("out/results_ps.json", "out/checkpoints/all_reduce/manifest.json")
    for name in kept:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    done = run_all(copy, here, "--output-dir=out", "--resume", TRAIN_EXIT="1")
    assert (done.returncode, done.stderr.count("run_all_experiments.sh --output-dir=out --resume\n")) == (1, 1)
    assert [(here / name).read_text() for name in kept] == list(kept)
    assert run_all(copy, here, "--output-dir=out").returncode == 0
    (stamp,) = (here / "out" / "previous_results").iterdir()
    assert [(stamp / name.removeprefix("out/")).read_text() for name in kept] == list(kept)


def choose_python(copy: Path, active: str, *, shell: str = "", **environment: str) -> tuple[str, list[str], str]:
    """(what was chosen, or the error; the stand-in's calls; all output) with ``active`` the state of python3."""
    folder = copy / "active"
    folder.mkdir(exist_ok=True)
    (folder / "python3").write_text(PYTHON)
    (folder / "python3").chmod(0o755)
    if active == "satisfied":
        (folder / "satisfied").touch()
    log = copy / "log"
    log.write_text("")
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    commands = f'source launch/python_env.sh; {shell} choose_python "$repo/requirements.txt"; echo "$PYTHON"'
    done = subprocess.run(
        ["bash", "-euc", commands],
        cwd=copy, capture_output=True, text=True, timeout=30, check=False,
        env={**inherited, "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(log), **environment})
    chosen = (done.stdout if done.returncode == 0 else done.stderr).splitlines()[-1]
    return chosen.replace(f"{copy}/", ""), log.read_text().splitlines(), done.stdout


def test_active_python_is_used_if_it_satisfies(copy: Path) -> None:
    chosen, log, _ = choose_python(copy, "satisfied")
    assert chosen == "active/python3"
    assert not any("-m" in call.split() for call in log)


def test_a_venv_is_made_once_and_then_used_as_it_is(copy: Path) -> None:
    chosen, log, output = choose_python(copy, "lacking")
    assert chosen == ".venv/bin/python"
    assert sum("-m pip install" in call for call in log) == 1
    assert "5.5 GB" in output
    chosen, log, output = choose_python(copy, "lacking")
    assert (chosen, output.count("\n")) == (".venv/bin/python", 1)
    assert not any("-m" in call.split() for call in log)


def test_an_interrupted_installation_is_taken_up_again(copy: Path) -> None:
    chosen, _, _ = choose_python(copy, "lacking", PIP_FAILS="1")
    assert chosen.startswith("error: pip could not install")
    chosen, log, _ = choose_python(copy, "lacking")
    assert chosen == ".venv/bin/python"
    assert not any("-m venv" in call for call in log)


def test_a_venv_whose_python_is_gone_is_made_anew(copy: Path) -> None:
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    # The stand-in's venv copies itself, which a dangling link would prevent; the real one clears the directory.
    chosen, log, _ = choose_python(copy, "lacking", shell='rm "$venv/bin/python";')
    assert chosen == ".venv/bin/python"
    assert any("-m venv --clear" in call for call in log)


def test_missing_ensurepip_is_named(copy: Path) -> None:
    chosen, _, _ = choose_python(copy, "lacking", NO_ENSUREPIP="1")
    assert chosen.startswith("error: ")
    assert "apt install python3-venv" in chosen


def test_named_python_is_never_changed(copy: Path) -> None:
    chosen, log, _ = choose_python(copy, "lacking", PYTHON=str(copy / "active" / "python3"))
    assert chosen.startswith("error: PYTHON=")
    assert "torch>=2.11 is missing" in chosen
    assert not any("-m" in call.split() for call in log)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code", "message"), [
    ("sys.exit(2)", 2, ""),
    ("os.kill(os.getpid(), 9)", 1, "error: ranks.py: rank 1 was lost, killed by SIGKILL\n"),
])
def test_launcher_returns_what_the_first_failing_rank_returned(ending: str, code: int, message: str,
                                                               tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1':\n    {ending}\ntime.sleep(60)\n")
    done = subprocess.run([sys.executable, TOP / "launch" / "torchrun.py", "2", script], capture_output=True,
                          text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, message)


def test_environment_check_for_real(tmp_path: Path) -> None:
    flags = ["--nproc=2", "--batch-size=4", "--max-steps=2", "--workers=1", f"--output-dir={tmp_path / 'new dir'}"]
    done = subprocess.run([sys.executable, TOP / "check_environment.py", *flags], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("[ok]   gloo:") and "2 ranks verified" in line for line in lines)
    assert any(line.startswith("[ok]   time:") and "for 3 methods" in line for line in lines)
    assert any("--nproc_per_node=2" in line and "--global-batch-size 8" in line for line in lines)
    assert os.listdir(tmp_path / "new dir") == []
