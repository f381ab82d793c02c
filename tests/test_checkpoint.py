"""Killed at any step and resumed, a run ends as if nothing had happened, bit for bit; and nothing unfit is resumed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from checkpoint_runs import (
    EPOCHS,
    FAULTS,
    METHODS,
    STEPS_PER_EPOCH,
    Killed,
    NoWatchdog,
    make_images,
    outcome,
    runs_on_rank,
)
from kill_once import killed_once
from ranks import run_ranks

import all_reduce_train
from gradsync import checkpoint, main, probe
from gradsync.checkpoint import MANIFEST, Checkpoints, DataPosition, digest, signed
from gradsync.config import Plan
from gradsync.distributed import Launch, process_group
from gradsync.errors import JobError
from gradsync.method import Tally
from gradsync.results import RunResults, ServerEpoch, read_results
from gradsync.resume import differences
from gradsync.segments import merged

TOP = Path(__file__).resolve().parent.parent
RANKS = 3
# Where each process but the last is killed: at a step of its own, in evaluation, while the manifest is replaced.
KILLS: dict[str, tuple[list[str], list[int | str]]] = {
    "before the first checkpoint": (["--checkpoint-every", "2"], [1]),
    "in the middle of an epoch": (["--checkpoint-every", "3"], [4]),
    "at the last step of an epoch": (["--checkpoint-every", "5"], [8]),
    "between epochs": ([], [5]),
    "in evaluation": (["--checkpoint-every", "1"], ["evaluation"]),
    "while writing a checkpoint": (["--checkpoint-every", "2"], [3, "manifest"]),
    "three times": (["--checkpoint-every", "1"], [2, 2, 5]),
    "at the last step of all": (["--checkpoint-every", "1"], [STEPS_PER_EPOCH * EPOCHS]),
    "with data-loading processes": (["--checkpoint-every", "3", "--workers", "1"], [8]),
}
LATE = (["--checkpoint-every", "3"], [10])  # resumes at the second step of the last epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=METHODS)
def runs(request, images, tmp_path_factory):
    """Method and folder of its runs: undisturbed, undisturbed with checkpoints, each of KILLS, each of FAULTS."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    cases = {"undisturbed": (["--checkpoint-every", "0", "--workers", "0"], [], None),
             "with checkpoints": (["--checkpoint-every", "1", "--workers", "0"], [], None)}
    cases |= {case: ([*flags, *([] if "--workers" in flags else ["--workers", "0"])], kills, None)
              for case, (flags, kills) in KILLS.items()}
    cases |= {fault: ([*LATE[0], "--workers", "0"], LATE[1], fault) for fault in FAULTS}
    run_ranks(runs_on_rank, 1 if name == "single" else RANKS, name, str(images), str(folder), cases)
    return name, folder


def test_checkpoints_change_nothing(runs):
    name, folder = runs
    assert outcome(folder / "with checkpoints", name) == outcome(folder / "undisturbed", name)
    written = read_results(folder / "with checkpoints" / f"results_{name}.json").checkpoints
    assert written.written == STEPS_PER_EPOCH * EPOCHS
    assert written.bytes > 1000
    assert read_results(folder / "undisturbed" / f"results_{name}.json").checkpoints is None


@pytest.mark.parametrize("case", KILLS)
def test_a_killed_run_ends_as_an_undisturbed_one(case, runs):  # row 26
    name, folder = runs
    assert outcome(folder / case, name) == outcome(folder / "undisturbed", name)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_what_a_resume_can_get_wrong(fault, runs):
    name, folder = runs
    assert outcome(folder / fault, name) != outcome(folder / "undisturbed", name)


def test_a_finished_run_leaves_no_checkpoint(runs):
    _, folder = runs
    assert not list(folder.glob("*/checkpoints"))
    assert not list(folder.rglob("*.tmp"))


def test_a_resumed_epoch_is_the_sum_of_what_was_measured(runs):
    name, folder = runs
    results = read_results(folder / "three times" / f"results_{name}.json")
    assert [(stop.epoch, stop.step) for stop in results.resumed_at] == [(1, 1), (1, 2), (2, 2)]
    for epoch in results.epochs:
        assert len(epoch.step_times) == epoch.steps == STEPS_PER_EPOCH
        assert sum(epoch.step_times) == pytest.approx(epoch.train_time, rel=0.1)
        assert epoch.train_throughput * epoch.train_time == pytest.approx(epoch.samples)


