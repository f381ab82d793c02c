"""Data and model parallelism in one process: flags, gradients against the unsplit network, the comparison."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import datasets as tv_datasets

from cifar10 import compare_parallel, data_parallel_train, model_parallel_train
from cifar10.comparison import Entry, complete_entry
from cifar10.data_parallel_train import DataParallel
from cifar10.model_parallel_train import ModelParallel, Pipeline
from cifar10.network import two_part_cnn
from cifar10.one_process import OneProcessConfig, OneProcessMethod, OneProcessRun, SingleDevice, open_data
from gradsync import main
from gradsync.config import Plan
from gradsync.data import Batch
from gradsync.distributed import Launch
from gradsync.errors import RunError, UsageError
from gradsync.main import exit_code
from gradsync.results import EpochResults, RunResults, read_results

TOP = Path(__file__).resolve().parent.parent
SCRIPTS = {"data": data_parallel_train, "model": model_parallel_train, "compare": compare_parallel}
CPU = torch.device("cpu")
BATCH = 22  # divides into neither 3, 4 nor 5 chunks


def config_for(script: str, argv: list[str]) -> OneProcessConfig:
    chosen = SCRIPTS[script].choose(argv)
    return chosen if script == "compare" else chosen[1]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Call it with the number of GPUs that the machine is to have."""
    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return have


# Flags

@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults(script: str) -> None:
    config = config_for(script, [])
    found = (config.data_dir, config.dataset, config.epochs, config.batch_size, config.lr, config.device, config.seed,
             config.workers, config.download, config.chunks)
    assert found == ("./data", "cifar10", 10, 128, 1e-3, "gpu", 42, 2, False, 4 if script == "compare" else 1)


@pytest.mark.parametrize(("script", "argv", "method"), [
    ("data", [], SingleDevice),
    ("data", ["--use-parallel"], DataParallel),
    ("model", [], SingleDevice),
    ("model", ["--use-model-parallel"], ModelParallel),
    ("model", ["--use-model-parallel", "--chunks", "4"], Pipeline),
])
def test_method_by_flags(script: str, argv: list[str], method: type[OneProcessMethod]) -> None:
    assert SCRIPTS[script].choose([*argv, "--epochs", "10", "--batch-size", "128", "--device", "gpu"])[0] is method


@pytest.mark.parametrize(("script", "argv", "named"), [
    ("data", ["--epochs", "0"], ["--epochs", "at least 1"]),
    ("data", ["--batch-size", "x"], ["--batch-size", "whole number"]),
    ("data", ["--lr", "nan"], ["--lr", "out of range"]),
    ("data", ["--device", "tpu"], ["--device", "tpu"]),
    ("data", ["--num-workers", "-1"], ["--num-workers"]),
    ("data", ["--seed", "-1"], ["--seed"]),
    ("data", ["--use-model-parallel"], ["--use-model-parallel"]),
    ("model", ["--use-parallel"], ["--use-parallel"]),
    ("model", ["--use-model-parallel", "--chunks", "0"], ["--chunks", "at least 1"]),
    ("model", ["--use-model-parallel", "--batch-size", "8", "--chunks", "9"], ["--chunks 9", "8 samples"]),
    ("model", ["--chunks", "2"], ["--chunks 2", "--use-model-parallel"]),
    ("compare", ["--batch-size", "2"], ["--chunks 4", "--batch-size"]),
    ("data", ["--data-root", "no where"], ["--data-root no where", "--download", "--dataset digits"]),
    ("model", ["--data-root", "no where"], ["--data-root no where", "--download", "--dataset digits"]),
    ("compare", ["--data-root", "no where"], ["--data-root no where", "--download", "--dataset digits"]),
    ("data", ["--dataset", "digits", "--output-dir", "a file"], ["--output-dir a file"]),
])
def test_bad_input_is_one_line(script: str, argv: list[str], named: list[str], tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()

    def prepare():
        chosen = SCRIPTS[script].choose(argv)
        return compare_parallel.Study(chosen) if script == "compare" else OneProcessRun(*chosen)

    assert exit_code(Launch(), prepare) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in named), line
    assert os.listdir() == ["a file"]


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start it with python"):
        OneProcessRun(SingleDevice, OneProcessConfig(dataset="digits"))


