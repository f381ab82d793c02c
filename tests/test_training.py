"""The parts of a run that the parity tests do not see: clock, probe, buffers, flags, failure, files."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import torch
from parity import Job
from ranks import run_ranks
from torch import distributed as dist
from torch import nn

import all_reduce_train
import baseline_multi_card
import ps_train
from gradsync import main, probe, training
from gradsync.config import Plan, TrainConfig, learning_rate_factor, parse_config
from gradsync.distributed import Launch, process_group, read_launch
from gradsync.models import groupnorm_cnn, parameter_fingerprint, parameter_sketch
from gradsync.results import read_results
from gradsync.timing import StepClock

METHODS = {"baseline_ddp": (baseline_multi_card.Baseline, None), "all_reduce": (all_reduce_train.AllReduce, None),
           "ps": (ps_train.ParameterServerWorker, ps_train.ParameterServer)}


def test_clock_accounts_for_all_of_its_time(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    clock = StepClock(torch.device("cpu"))
    for _ in clock.steps(["a", "b"]):
        with clock.phase("work"):
            pass
    phases, steps = clock.finish_epoch()
    # Each reading of the watch is a second: a step is its start, the wait's two readings, the work's two.
    assert phases == {"data_wait": 3.0, "work": 2.0}  # the third wait learns that there is no more
    assert steps == [5.0, 8.0]
    assert clock.finish_epoch() == ({}, [])


@pytest.mark.parametrize(("rounds", "exposed"), [
    (([0.3, 0.4, 0.5], [0.1, 0.1, 0.1]), 0.3),
    (([0.1, 0.1, 0.1], [0.1, 0.2, 0.1]), 0.0),
])
def test_exposed_communication_is_the_median_of_paired_differences(rounds, exposed):
    assert probe.summarise_rounds(*rounds).exposed_communication == pytest.approx(exposed)


@pytest.mark.parametrize(("schedule", "factors"), [
    ("constant", [1, 1, 1, 1]), ("step", [1, 1, 0.1, 0.01]), ("cosine", [1, 0.8535533906, 0.5, 0.1464466094]),
])
def test_schedules(schedule, factors):
    assert [learning_rate_factor(schedule, step, 4) for step in range(4)] == pytest.approx(factors)


@pytest.mark.parametrize(("flags", "lengths"), [
    ([], (16, 16, 16)), (["--max-steps", "20"], (16, 4)), (["--max-steps", "5"], (5,)), (["--epochs", "1"], (16,)),
    (["--max-steps", "99"], (16, 16, 16)),
])
def test_plan(flags, lengths):
    assert Plan.of(parse_config(flags, None), 4000, 256).epoch_lengths == lengths


@pytest.mark.parametrize(("flags", "rate"), [
    ([], 0.01), (["--scale-lr"], 0.04), (["--scale-lr", "batch"], 0.04), (["--scale-lr", "replicas"], 0.02),
])
def test_linear_scaling_rule(flags, rate):
    config = parse_config(["--lr", "0.01", "--batch-size", "64", *flags], None)
    assert config.base_learning_rate(256, num_replicas=2) == pytest.approx(rate)
    assert Plan.of(config, 4000, 256, 2).learning_rate == pytest.approx(rate)


def test_launch_without_torchrun_is_a_group_of_one():
    assert read_launch({}) == Launch()
    assert read_launch({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}).num_hosts == 2


def scripts_on_rank(rank, world_size, store_path, runs):
    """Each of ``runs`` (method, flags) as its script would run it, on the ranks of one launch."""
    codes = []
    probe.WARM_UP_STEPS, probe.MIN_ROUNDS, probe.MAX_ROUNDS = 1, 3, 3
    original = main.process_group
    store, watch_store = dist.FileStore(store_path, world_size), dist.FileStore(f"{store_path}.watch", world_size)
    main.end_process = lambda status: status
    main.read_launch = lambda: Launch(rank, world_size, rank, world_size, by_torchrun=True)
    for number, (name, flags) in enumerate(runs):
        method, server = METHODS[name]
        main.process_group = lambda *args, number=number: original(*args, store=dist.PrefixStore(str(number), store))
        main.own_store = lambda launch, number=number: dist.PrefixStore(str(number), watch_store)
        codes.append(main.run_script(lambda launch, method=method: method, server=server, argv=flags))
        if codes[-1] != 0:
            break  # its process group is left as it was when the run failed
    return codes


def all_scripts_on_rank(rank, world_size, store_path, runs):
    codes = scripts_on_rank(rank, world_size, store_path, runs)
    assert codes == [0] * len(runs), f"{runs[len(codes) - 1]} ended with {codes[-1]}"


EXTRA_FLAGS = [["--amp", "bf16"], ["--amp", "fp16"], ["--channels-last"], ["--model", "resnet18"],
               ["--dataset", "synthetic", "--model", "groupnorm_cnn", "--image-size", "16"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of every method: the default recipe, and two steps with each of the other flags. Three ranks."""
    folder = tmp_path_factory.mktemp("a földer with spaces")
    runs, where = [], {}
    for name in METHODS:
        for number, extra in enumerate([[], *EXTRA_FLAGS]):
            output = folder / f"{name} {number}"
            where[name, tuple(extra)] = output / f"results_{name}.json"
            short = ["--max-steps", "2", "--global-batch-size", "36"] if extra else ["--global-batch-size", "256"]
            runs.append((name, [*extra, *short, "--output-dir", str(output)]))
    run_ranks(all_scripts_on_rank, 3, runs)
    return where


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_default_recipe_reaches_90_percent(name, finished):
    results = read_results(finished[name, ()])
    assert results.best_accuracy >= 90
    assert len(results.epochs) == 3
    assert results.status == "complete"


