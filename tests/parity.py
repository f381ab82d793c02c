"""One small training job, run by every method on any number of ranks, and by a plain loop that is the oracle."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

import all_reduce_train
import baseline_multi_card
import ps_train
from gradsync import probe, training
from gradsync.config import Plan, TrainConfig
from gradsync.data import ReplicaData
from gradsync.datasets import ImageData, TensorImages, open_dataset
from gradsync.distributed import Launch, process_group
from gradsync.models import groupnorm_cnn
from gradsync.results import RunResults
from gradsync.variants import num_servers, parse_variant_name

METHODS = {
    "baseline_ddp": baseline_multi_card.Baseline,
    "all_reduce": all_reduce_train.AllReduce,
    "ps": ps_train.ParameterServerWorker,
}
# Beside the plain forms: those that must follow the oracle too.
VARIANTS = ["all_reduce_flat", "all_reduce_bucketed", "all_reduce_overlapped"]
VAL_SAMPLES = 37  # divides by no number of replicas


@dataclass(frozen=True)
class Job:
    """``samples`` 70 in global batches of 16 end in a batch of 6 (unequal shares), 66 in one of 2 (empty ones)."""

    samples: int
    double: bool
    global_batch: int = 16
    model: str = "groupnorm"
    # Buckets that are small enough for the model to need several.
    config: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=2, lr=0.01, seed=7, bucket_mb=0.03))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32

    @property
    def plan(self) -> Plan:
        return Plan.of(self.config, self.samples, self.global_batch)

    def data(self) -> ImageData:
        digits = open_dataset(TrainConfig(dataset="digits"), grey=True)
        pick = np.random.default_rng(0).permutation(4000)[: self.samples]
        train = TensorImages(digits.train.images[pick], digits.train.labels[pick], 28, 1)
        val = TensorImages(digits.val.images[::27][:VAL_SAMPLES], digits.val.labels[::27][:VAL_SAMPLES], 28, 1)
        assert len(val) == VAL_SAMPLES
        return ImageData(digits.info, train, val, in_memory=True)

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = groupnorm_cnn(10, 1) if self.model == "groupnorm" else batchnorm_net()
        return model.to(self.dtype)


def batchnorm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 13 * 13, 10))


@dataclass
class Trajectory:
    """What a run leaves: the loss of each step, the final parameters and buffers, the last evaluation."""

    losses: list[float]
    parameters: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    val_loss: float
    val_accuracy: float
    results: RunResults | None = None


def _arrays(named: Iterator[tuple[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in named}


def oracle(job: Job) -> Trajectory:
    """The whole global batch on one process, with nothing of the product's loop, sampler or schedule."""
    data, model, config = job.data(), job.build(job.config.seed), job.config
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum,
                                weight_decay=config.weight_decay)
    per_epoch = math.ceil(job.samples / job.global_batch)
    losses = []
    for epoch in range(1, config.epochs + 1):
        order = np.random.default_rng((config.seed, epoch)).permutation(job.samples)
        for first in range(0, job.samples, job.global_batch):
            rows = torch.from_numpy(order[first : first + job.global_batch])
            progress = len(losses) / (per_epoch * config.epochs)
            optimizer.param_groups[0]["lr"] = config.lr * (1 + math.cos(math.pi * progress)) / 2
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data.train.images[rows].to(job.dtype)), data.train.labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        outputs = model(data.val.images.to(job.dtype))
        val_loss = functional.cross_entropy(outputs, data.val.labels).item()
        accuracy = 100 * (outputs.argmax(1) == data.val.labels).double().mean().item()
    return Trajectory(losses, _arrays(model.named_parameters()), _arrays(model.named_buffers()), val_loss, accuracy)


def train_on_rank(rank: int, world_size: int, store_path: str, runs: list[tuple[str, Job, str | None]]
                  ) -> list[Trajectory | str]:
    """Each of ``runs`` (method, job, planted fault) in turn; a run that raises leaves its message."""
    store = dist.FileStore(store_path, world_size)
    trajectories: list[Trajectory | str] = []
    for number, (name, job, fault) in enumerate(runs):
        # The discarded steps are under test too, but few of them will do.
        short = mock.patch.multiple(probe, WARM_UP_STEPS=1, MIN_ROUNDS=2, MAX_ROUNDS=2)
        with short, plant(fault, name):
            trajectories.append(_train(rank, world_size, dist.PrefixStore(str(number), store), name, job))
    return trajectories