# CIFAR-10 on disk

def store_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny CIFAR-10 in torchvision's layout, with the sums that its reader is to expect."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def stored(name: str, content: dict) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    random = np.random.default_rng(0)
    batches = [stored(name, {"data": random.integers(0, 256, (8, 3072), dtype=np.uint8), "labels": list(range(8))})
               for name in ("data_batch_1", "test_batch")]
    meta = stored("batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(tv_datasets.CIFAR10, "train_list", batches[:1])
    monkeypatch.setattr(tv_datasets.CIFAR10, "test_list", batches[1:])
    monkeypatch.setattr(tv_datasets.CIFAR10, "meta",
                        {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return base


def test_cifar10_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = store_cifar10(tmp_path / "my data", monkeypatch)
    argv = ["--data-root", str(tmp_path / "my data"), "--epochs", "1", "--batch-size", "4", "--device", "cpu",
            "--num-workers", "0", "--output-dir", str(tmp_path)]
    OneProcessRun(*data_parallel_train.choose(argv)).run()
    results = read_results(tmp_path / "results_single.json")
    assert results.dataset.image_shape == [3, 32, 32]
    assert (results.dataset.train_samples, results.epochs[0].steps) == (8, 2)
    (base / "data_batch_1").write_bytes(b"damaged")
    with pytest.raises(UsageError, match="no intact CIFAR-10"):
        open_data(config_for("data", argv))


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(tv_datasets, "CIFAR10", no_network)
    with pytest.raises(UsageError, match=r"--download: .*my data: .*no route to host.*--dataset digits"):
        open_data(config_for("data", ["--download", "--data-root", str(tmp_path / "my data")]))


# Gradients

def batch_of(count: int, device: torch.device = CPU) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 1, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (count,), generator=generator)
    return Batch(images.to(device), labels.to(device), count, count)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return two_part_cnn(10, 1).double()


def split(method: type[OneProcessMethod], chunks: int = 1, device: str = "cpu") -> OneProcessMethod:
    config = OneProcessConfig(dataset="digits", batch_size=BATCH, chunks=chunks, device=device)
    first = torch.device("cuda", 0) if device == "gpu" else CPU
    return method(network(), config, SimpleNamespace(device=first), Plan.of(config, BATCH, BATCH))


def furthest(method: OneProcessMethod, count: int = BATCH) -> float:
    """Largest difference from the whole batch on the unsplit network: of the loss, a gradient, or the correct samples.

    Two steps, so that gradients left over from the one before would show.
    """
    oracle, batch = network(), batch_of(count)
    outputs = oracle(batch.images)
    loss = functional.cross_entropy(outputs, batch.labels)
    loss.backward()
    for _ in range(2):
        output = method.forward_backward(batch_of(count, method.ctx.device))
    correct = (outputs.argmax(1) == batch.labels).sum()
    pairs = zip(oracle.parameters(), method.module.parameters(), strict=True)
    differences = [(ours.grad.cpu() - theirs.grad).abs().max() for theirs, ours in pairs]
    differences += [(output.loss.cpu() - loss).abs(), (output.correct.cpu() - correct).abs()]
    return max(difference.item() for difference in differences)


# Gradients are up to 0.6 here, and sums of up to 22 x 144 products, in another order if the batch is cut, in float64
# with its 1.1e-16: the largest difference seen is 4e-16. The planted faults make one of 0.01 or more.
BOUND = 1e-14
TWO_GPUS = pytest.param("gpu", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"))


@pytest.mark.parametrize("device", ["cpu", TWO_GPUS])
@pytest.mark.parametrize(("method", "chunks"), [
    (SingleDevice, 1), (DataParallel, 1), (ModelParallel, 1), *((Pipeline, chunks) for chunks in (2, 3, 4, 5, BATCH)),
])
def test_gradients_are_those_of_the_unsplit_network(method: type[OneProcessMethod], chunks: int, device: str) -> None:
    assert furthest(split(method, chunks, device)) < BOUND


def test_a_short_last_batch_has_fewer_chunks() -> None:
    assert furthest(split(Pipeline, chunks=8), count=3) < BOUND


class MeanOfMeans(Pipeline):
    def forward_backward_second(self, features, labels, weight):
        return super().forward_backward_second(features, labels, 1 / (self.config.chunks * len(labels)))


class OnlyLastOnSecond(Pipeline):
    def forward_backward_second(self, features, labels, weight):
        self.module.second.zero_grad()
        return super().forward_backward_second(features, labels, weight)


class OneLostOnFirst(Pipeline):
    def forward_backward_second(self, features, labels, weight):
        gradient, output = super().forward_backward_second(features, labels, weight)
        return gradient * (len(labels) == BATCH // self.config.chunks), output


class OtherLabels(Pipeline):
    def forward_backward_second(self, features, labels, weight):
        return super().forward_backward_second(features, labels.flip(0), weight)


@pytest.mark.parametrize("fault", [MeanOfMeans, OnlyLastOnSecond, OneLostOnFirst, OtherLabels])
def test_planted_faults_are_caught(fault: type[Pipeline]) -> None:
    assert furthest(split(fault, chunks=3)) > 1e-3


def meet(pipeline: Pipeline, seconds: float) -> None:
    """A step in which the first part, at its second micro-batch, and the second, at its first, wait for each other."""
    barrier, calls = threading.Barrier(2, timeout=seconds), {"first": 0, "second": 0}

    def arrive(name: str, at: int) -> None:
        calls[name] += 1
        if calls[name] == at:
            barrier.wait()

    pipeline.module.first.register_forward_pre_hook(lambda *_: arrive("first", 2))
    pipeline.module.second.register_forward_pre_hook(lambda *_: arrive("second", 1))
    pipeline.forward_backward(batch_of(BATCH))


def test_both_parts_work_at_once() -> None:
    meet(split(Pipeline, chunks=3), seconds=60)


def test_parts_in_turn_are_caught() -> None:
    class AtOnce:
        def submit(self, function, *arguments):
            answer = Future()
            answer.set_result(function(*arguments))
            return answer

    pipeline = split(Pipeline, chunks=3)
    pipeline.second_part = AtOnce()
    with pytest.raises(threading.BrokenBarrierError):
        meet(pipeline, seconds=0.2)


def test_a_failure_of_the_second_part_reaches_the_caller() -> None:
    pipeline = split(Pipeline, chunks=3)
    pipeline.module.second.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RunError("planted")))
    with pytest.raises(RunError, match="planted"):
        pipeline.forward_backward(batch_of(BATCH))


# Fewer devices than a mode needs

@pytest.mark.parametrize(("argv", "count", "devices", "remark"), [
    (["--use-model-parallel"], 0, ["cpu"], "no parallel effect"),
    (["--use-model-parallel"], 1, ["cuda:0"], "no parallel effect"),
    (["--use-model-parallel"], 3, ["cuda:0", "cuda:1"], ""),
    (["--use-model-parallel", "--device", "cpu"], 3, ["cpu"], "no parallel effect"),
    (["--use-model-parallel", "--chunks", "2"], 1, ["cuda:0"], "no parallel effect"),
    (["--use-model-parallel", "--chunks", "2"], 2, ["cuda:0", "cuda:1"], ""),
    (["--use-parallel"], 0, ["cpu"], "no parallel effect"),
    (["--use-parallel"], 1, ["cuda:0"], "no parallel effect"),
    (["--use-parallel"], 3, ["cuda:0", "cuda:1", "cuda:2"], ""),
    (["--use-parallel", "--device", "cpu"], 3, ["cpu"], "no parallel effect"),
    ([], 3, ["cuda:0"], ""),
])
def test_devices_and_what_is_said_of_them(argv: list[str], count: int, devices: list[str], remark: str, gpus,
                                          tmp_path: Path) -> None:
    gpus(count)
    script = data_parallel_train if "--use-parallel" in argv else model_parallel_train
    run = OneProcessRun(*script.choose([*argv, "--dataset", "digits", "--output-dir", str(tmp_path)]))
    found = run.results.parallelism
    assert found["devices"] == devices
    assert found["remark"].startswith(remark) and bool(found["remark"]) is bool(remark)


@pytest.mark.parametrize(("threads", "cores", "remark"), [
    (1, 1, "no parallel effect"), (2, 2, "no parallel effect"), (1, 2, "cores stand in"), (2, 4, "cores stand in"),
])
def test_a_pipeline_on_the_cpu_says_whether_cores_are_shared(threads: int, cores: int, remark: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert Pipeline.remark(OneProcessConfig(chunks=2), [CPU]).startswith(remark)


@pytest.mark.parametrize(("argv", "count", "skipped"), [
    ([], 0, {"data_parallel": "none", "model_parallel": "--device cpu", "pipeline": "none"}),
    ([], 1, {"data_parallel": "has one", "model_parallel": "has one", "pipeline": "has one"}),
    ([], 2, {}),
    (["--device", "cpu"], 2, {"data_parallel": "on a CPU"}),
    (["--chunks", "1"], 4, {}),
])
def test_what_a_comparison_skips(argv: list[str], count: int, skipped: dict[str, str], gpus, tmp_path: Path) -> None:
    gpus(count)
    study = compare_parallel.Study(
        compare_parallel.choose([*argv, "--dataset", "digits", "--output-dir", str(tmp_path)]))
    entries = {job.method: job.reason for job in study.plan if isinstance(job, Entry)}
    assert entries.keys() == skipped.keys()
    assert all(word in entries[method] for method, word in skipped.items())
    methods = ["single", "data_parallel", "model_parallel"] + ["pipeline"] * ("--chunks" not in argv)
    assert [job.method if isinstance(job, Entry) else job.method.name for job in study.plan] == methods
    chunks = {job.method.name: job.config.chunks for job in study.plan if isinstance(job, OneProcessRun)}
    assert all(count == (4 if name == "pipeline" else 1) for name, count in chunks.items())


# The comparison

def results_with(method: str, times: list[float]) -> RunResults:
    return RunResults(
        method=method, title=method.title(), best_accuracy=91.25, epochs=[
            EpochResults(epoch=number, train_time=time, train_loss=0.5, val_accuracy=90.0)
            for number, time in enumerate(times, start=1)],
        parallelism={"devices": ["cpu"], "chunks": 1, "remark": ""})


@pytest.mark.parametrize(("times", "base", "speedup", "shown", "text"), [
    ([2.0, 2.2, 9.0], [4.0, 4.4, 4.5], 2.0, False, "2.00 ~"),
    ([2.0, 2.2, 2.4], [4.0, 4.4, 4.5], 2.0, True, "2.00"),
    ([5.0], [4.0], 0.8, None, "0.80 ?"),
])
def test_speedup(times: list[float], base: list[float], speedup: float, shown: bool | None, text: str) -> None:
    entry = complete_entry(results_with("pipeline", times), results_with("single", base))
    assert entry.speedup == pytest.approx(speedup)
    assert (entry.difference_shown, entry.speedup_text) == (shown, text)
    assert entry.total_time == pytest.approx(sum(times))
    assert entry.time_per_epoch_range == (min(times), max(times))


def test_the_single_device_is_the_measure() -> None:
    single = results_with("single", [4.0, 4.4])
    assert complete_entry(single, single).speedup_text == "1.00"


def launched(script: str, cwd: Path, *flags: str) -> str:
    """Run a script as a user does, from a directory of their own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, TOP / "cifar10" / script, "--dataset", "digits", "--max-steps", "2", "--batch-size", "30",
         "--num-workers", "0", *flags],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of a short comparison on the CPU, and what it printed."""
    cwd = tmp_path_factory.mktemp("my work")
    printed = launched("compare_parallel.py", cwd, "--device", "cpu", "--chunks", "4")
    return cwd / "cifar10_results", printed


def test_comparison_follows_one_trajectory(compared: tuple[Path, str]) -> None:
    names = ("single", "model_parallel", "pipeline")
    runs = {name: read_results(compared[0] / f"results_{name}.json") for name in names}
    single = runs["single"]
    assert (single.status, len(single.all_losses), single.epochs[0].samples) == ("complete", 2, 60)
    for run in runs.values():
        assert run.recipe == single.recipe
        assert run.initial_fingerprints == single.initial_fingerprints
        # float32 sums in another order, before Adam has had the time to let them grow
        assert run.all_losses == pytest.approx(single.all_losses, abs=1e-4)


def test_comparison_keeps_what_it_skipped(compared: tuple[Path, str]) -> None:
    directory, printed = compared
    entries = json.loads((directory / "parallel_comparison.json").read_text())["entries"]
    assert {entry["method"]: entry["status"] for entry in entries} == {
        "single": "complete", "data_parallel": "skipped", "model_parallel": "complete", "pipeline": "complete"}
    single, skipped = entries[:2]
    assert "needs two GPUs" in skipped["reason"] and skipped["speedup"] is None
    assert single["speedup"] == 1 and single["total_time"] == single["time_per_epoch"] > 0
    assert 0 < single["best_val_accuracy"] <= 100
    for entry in entries[2:]:
        assert entry["speedup"] == pytest.approx(single["time_per_epoch"] / entry["time_per_epoch"])
    rows = [line.split("  ")[0] for line in printed.splitlines()]
    assert all(title in rows for title in ("Single-Device", "Data-Parallel", "Model-Parallel", "Pipeline, 4 chunks"))
    assert "Data-Parallel: skipped, needs two GPUs" in printed
    assert not list(directory.glob("**/*.tmp"))


def test_comparison_draws_its_charts(compared: tuple[Path, str]) -> None:
    names = sorted(os.listdir(compared[0] / "plots"))
    assert names == ["accuracy_curves.png", "loss_curves.png", "parallel_speedup.png"]
    for name in names:
        assert (compared[0] / "plots" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("script", "flags", "method"), [
    ("data_parallel_train.py", ["--use-parallel"], "data_parallel"),
    ("model_parallel_train.py", ["--use-model-parallel"], "model_parallel"),
])
def test_scripts_run_with_fewer_gpus_and_say_so(script: str, flags: list[str], method: str, tmp_path: Path) -> None:
    printed = launched(script, tmp_path, *flags, "--output-dir", "out")
    assert "Note: --device gpu: there is no GPU here, so this runs on the CPU" in printed
    assert "Note: no parallel effect" in printed
    results = read_results(tmp_path / "out" / f"results_{method}.json")
    assert results.epochs[0].val_samples == 1000
    assert results.epochs[0].train_throughput == pytest.approx(60 / results.epochs[0].train_time)


def test_a_failing_run_is_named_and_leaves_the_comparison_alone(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "parallel_comparison.json").write_text("earlier")
    config = compare_parallel.choose(["--dataset", "digits", "--device", "cpu", "--max-steps", "1",
                                      "--num-workers", "0", "--output-dir", str(tmp_path)])

    def explode(self, batch, loss_factor=1.0):
        raise RunError("planted")

    monkeypatch.setattr(SingleDevice, "forward_backward", explode)
    monkeypatch.setattr(main, "end_process", lambda status: status)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert exit_code(Launch(), lambda: compare_parallel.Study(config)) == 1
    finally:
        signal.set_wakeup_fd(-1)  # the watchdog's, like its handlers; a failed process leaves them to its end, too
        for number, handler in handlers.items():
            signal.signal(number, handler)
        torch.distributed.destroy_process_group()  # a failed process leaves it to its end
    assert capsys.readouterr().err == "error: single, rank 0: planted\n"
    assert (tmp_path / "parallel_comparison.json").read_text() == "earlier"
    assert read_results(tmp_path / "results_single.failed.json").error.endswith("planted")
