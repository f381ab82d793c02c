"""The parameter server's variants: shards, pieces, the synchronous oracle, faults, asynchrony, memory, a lost worker.

Tolerances are those of test_parity.py.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from parity import Job, Trajectory, oracle, train_on_rank
from ranks import run_ranks
from test_parity import LOSS_TOLERANCE, PARAMETER_TOLERANCE, differences
from torch import nn

import ps_train
from gradsync import training, variants
from gradsync.asynchronous import AsynchronousServer
from gradsync.config import METHOD_CHOICES, Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import Launch, process_group
from gradsync.errors import PeerLost, RunError
from gradsync.link import PULL, PUSH, Request
from gradsync.pipelined import PipelinedServer, check_in_step
from gradsync.shard_server import LossScale, ShardOptimizer, ShardServer
from gradsync.sharding import FlatParameters, cut, pieces, shard

SMALL_CHUNK = 0.02  # MiB: the small network's parameters are 0.11 MiB in float32
BASE = Job(70, double=True).config


# Shards and pieces.

SIZES = [(1,), (5, 1, 7), (0, 3, 0), (64, 1000, 9, 1), tuple(range(40))]


@pytest.mark.parametrize("transfer", METHOD_CHOICES["transfer"])
@pytest.mark.parametrize("servers", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)} tensors")
def test_shards_and_pieces_tile_the_parameters(sizes, servers, transfer):
    total, chunk = sum(sizes), 12
    config = TrainConfig(transfer=transfer, chunk_mb=chunk * 4 / 2**20)
    shards = [shard(total, servers, server) for server in range(servers)]
    lengths = [part.stop - part.start for part in shards]
    assert max(lengths) - min(lengths) <= 1
    assert lengths[0] == max(lengths)  # the first server stands for all in the results
    travelling = [piece for part in shards for piece in pieces(part, sizes, 4, config)]
    covered = [place for piece in travelling for place in range(piece.start, piece.stop)]
    assert covered == list(range(total))
    assert all(piece.start < piece.stop for piece in travelling)
    for piece in travelling:
        if transfer == "per-parameter":
            ends = set(itertools.accumulate(sizes))
            assert not ends & set(range(piece.start + 1, piece.stop)), "a message holds parts of two parameters"
        elif transfer == "pipelined":
            assert piece.stop - piece.start <= chunk
    if transfer == "flat":
        assert len(travelling) == sum(length > 0 for length in lengths)


def test_cut_keeps_to_its_span():
    assert cut(slice(3, 9), [0, 3, 5, 9, 12]) == [slice(3, 5), slice(5, 9)]
    assert cut(slice(4, 4), [4]) == []


def test_parameters_keep_values_and_layouts_as_views():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5)).to(memory_format=torch.channels_last)
    model[1].bias.requires_grad_(False)
    before = {name: (value.clone(), value.stride()) for name, value in model.named_parameters()}
    flat = FlatParameters(model, gradients=True)
    assert flat.sizes == [54, 3, 20]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.stride() == before[name][1]
    flat.values.fill_(2)
    flat.gradients.fill_(3)
    for parameter in (model[0].weight, model[0].bias, model[1].weight):
        assert parameter.eq(2).all()
        assert parameter.grad.eq(3).all()
    assert torch.equal(model[1].bias, before["1.bias"][0])


def test_parameters_of_two_types_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(RunError, match=r"torch\.float32, torch\.float64"):
        FlatParameters(model, gradients=False)


def test_loss_scale_follows_the_rule_of_grad_scaler():
    ours, theirs = LossScale(torch.device("cpu")), torch.amp.GradScaler("cpu", growth_interval=3)
    ours._interval = 3
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflow in [False, True, False, False, False, True, True, False, False, False, False]:
        theirs.scale(parameter.sum() * (torch.inf if overflow else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(overflow)
        assert ours.value == theirs.get_scale()


def test_workers_out_of_step_are_named():
    with pytest.raises(RunError, match="rank 1: pull, rank 2: push"):
        check_in_step([1, 2], [Request(PULL), Request(PUSH)])


# Synchronous variants against the single-process oracle.

SYNC = [{"transfer": transfer, "chunk_mb": SMALL_CHUNK, "num_servers": servers}
        for transfer in METHOD_CHOICES["transfer"] for servers in (1, 2)][1:]  # test_parity.py has the first
JOBS = [Job(70, double=True), Job(66, double=False)]  # ending in unequal shares, and in empty ones


def variant(job: Job, **settings: Any) -> Job:
    return replace(job, config=replace(job.config, **settings))


RUNS = {world_size: [variant(job, **settings) for settings in SYNC for job in jobs
                     if settings["num_servers"] < world_size]
        for world_size, jobs in ((4, JOBS), (3, JOBS[:1]))}


# What may be wrong in a variant: its settings, the class and method, what that method then does.
def _zero_for_the_last_chunk(self, weights, piece):
    average = _average(self, weights, piece)
    return average.zero_() if piece == self.pieces[-1] else average


def _equal_weights(self, weights, piece):
    return _average(self, torch.full_like(weights, 1 / len(weights)), piece)


def _without_the_last_worker(self, weights, piece):
    present = weights.clone()
    present[-1] = 0
    return _average(self, present, piece)


def _twice_on_rank_0(self, number, gradient, factor=1.0):
    for _ in range(2 if dist.get_rank() == 0 else 1):
        _update(self, number, gradient, factor)


def _first_shard_only(self, command):
    with mock.patch.object(self, "pieces", self.pieces[:1]):
        _pull(self, command)


_average, _update, _pull = PipelinedServer.average, ShardOptimizer.update, ps_train.ParameterServerWorker.pull
PIPELINED, SHARDED = {"transfer": "pipelined", "chunk_mb": SMALL_CHUNK}, {"transfer": "flat", "num_servers": 2}
FAULTS = {
    "a chunk left out": (PIPELINED, PipelinedServer, "average", _zero_for_the_last_chunk),
    "samples ignored": (PIPELINED, PipelinedServer, "average", _equal_weights),
    "a chunk sent without the last worker's gradient": (PIPELINED, PipelinedServer, "average",
                                                        _without_the_last_worker),
    "a shard updated twice": (SHARDED, ShardOptimizer, "update", _twice_on_rank_0),
    "a shard never pulled": (SHARDED, ps_train.ParameterServerWorker, "pull", _first_shard_only),
}
FAULTY_JOB = Job(70, double=False)


def faulty_runs_on_rank(rank: int, world_size: int, store_path: str) -> dict[str, Trajectory]:
    found = {}
    for number, (fault, (settings, owner, name, replacement)) in enumerate(FAULTS.items()):
        unseen = mock.patch.object(training, "_agreed", lambda prints, ctx, when: prints[ctx.num_servers :])
        with unseen, mock.patch.object(owner, name, replacement):
            (found[fault],) = train_on_rank(rank, world_size, f"{store_path} {number}",
                                            [("ps", variant(FAULTY_JOB, **settings), None)])
    return found


@pytest.fixture(scope="module")
def oracles() -> dict[Job, Trajectory]:
    return {job: oracle(job) for job in [*JOBS, FAULTY_JOB]}


@pytest.fixture(scope="module")
def sync_runs() -> dict[tuple[int, Job], list[Trajectory]]:
    done = {}
    for world_size, jobs in RUNS.items():
        by_rank = run_ranks(train_on_rank, world_size, [("ps", job, None) for job in jobs])
        done.update({(world_size, job): run for job, run in zip(jobs, zip(*by_rank, strict=True), strict=True)})
    return done


def name_of(value: Any) -> str | None:
    return variants.variant_name("ps", value.config) + f"-{value.samples}" if isinstance(value, Job) else None


@pytest.mark.parametrize(("world_size", "job"), [(size, job) for size, jobs in RUNS.items() for job in jobs],
                         ids=name_of)
def test_synchronous_variants_follow_the_single_process_trajectory(world_size, job, sync_runs, oracles):
    workers = sync_runs[world_size, job][job.config.num_servers :]
    assert len(workers) == world_size - job.config.num_servers
    for run in workers:
        losses, parameters = differences(run, oracles[replace(job, config=BASE)])
        assert losses <= LOSS_TOLERANCE[job.double]
        assert parameters <= PARAMETER_TOLERANCE[job.double]


@pytest.fixture(scope="module")
def faulty_runs() -> dict[str, Trajectory]:
    return run_ranks(faulty_runs_on_rank, 4)[-1]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault, faulty_runs, oracles):
    losses, parameters = differences(faulty_runs[fault], oracles[FAULTY_JOB])
    assert losses > 10 * LOSS_TOLERANCE[False]
    assert parameters > 10 * PARAMETER_TOLERANCE[False]


@pytest.mark.parametrize("job", [job for job in RUNS[4] if job.double], ids=name_of)
def test_traffic_is_what_the_formulas_say(job, sync_runs):
    """Bytes and messages per step, of M bytes in T tensors, with W workers, S servers, C chunks in all."""
    results = sync_runs[4, job][-1].results
    counted, config = results.communication, job.config
    sizes = [parameter.numel() for parameter in job.build(0).parameters()]
    servers, workers, size = config.num_servers, 4 - config.num_servers, 8 * sum(sizes)
    shards = [shard(sum(sizes), servers, server) for server in range(servers)]
    cuts = sum(part.stop not in itertools.accumulate(sizes) for part in shards)  # parameters that two servers share
    chunk = int(SMALL_CHUNK * 2**20) // 8
    chunks = [-(-(part.stop - part.start) // chunk) for part in shards]
    messages = {"per-parameter": len(sizes) + cuts, "flat": servers, "pipelined": sum(chunks)}[config.transfer]
    assert counted.replica_bytes_per_step == 2 * size
    assert counted.replica_messages_per_step == 2 * messages
    assert counted.server_bytes_per_step == 2 * workers * 8 * (shards[0].stop - shards[0].start)
    epoch = results.epochs[-1]
    assert sum(server.messages for server in epoch.servers or [epoch.server]) == 2 * workers * messages * epoch.steps
    assert (epoch.servers is None) == (servers == 1)


# Asynchronous modes.

ONE_WORKER = [{}, {"mode": "async"}, {"mode": "ssp", "staleness": 0}, {"mode": "async", **PIPELINED}]


def test_asynchronous_with_one_worker_is_synchronous_exactly():
    jobs = [variant(JOBS[1], **settings) for settings in ONE_WORKER]
    worker = run_ranks(train_on_rank, 2, [("ps", job, None) for job in jobs])[-1]
    for run in worker[1:]:
        assert differences(run, worker[0]) == (0.0, 0.0)
        assert run.results.staleness == {"0": 10}
    assert worker[0].results.staleness is None


STEPS = 6
# Mode, and how many steps a fast worker makes while a slow one is held in its first: all of them, one, or K + 1.
RACES = [({"mode": "async"}, STEPS), ({}, 1), ({"mode": "ssp", "staleness": 0}, 1),
         ({"mode": "ssp", "staleness": 2}, 3), ({"mode": "ssp", "staleness": 2, **PIPELINED}, 3)]
FAULTY_RACE = ({"mode": "ssp", "staleness": 0}, STEPS)  # with a server that does not keep to its bound


def race_on_rank(rank: int, world_size: int, store_path: str) -> list[tuple[list[tuple[str, int]], dict[str, Any]]]:
    """What the server did in each race, in order, and what it wrote of it. The last worker is slow."""
    store, outcomes = dist.FileStore(store_path, world_size), []
    for number, (settings, steps_of_fast) in enumerate([*RACES, FAULTY_RACE]):
        config, here = replace(BASE, **settings), dist.PrefixStore(str(number), store)
        faulty = number == len(RACES)
        with process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"), 1, 60,
                           here) as ctx:
            model, plan = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), Plan((STEPS,), 0.01, "constant")
            if ctx.is_server:
                outcomes.append(serve_race(ps_train.ParameterServer.for_config(config)(model, config, ctx, plan),
                                           faulty))
                continue
            worker = ps_train.ParameterServerWorker.for_config(config)(model, config, ctx, plan)
            batch = Batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]), 2, 2 * ctx.num_replicas)
            for step in range(STEPS):
                if rank == world_size - 1 and step == 0:
                    here.wait(["released"])
                worker.step(batch)
                if rank < world_size - 1 and here.add("steps", 1) == 2 * steps_of_fast:
                    here.set("released", "")
            worker.refresh_parameters()
            worker.end_epoch()
    return outcomes


def serve_race(server: ShardServer, faulty: bool) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    events: list[tuple[str, int]] = []

    def logged(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda worker, *rest: (events.append((event, worker)), function(worker, *rest))[1]

    receiving = "apply" if isinstance(server, AsynchronousServer) else "receive_gradients"
    setattr(server, receiving, logged("push", getattr(server, receiving)))
    server.send_parameters = logged("pull", server.send_parameters)
    if faulty:
        server.lead = STEPS
    epoch = server.serve_epoch()
    return events, epoch.model_dump()


def largest_lead(events: list[tuple[str, int]]) -> int:
    """How many steps ahead of the slowest anybody was when it got the parameters for its next step."""
    pushes = dict.fromkeys((1, 2, 3), 0)
    leads = [0]
    for event, worker in events:
        pushes[worker] += event == "push"
        if event == "pull" and pushes[worker] < STEPS:
            leads.append(pushes[worker] - min(pushes.values()))
    return max(leads)


@pytest.fixture(scope="module")
def races() -> list[tuple[list[tuple[str, int]], dict[str, Any]]]:
    return run_ranks(race_on_rank, 4)[0]


@pytest.mark.parametrize("number", range(len(RACES)), ids=lambda number: str(RACES[number][0]))
def test_fast_workers_wait_less_for_a_slow_one(number, races):
    settings, expected = RACES[number]
    events, epoch = races[number]
    before = Counter(events[: events.index(("push", 3))])
    assert (before["push", 1], before["push", 2]) == (expected, expected)
    if settings.get("mode") == "ssp":
        assert largest_lead(events) == settings["staleness"]
    if settings:
        assert epoch["pushes_per_worker"] == [STEPS] * 3
        assert epoch["updates"] == sum(epoch["staleness"].values()) == 3 * STEPS
        assert epoch["staleness"] == staleness_from(events)
    else:
        assert epoch["updates"] == STEPS


def staleness_from(events: list[tuple[str, int]]) -> dict[str, int]:
    """By its definition: pushes by anybody between a worker's pull and its push."""
    found: Counter[int] = Counter()
    for place, (event, worker) in enumerate(events):
        if event == "push":
            others = itertools.takewhile(lambda earlier: earlier != ("pull", worker), reversed(events[:place]))  # noqa: B023
            found[sum(earlier[0] == "push" for earlier in others)] += 1
    return {str(updates): pushes for updates, pushes in sorted(found.items())}