@pytest.mark.parametrize("extra", EXTRA_FLAGS, ids=" ".join)
@pytest.mark.parametrize("name", METHODS)
def test_every_flag_works_with_every_method(name, extra, finished):
    results = read_results(finished[name, tuple(extra)])
    assert results.status == "complete"
    assert len(results.all_losses) == 2
    same = read_results(finished["baseline_ddp", tuple(extra)])
    # A parameter server has one replica less, hence other BatchNorm statistics.
    if name == "all_reduce" or "resnet18" not in extra:
        # bf16 and fp16 resolve 3 digits, and so does a sum of shares in another order.
        assert results.all_losses == pytest.approx(same.all_losses, rel=1e-2 if "--amp" in extra else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_results_file_holds(name, finished):
    path = finished[name, ()]
    results, raw = read_results(path), json.loads(path.read_text())
    replicas = 2 if name == "ps" else 3
    assert results.num_replicas == replicas
    assert results.num_workers == (2 if name == "ps" else None)
    assert len(results.initial_fingerprints) == replicas
    assert raw["epochs"][0]["avg_comm_time"] is (None if name == "baseline_ddp" else raw["epochs"][0]["avg_comm_time"])
    assert len(results.all_losses) == sum(epoch.steps for epoch in results.epochs) == 48
    for epoch in results.epochs:
        assert sum(epoch.phases.values()) == pytest.approx(epoch.train_time, rel=0.1)
        assert len(set(epoch.fingerprints)) == 1
        assert (epoch.server is not None) == (name == "ps")
    assert results.probe.rounds >= 3
    assert len(results.probe.local_step_per_replica) == replicas
    state = torch.load(path.parent / "saved_models" / f"{name}_best.pth", weights_only=True)
    assert sum(tensor.numel() for tensor in state.values()) == results.model.parameters
    gradients = results.model.gradient_bytes
    expected = {"baseline_ddp": (gradients, None), "all_reduce": (gradients, results.model.tensors),
                "ps": (2 * gradients, 2 * results.model.tensors)}[name]
    assert results.communication.replica_bytes_per_step == expected[0]
    if expected[1]:
        assert results.communication.replica_messages_per_step == expected[1]
    if name == "ps":
        assert results.communication.server_bytes_per_step == 2 * 2 * gradients


def test_sketches_tell_how_far_apart_models_are():
    torch.manual_seed(0)
    model = groupnorm_cnn(10, 1)
    before, first = nn.utils.parameters_to_vector(model.parameters()).clone(), parameter_sketch(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    distance = (nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()
    # 64 sums know a distance to sqrt(2 / 64) / 2 = 9%.
    assert np.linalg.norm(np.subtract(parameter_sketch(model), first)) == pytest.approx(distance, rel=0.3)


def test_no_temporary_file_stays(finished):
    folders = {path.parent for path in finished.values()}
    assert not [leftover for folder in folders for leftover in folder.rglob("*.tmp")]


class Net(nn.Module):
    """BatchNorm, dropout and a parameter that this forward pass does not use."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return self.body(images)


def batchnorm_on_rank(rank, world_size, store_path):
    """After training: this rank's buffers, how far an empty share moved them, and what diverging replicas get."""
    probe.WARM_UP_STEPS, probe.MIN_ROUNDS, probe.MAX_ROUNDS = 1, 2, 2
    job = Job(samples=66, double=False)
    with process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"), 0, 60,
                       dist.FileStore(store_path, world_size)) as ctx:
        torch.manual_seed(rank)
        method = all_reduce_train.AllReduce(Net(), job.config, ctx, job.plan)
        data = training.ReplicaData(job.data(), ctx, 16, 7, 0, torch.float32, False)
        results = main.RunResults(method="all_reduce")
        training.train(method, data, job.plan, results)
        buffers = {name: buffer.numpy().copy() for name, buffer in method.module.named_buffers()}
        data.sampler.set_epoch(1)
        last = list(data.train_batches())[-1]
        method.step(last)
        moved = not np.array_equal(buffers["body.0.running_mean"], method.module.body[0].running_mean.numpy())
        if rank == 1:
            with torch.no_grad():
                method.module.unused.add_(1)
        try:
            training.agreed_fingerprints(ctx, method.module, "in the test")
            message = ""
        except training.JobError as error:
            message = str(error)
        return {"buffers": buffers, "share": last.num_samples, "moved": moved, "message": message,
                "fingerprint": parameter_fingerprint(method.module)}


@pytest.fixture(scope="module")
def batchnorm_runs():
    return run_ranks(batchnorm_on_rank, 4)


def test_running_statistics_are_averaged_over_replicas(batchnorm_runs):
    first = batchnorm_runs[0]["buffers"]
    assert not np.array_equal(first["body.0.running_mean"], [0.0])
    for run in batchnorm_runs[1:]:
        for name in ("body.0.running_mean", "body.0.running_var"):
            assert np.array_equal(run["buffers"][name], first[name])


def test_an_empty_share_does_not_move_running_statistics(batchnorm_runs):
    assert [(run["share"], run["moved"]) for run in batchnorm_runs] == [(1, True), (1, True), (0, False), (0, False)]


def test_diverged_replicas_are_named(batchnorm_runs):
    assert [run["message"] for run in batchnorm_runs] == ["rank 1: parameters differ from rank 0's in the test"] * 4


def nan_on_rank(rank, world_size, store_path, output):
    """Rank 1's labels make its loss NaN in the fourth step of the run."""
    method = all_reduce_train.AllReduce
    original = method.step

    def step(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        result = original(self, batch)
        warm_up = probe.WARM_UP_STEPS + probe.MAX_ROUNDS
        return result._replace(loss=result.loss * float("nan")) if rank == 1 and self.calls == warm_up + 4 else result

    method.step = step
    lines = []
    sys.stderr.write = lambda text: lines.append(text)
    code = scripts_on_rank(rank, world_size, store_path, [("all_reduce", ["--epochs", "1", "--output-dir", output])])
    return code, "".join(lines)


def test_a_failed_run_leaves_earlier_results_alone(tmp_path):  # rows 24 and 28
    earlier = {"results_all_reduce.json": "earlier results", "saved_models/all_reduce_best.pth": "earlier model"}
    (tmp_path / "saved_models").mkdir()
    for name, text in earlier.items():
        (tmp_path / name).write_text(text)
    codes, printed = zip(*run_ranks(nan_on_rank, 2, str(tmp_path)), strict=True)
    assert codes == ([1], [1])
    # Both ranks have found it, and one says so.
    assert "".join(printed) == ("error: all_reduce: rank 1: the loss is not finite at epoch 1, step 4; "
                                "try a smaller --lr\n")
    assert {name: (tmp_path / name).read_text() for name in earlier} == earlier
    failed = read_results(tmp_path / "results_all_reduce.failed.json")
    assert failed.status == "failed"
    assert "epoch 1, step 4" in failed.error


def test_single_device_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    flags = ["--max-steps", "3", "--output-dir=-odd ünd spaced"]  # row 30
    assert main.run_script(baseline_multi_card.choose_method, argv=flags) == 0
    results = read_results(tmp_path / "-odd ünd spaced" / "results_single.json")
    assert results.num_replicas == 1
    assert results.probe is None
    printed = capsys.readouterr().out
    for line in ("Starting Single-Device Training", "Epoch [1/1]", "[Epoch 1] Train Loss: ", "[Epoch 1] Val Loss: "):
        assert line in printed


def test_config_flags_are_all_in_the_recipe_or_known_not_to_matter():
    recipe = set(TrainConfig().recipe_flags())
    assert {"lr", "momentum", "weight_decay", "lr_schedule", "amp", "seed", "model", "epochs"} <= recipe
    assert not recipe & {"workers", "output_dir", "timeout", "backend"}
