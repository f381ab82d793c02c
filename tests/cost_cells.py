"""A compute profile and measured cells as the model itself would make them, for the tests of the cost model."""

from __future__ import annotations

import itertools

from gradsync.analysis.cost_grid import Cell, predict
from gradsync.analysis.cost_model import Costs
from gradsync.probed import ComputeProfile, GradientGroup

MIB = 2**20
COSTS = Costs(latency=4e-4, message=2e-4, byte=4e-10, reduce=3e-10, collect=2e-10, serial=0.4)


def profile(forward: float = 0.04, backward: float = 0.08, groups: int = 16, size: int = 3 * MIB) -> ComputeProfile:
    """``groups`` equal gradients that become ready one after the other."""
    return ComputeProfile(
        rounds=5, forward=forward, update=0.005, compression={"fp16": 0.02, "bf16": 0.01, "powersgd": 0.03},
        gradients=[GradientGroup(tensors=2, bytes=size, factor_bytes=size // 40, dense_bytes=size // 100,
                                 ready=backward * (place + 1) / groups) for place in range(groups)])


def synthetic(hosts: int, rate: float, costs: Costs) -> Cell:
    """A cell as the model itself would measure it."""
    names = ["all_reduce", "all_reduce_flat", "all_reduce_overlapped", "all_reduce_overlapped_fp16", "ps", "ps_flat",
             "ps_pipelined", "baseline_ddp"]
    bare = Cell(hosts=hosts, rate=rate, cores=2, model="made up", batch_size=16, image_size=32, rounds=3, steps=2,
                bucket_mb=None, chunk_mb=1.0, step=dict.fromkeys(["none", *names], (1.0, 1.0, 1.0)),
                profiles=dict.fromkeys((0, 1), profile()))
    return bare.model_copy(update={"step": {"none": (1.0, 1.0, 1.0)} | {
        row: (0.99 * seconds, seconds, 1.01 * seconds) for row in names for seconds in [predict(bare, row, costs)]}})


def grid(costs: Costs) -> list[Cell]:
    return [synthetic(hosts, rate, costs) for hosts, rate in itertools.product((2, 3, 4), (1e8, 1e9, 1e10))]