def test_a_server_that_ignores_its_bound_is_caught(races):
    assert largest_lead(races[-1][0]) > FAULTY_RACE[0]["staleness"]


# Convergence. Sixteen steps of 64 samples an epoch, three epochs, three workers. Training accuracy of the last epoch,
# seeds 1 to 3: synchronous 89.6 to 91.2%, async 88.6 to 90.8%, ssp 88.9 to 91.0%. The order of pushes is left to
# chance, hence the distance of the bound.
SEEDS = (1, 2, 3)
LEAST_ACCURACY = 80
ASYNCHRONOUS = [{"mode": "async"}, {"mode": "ssp", "staleness": 1}]
CONVERGENCE = [Job(1024, False, 64, config=TrainConfig(epochs=3, lr=0.005, seed=seed, **settings))
               for settings in ASYNCHRONOUS for seed in SEEDS]


@pytest.fixture(scope="module")
def convergence() -> dict[Job, Trajectory]:
    runs = run_ranks(train_on_rank, 4, [("ps", job, None) for job in CONVERGENCE])[-1]
    return dict(zip(CONVERGENCE, runs, strict=True))


@pytest.mark.parametrize("job", CONVERGENCE, ids=lambda job: f"{job.config.mode}-{job.config.seed}")
def test_asynchronous_training_converges(job, convergence):
    results = convergence[job].results
    assert results.epochs[-1].train_accuracy >= LEAST_ACCURACY
    assert sum(results.staleness.values()) == 3 * 48
    for epoch in results.epochs:
        assert epoch.server.pushes_per_worker == [16] * 3
        assert epoch.steps == 16