def _train(rank: int, world_size: int, store: dist.Store, name: str, job: Job) -> Trajectory:
    launch = Launch(rank, world_size, rank, world_size, by_torchrun=True)
    name, settings = parse_variant_name(name)
    job = replace(job, config=replace(job.config, **settings))
    method_class = METHODS[name].for_config(job.config)
    results = RunResults(method=name)
    with process_group(launch, "gloo", torch.device("cpu"), num_servers(name, job.config), 60, store) as ctx:
        model = job.build(job.config.seed + rank)  # each rank its own, as in the product
        if ctx.is_server:
            server = ps_train.ParameterServer.for_config(job.config)
            training.serve(server(model, job.config, ctx, job.plan), job.plan)
            val_loss = val_accuracy = math.nan
        else:
            data = ReplicaData(job.data(), ctx, job.global_batch, job.config.seed, 0, job.dtype, False)
            training.train(method_class(model, job.config, ctx, job.plan), data, job.plan, results)
            val_loss, val_accuracy = results.epochs[-1].val_loss, results.epochs[-1].val_accuracy
    return Trajectory(results.all_losses, _arrays(model.named_parameters()), _arrays(model.named_buffers()),
                      val_loss, val_accuracy, results)


@contextlib.contextmanager
def plant(fault: str | None, name: str) -> Iterator[None]:
    """Break one method in one way. The product's own fingerprint check is silenced, so that the oracle must see it."""
    if fault is None:
        yield
        return
    with contextlib.ExitStack() as patches:
        agreed = mock.patch.object(training, "_agreed", lambda prints, ctx, when: prints[ctx.num_servers :])
        patches.enter_context(agreed)
        patches.enter_context(FAULTS[fault][name]())
        yield


def _patch(owner: object, attribute: str, replacement: object):
    return lambda: mock.patch.object(owner, attribute, replacement)


def _average_with(weight_of=lambda weight: weight, skip: int = 0):
    original = all_reduce_train.average_gradients

    def average(parameters, weight, traffic):
        original(parameters[: len(parameters) - skip], weight_of(weight), traffic)

    return _patch(all_reduce_train, "average_gradients", average)


def _ddp_step(factor):
    def step(self, batch):
        output = self.forward_backward(batch, loss_factor=factor(self, batch))
        self.update()
        return output

    return _patch(baseline_multi_card.Baseline, "step", step)


def _finish_without_the_last_bucket(self):
    """Its all-reduce is made when it is waited for, so that not waiting shows whatever the timing."""
    self.in_flight.pop()
    _finish(self)


def _start_all_but_the_last_bucket(self, bucket):
    if bucket is not self.buckets[-1]:
        _start(self, bucket)


def _receive_all_but_last(self, worker, weight):
    last, sums = self.pieces[-1], self.sums.clone()
    _receive(self, worker, weight)
    self.sums[last] = sums[last]


def _unweighted(self, worker, weight):
    _receive(self, worker, 1 / self.ctx.num_replicas)


def _summed(self, worker, weight):
    _receive(self, worker, 1.0)


_start, _finish = all_reduce_train.BucketedAllReduce.start, all_reduce_train.BucketedAllReduce.finish
_receive = ps_train.ParameterServer.receive_gradients
_init = ps_train.ParameterServerWorker.__init__


def _init_keeping_own_weights(self, module, config, ctx, plan):
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _init(self, module, config, ctx, plan)
    module.load_state_dict(own)


FAULTS = {
    "no initial broadcast": {
        "all_reduce": _patch(all_reduce_train, "broadcast_model", lambda module: None),
        "ps": _patch(ps_train.ParameterServerWorker, "__init__", _init_keeping_own_weights),
    },
    "unweighted average": {
        "baseline_ddp": _ddp_step(lambda self, batch: 1.0),
        "all_reduce": lambda: mock.patch.object(
            all_reduce_train.Batch, "weight", property(lambda batch: 1.0 / dist.get_world_size())),
        "ps": _patch(ps_train.ParameterServer, "receive_gradients", _unweighted),
    },
    "one parameter left out": {
        "all_reduce": _average_with(skip=1),
        "ps": _patch(ps_train.ParameterServer, "receive_gradients", _receive_all_but_last),
    },
    "summed instead of averaged": {
        "baseline_ddp": _ddp_step(lambda self, batch: float(self.ctx.num_replicas)),
        "all_reduce": _average_with(weight_of=lambda weight: 1.0),
        "ps": _patch(ps_train.ParameterServer, "receive_gradients", _summed),
    },
    "a bucket not waited for": {
        "all_reduce_overlapped": lambda: mock.patch.multiple(
            all_reduce_train.BucketedAllReduce, finish=_finish_without_the_last_bucket,
            all_reduce=lambda self, tensor: SimpleNamespace(wait=lambda: dist.all_reduce(tensor))),
    },
    "the last bucket left out": {
        "all_reduce_overlapped": _patch(all_reduce_train.BucketedAllReduce, "start", _start_all_but_the_last_bucket),
    },
}