def test_a_servers_segments_add_up():
    parts = [ServerEpoch(wait=1, send_parameters=0, receive_gradients=2, update=3, updates=1, bytes_sent=10,
                         bytes_received=20, messages=5),
             ServerEpoch(wait=4, send_parameters=0, receive_gradients=2, update=0, updates=2, bytes_sent=1,
                         bytes_received=2, messages=1)]
    assert merged(parts) == ServerEpoch(wait=3, send_parameters=0, receive_gradients=2, update=1, updates=3,
                                        bytes_sent=11, bytes_received=22, messages=6)


@pytest.mark.parametrize(("every", "start", "within", "after"), [
    (0, (1, 0), [[], [], []], [False, False, False]),
    (None, (1, 0), [[], [], []], [True, True, True]),
    (1, (1, 0), [[1, 2, 3], [1, 2, 3], [1]], [True, True, True]),
    (3, (1, 0), [[3], [2], [1]], [False, False, False]),
    (4, (1, 0), [[], [], []], [True, True, False]),
    (1, (2, 2), [[1, 2, 3], [3], [1]], [True, True, True]),
])
def test_where_checkpoints_are_due(every, start, within, after):
    checkpoints = Checkpoints(None, Plan((4, 4, 2), 0.1, "constant"), every=every)
    checkpoints.start = DataPosition(*start)
    assert [checkpoints.within(epoch) for epoch in (1, 2, 3)] == within
    assert [checkpoints.due_after(epoch) for epoch in (1, 2, 3)] == after


# One process and one small run from here on: what is refused, and what a crash leaves.
SMALL = ["--max-steps", "6", "--global-batch-size", "8", "--checkpoint-every", "2", "--output-dir", "out"]