# Mixed precision: what one worker finds is decided for all.

OVERFLOWS = [{"num_servers": 2, "transfer": transfer} for transfer in METHOD_CHOICES["transfer"]]


def overflow_on_rank(rank: int, world_size: int, store_path: str) -> list[list[tuple[float, float, float]]]:
    """(loss scale, least and largest parameter) before, after an overflow on one worker, and after a good step."""
    store, seen = dist.FileStore(store_path, world_size), []
    for number, settings in enumerate(OVERFLOWS):
        config = TrainConfig(amp="fp16", momentum=0.0, weight_decay=0.0, **settings)
        with process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"), 2, 60,
                           dist.PrefixStore(str(number), store)) as ctx:
            model, plan = nn.Linear(7, 5), Plan((STEPS,), 0.5, "constant")
            nn.init.constant_(model.weight, 2.0)
            nn.init.constant_(model.bias, 2.0)
            if ctx.is_server:
                ps_train.ParameterServer.for_config(config)(model, config, ctx, plan).serve_epoch()
                continue
            worker = ps_train.ParameterServerWorker.for_config(config)(model, config, ctx, plan)
            seen.append([])
            for overflows in (False, True, False):
                scale = worker.updater.scaler.get_scale()
                worker.flat.gradients.fill_(scale)
                if overflows and rank == world_size - 1:
                    worker.flat.gradients[-1] = torch.inf  # in the second shard, on one worker
                worker.exchange(Batch(torch.ones(1), torch.ones(1), 1, ctx.num_replicas))
                values = worker.flat.values
                seen[-1].append((worker.updater.scaler.get_scale(), values.min().item(), values.max().item()))
            worker.end_epoch()
    return seen


def test_an_overflow_is_decided_once_for_all_chunks_servers_and_workers():
    start = torch.amp.GradScaler("cpu").get_scale()
    for seen in run_ranks(overflow_on_rank, 4)[2:]:
        assert seen == [[(start, 1.5, 1.5), (start / 2, 1.5, 1.5), (start / 2, 1.0, 1.0)]] * len(OVERFLOWS)


# Memory: M bytes of parameters, 4 ranks: 3 workers with one server, 2 with two.

SIDE = 512
M = 4 * SIDE * SIDE
CHUNKS = {"transfer": "pipelined", "chunk_mb": 0.01}
# Held by each server, in units of M: all parameters; of its shard, gradients (a sum and a buffer, a buffer a worker,
# or one buffer) and momentum.
HELD = [({}, 1 + 2 + 1), (CHUNKS, 1 + 3 + 1), ({"mode": "async"}, 1 + 1 + 1),
        ({"num_servers": 2}, 1 + (2 + 1) / 2), ({"num_servers": 2, **CHUNKS}, 1 + (2 + 1) / 2),
        ({"num_servers": 2, "mode": "async"}, 1 + (1 + 1) / 2)]


def bytes_held() -> int:
    """Of all tensors in this process, each memory once."""
    gc.collect()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in gc.get_objects() if isinstance(tensor, torch.Tensor)}
    return sum(storages.values())