def small_run(*flags: str, killed_after: int | None = None) -> int | None:
    """The exit code of an all-reduce of one rank, or None if it was killed after so many steps."""
    steps, add = 0, Tally.add

    def counting_add(self: Tally, *arguments: object) -> None:
        nonlocal steps
        add(self, *arguments)
        steps += 1
        if steps == killed_after:
            raise Killed

    with mock.patch.object(Tally, "add", counting_add), \
            mock.patch.multiple(probe, WARM_UP_STEPS=1, MIN_ROUNDS=2, MAX_ROUNDS=2), \
            mock.patch.multiple(main, Watchdog=NoWatchdog, end_process=lambda status: status):
        try:
            return main.run_script(lambda launch: all_reduce_train.AllReduce, argv=[*SMALL, *flags])
        except Killed:
            return None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a run that was killed after step 3, with a checkpoint of step 2, and of one that was not."""
    folders = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("undisturbed")
    for folder, killed_after in zip(folders, (3, None), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert small_run(killed_after=killed_after) == (None if killed_after else 0)
    return folders


@pytest.fixture
def interrupted(interrupted_run, tmp_path, monkeypatch) -> Path:
    """The current directory holds a copy of the killed run; returns the folder of its checkpoint."""
    shutil.copytree(interrupted_run[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("out/checkpoints/all_reduce")


def content(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *flags: str) -> str:
    """Resume, expect exit 2, one line, no process group and every file as it was; returns the line."""
    before = content(Path())
    capsys.readouterr()
    with mock.patch.object(dist, "init_process_group", side_effect=AssertionError("a group for refused input")):
        assert small_run("--resume", *flags) == 2
    assert content(Path()) == before
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert (printed.out, len(lines)) == ("", 1), lines
    assert lines[0].startswith("error: --resume: ")
    return lines[0]


@pytest.mark.parametrize(("flags", "named"), [
    (["--lr", "0.1"], ["lr: 0.02 there, 0.1 now"]),
    (["--seed", "3", "--momentum", "0.5"], ["seed: 42 there, 3 now", "momentum: 0.9 there, 0.5 now"]),
    (["--global-batch-size", "16"], ["global_batch_size: 8 there, 16 now"]),
    (["--max-steps", "7"], ["max_steps: 6 there, 7 now"]),
    (["--model", "resnet18"], ["model: groupnorm_cnn there, resnet18 now"]),
    (["--amp", "bf16"], ["amp: off there, bf16 now"]),
    (["--dataset", "synthetic", "--model", "groupnorm_cnn", "--image-size", "16"],
     ["dataset: digits there, synthetic now", "classes: 10"]),
])
def test_a_changed_recipe_is_refused(flags, named, interrupted, capsys):  # row 25
    line = refused(capsys, *flags)
    assert all(words in line for words in [*named, "leave out --resume"]), line


def test_the_methods_own_settings_make_another_run():
    one, other = (RunResults(method="all_reduce", settings={"bucket_mb": size, "chunk_mb": 1}) for size in (None, 8))
    assert differences(one, other) == ["bucket_mb: not given there, 8 now"]
    assert differences(one, one) == []


def test_another_number_of_ranks_is_refused(interrupted, capsys, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert "ranks: 1 there, 2 now" in refused(capsys)


def test_execution_flags_may_change(interrupted, interrupted_run):
    assert small_run("--resume", "--workers", "1", "--timeout", "60", "--checkpoint-every", "1") == 0
    assert outcome(Path("out"), "all_reduce") == outcome(interrupted_run[1] / "out", "all_reduce")


DAMAGES = {
    **{f"truncated at {part}/16": lambda data, part=part: data[: len(data) * part // 16] for part in range(16)},
    **{f"a bit flipped at {part}/16": lambda data, part=part: flipped(data, len(data) * part // 16)
       for part in range(16)},
    "longer": lambda data: data + b" ", "of zeros": lambda data: bytes(len(data)),
}


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("file", [MANIFEST, "generation_1.rank_0.pt"])
def test_a_damaged_checkpoint_is_refused(file, interrupted, capsys):
    whole = (interrupted / file).read_bytes()
    for damage in DAMAGES.values():
        (interrupted / file).write_bytes(damage(whole))
        line = refused(capsys)
        assert f"{interrupted / file}: damaged" in line
    (interrupted / file).unlink()
    if file != MANIFEST:
        assert f"{interrupted / file}: damaged" in refused(capsys)


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("written by a pickle",))


@pytest.mark.parametrize("unsafe_default", [False, True])
@pytest.mark.parametrize("value", [Malicious(), {"module": Malicious(), "trainer": {}, "random": {}, "rest": {}},
                                   [1, 2], {"module": {}}], ids=["pickle", "part", "list", "lacking"])
def test_a_checkpoint_of_somebody_else_runs_no_code(value, unsafe_default, interrupted, capsys, monkeypatch):  # row 22
    if unsafe_default:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    forged = io.BytesIO()
    torch.save(value, forged)
    manifest = json.loads((interrupted / MANIFEST).read_text())["manifest"]
    manifest["files"][0] = {"bytes": len(forged.getvalue()), "digest": digest(forged.getvalue())}
    (interrupted / MANIFEST).write_bytes(signed(manifest))
    (interrupted / "generation_1.rank_0.pt").write_bytes(forged.getvalue())
    assert "generation_1.rank_0.pt: damaged" in refused(capsys)
    assert not Path("written by a pickle").exists()


@pytest.mark.parametrize("change", [{"generation": "../../1"}, {"epoch": 0}, {"step": -1}, {"files": []},
                                    {"format": 2}])
def test_a_forged_manifest_is_refused(change, interrupted, capsys):
    manifest = json.loads((interrupted / MANIFEST).read_text())["manifest"]
    (interrupted / MANIFEST).write_bytes(signed({**manifest, **change}))
    assert f"{interrupted / MANIFEST}: damaged" in refused(capsys)


def test_a_full_disk_leaves_the_checkpoint_before_it(interrupted, interrupted_run, capsys):  # row 8
    before = content(interrupted)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert small_run("--resume") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(words in line for words in (f"{interrupted}/generation_2.rank_0.pt", "File too large", "rank 0")), line
    assert content(interrupted) == before
    assert small_run("--resume") == 0
    assert outcome(Path("out"), "all_reduce") == outcome(interrupted_run[1] / "out", "all_reduce")


@pytest.mark.parametrize("crash", ["before the rank's file", "before the manifest", "before the older one goes"])
def test_a_crash_while_writing_leaves_one_whole_checkpoint(crash, interrupted, interrupted_run):  # row 9
    writes, write = [], checkpoint._write

    def crashing_write(path: Path, data: bytes) -> None:
        writes.append(path)
        if len(writes) == {"before the rank's file": 1, "before the manifest": 2}.get(crash):
            (path.parent / f".{path.name}.x.gradsync.tmp").write_bytes(data[:10])
            raise Killed
        write(path, data)

    remove = Checkpoints._remove_all_but

    def crashing_remove(self: Checkpoints, generation: int | None) -> None:
        if writes and crash == "before the older one goes":
            raise Killed
        remove(self, generation)

    with mock.patch.object(checkpoint, "_write", crashing_write), \
            mock.patch.object(Checkpoints, "_remove_all_but", crashing_remove):
        assert small_run("--resume") is None
    expected = 4 if crash == "before the older one goes" else 2
    assert json.loads((interrupted / MANIFEST).read_text())["manifest"]["step"] == expected
    for leftover in Path("out").rglob(".*.tmp"):
        os.utime(leftover, (0, 0))  # it has been there for long
    assert small_run("--resume") == 0
    assert outcome(Path("out"), "all_reduce") == outcome(interrupted_run[1] / "out", "all_reduce")
    assert not Path("out/checkpoints").exists()


def test_another_environment_is_noted(interrupted, monkeypatch, capsys):
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert small_run("--resume") == 0
    assert "Note: another environment than the checkpoint's: torch: " in capsys.readouterr().out
    (stop,) = read_results(Path("out/results_all_reduce.json")).resumed_at
    assert len(stop.changed) == 1 and stop.changed[0].endswith("9.9 now")


def test_without_resume_a_run_starts_anew_and_says_so(interrupted, interrupted_run, capsys):
    assert small_run() == 0
    assert "--resume would go on from there" in capsys.readouterr().out
    assert outcome(Path("out"), "all_reduce") == outcome(interrupted_run[1] / "out", "all_reduce")
    assert not Path("out/checkpoints").exists()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, monkeypatch, capsys, interrupted_run):
    monkeypatch.chdir(tmp_path)
    assert small_run("--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert outcome(Path("out"), "all_reduce") == outcome(interrupted_run[1] / "out", "all_reduce")


def test_a_finished_run_is_not_run_again(interrupted_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(interrupted_run[1], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = content(tmp_path)
    with mock.patch.object(dist, "init_process_group", side_effect=AssertionError("it was run again")):
        assert small_run("--resume") == 0
    assert capsys.readouterr().out == "Already finished: out/results_all_reduce.json\n"
    assert content(tmp_path) == before
    assert "lr: 0.02 there, 0.1 now" in refused(capsys, "--lr", "0.1")


def hidden_on_rank(rank: int, world_size: int, store_path: str) -> str:
    """What rank 0 is told where only rank 1 finds a checkpoint."""
    with process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"), 0, 60,
                       dist.FileStore(store_path, world_size)) as ctx:
        saved = mock.Mock(position=DataPosition(2, 1), manifest=mock.Mock(generation=3)) if rank else None
        try:
            Checkpoints(ctx, Plan((4,), 0.1, "constant"), Path("nowhere"), 1, saved).agree()
        except JobError as error:
            return str(error)
    return ""


def test_ranks_that_find_different_checkpoints_do_not_train():
    messages = run_ranks(hidden_on_rank, 2)
    assert all("rank 1 and rank 0 do not find the same checkpoint in nowhere" in message for message in messages)


def test_files_that_the_recorder_cannot_see_make_no_checkpoint(tmp_path, capsys):
    ctx = mock.Mock(is_recorder=True, rank=0, device=torch.device("cpu"))
    checkpoints = Checkpoints(ctx, Plan((4,), 0.1, "constant"), tmp_path, every=1)
    ctx.gather_records.side_effect = lambda record: [record, record]  # rank 1's own file is on another host
    with mock.patch.object(dist, "barrier"):
        checkpoints.save(DataPosition(1, 2), mock.Mock(**{"module.state_dict.return_value": {},
                                                          "state_dict.return_value": {}}), {}, RunResults(method="ps"))
    assert "the files of rank 1 are not in" in capsys.readouterr().out
    assert not (tmp_path / MANIFEST).exists()


SCRIPTS = {"baseline_ddp": ("baseline_multi_card", "lambda launch: script.Baseline"),
           "all_reduce": ("all_reduce_train", "lambda launch: script.AllReduce"),
           "ps": ("ps_train", "lambda launch: script.ParameterServerWorker, script.ParameterServer")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_torchrun_survives_a_killed_worker_by_itself(name, tmp_path):
    script, arguments = SCRIPTS[name]
    (tmp_path / "script.py").write_text(killed_once(script, arguments))
    flags = ["--max-steps", "6", "--global-batch-size", "8", "--checkpoint-every", "3", "--resume"]
    if name == "baseline_ddp":
        flags += ["--model", "resnet18"]  # several buckets, whose order must be the same in a new process
    outcomes = []
    for _ in range(2):  # the first run is killed, the second finds that this has been done
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                   "--max-restarts=3", "script.py", *flags]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
        assert run.returncode == 0, run.stderr
        results = read_results(tmp_path / f"results_{name}.json")
        assert [(stop.epoch, stop.step) for stop in results.resumed_at] == ([] if outcomes else [(1, 3)])
        outcomes.append(outcome(tmp_path, name))
        assert not (tmp_path / f"results_{name}.failed.json").exists()
        (tmp_path / f"results_{name}.json").unlink()
    assert outcomes[0] == outcomes[1]