def bytes_taken(action: Callable[[], Any]) -> int:
    """Bytes that operators take from the allocator during ``action``, whether or not they give them back."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    taken = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return sum(nbytes for nbytes in taken if nbytes > 0)


def memory_on_rank(rank: int, world_size: int, store_path: str) -> list[tuple[int, int]]:
    """(bytes held beyond those before, bytes taken during three steady exchanges) of each variant."""
    store, seen = dist.FileStore(store_path, world_size), []
    for number, (settings, _) in enumerate(HELD):
        before, config = bytes_held(), replace(BASE, **settings)
        with process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"),
                           config.num_servers, 60, dist.PrefixStore(str(number), store)) as ctx:
            model, plan = nn.Linear(SIDE, SIDE, bias=False), Plan((STEPS,), 0.01, "constant")
            kind = ps_train.ParameterServer if ctx.is_server else ps_train.ParameterServerWorker
            party = kind.for_config(config)(model, config, ctx, plan)

            taken = [bytes_taken(lambda party=party: three_exchanges(party)) for _ in range(2)][-1]
            seen.append((bytes_held() - before, taken))
            del party, model
    return seen


def three_exchanges(party: Any) -> None:
    if isinstance(party, ShardServer):
        party.serve_epoch()
        return
    for _ in range(3):
        party.exchange(Batch(torch.ones(1), torch.ones(1), 1, party.ctx.num_replicas))
    party.end_epoch()


def test_a_server_holds_no_more_than_it_must_and_nobody_takes_memory_on_the_hot_path():
    ranks = run_ranks(memory_on_rank, 4)
    for number, (settings, units) in enumerate(HELD):
        servers = settings.get("num_servers", 1)
        workers = 4 - servers
        for rank in ranks[:servers]:
            held, _ = rank[number]
            assert held == pytest.approx(units * M, rel=0.02), settings
            assert held < (2 + workers + 1 / servers) * M, settings  # parameters x (2 + workers), optimizer's state
        assert all(rank[number][1] < 0.05 * M for rank in ranks), settings


# A worker that is gone.


def lost_worker_on_rank(rank: int, world_size: int, store_path: str, settings: dict[str, Any]) -> str:
    """The last rank ends after its first step. What the others get to know."""
    config = replace(BASE, **settings)
    joining = process_group(Launch(rank, world_size, rank, world_size, True), "gloo", torch.device("cpu"), 1, 60,
                            dist.FileStore(store_path, world_size))
    ctx = joining.__enter__()  # and never left: that would wait for all ranks
    model, plan = nn.Linear(4, 3), Plan((STEPS,), 0.01, "constant")
    try:
        if ctx.is_server:
            ps_train.ParameterServer.for_config(config)(model, config, ctx, plan).serve_epoch()
        worker = ps_train.ParameterServerWorker.for_config(config)(model, config, ctx, plan)
        for step in range(STEPS):
            if step == 1 and rank == world_size - 1:
                return ""
            worker.exchange(Batch(torch.ones(1), torch.ones(1), 1, 2))
    except PeerLost as error:
        return str(error)
    raise AssertionError("nobody noticed")


@pytest.mark.parametrize("settings", [{}, PIPELINED, {"mode": "async"}], ids=str)
def test_a_lost_worker_is_named(settings):
    at_server, at_worker, _ = run_ranks(lost_worker_on_rank, 3, settings)
    assert at_server.startswith("rank 2 is gone")
    assert at_worker.startswith("rank 0 is gone")
