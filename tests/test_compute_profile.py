"""The compute profile over real ranks, by a clock that each call moves on: more on rank 1 than on rank 0."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import nn

from gradsync.compute_profile import COMPRESSIONS, MAX_GROUPS, ComputeProfiler, group_gradients, profile_compute
from gradsync.config import Plan, TrainConfig
from gradsync.data import Batch
from gradsync.distributed import Launch, process_group
from gradsync.method import Method
from gradsync.models import parameter_fingerprint
from gradsync.probed import ComputeProfile


class Network(nn.Module):
    """One layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
        self.unused = nn.Linear(5, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images)


def _profile(rank: int, world_size: int, store_path: str, whole: bool) -> tuple[str, list[str], int]:
    """The profile, the parameters' fingerprints before and after, and the hooks that are left."""
    torch.manual_seed(0)
    launch = Launch(rank, world_size, rank, world_size, by_torchrun=True)
    store = torch.distributed.FileStore(store_path, world_size)
    with process_group(launch, "gloo", torch.device("cpu"), 0, 60, store) as ctx:
        module = Network()
        method = Method(module, TrainConfig(powersgd_rank=1), ctx, Plan((10,), 0.1, "constant"))
        calls = 0

        def now() -> float:
            nonlocal calls
            calls += 1
            return calls * (rank + 1.0)

        method.clock.now = now
        batch = Batch(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]), 4, 4 * world_size)
        fingerprints = [parameter_fingerprint(module)]
        if whole:
            found = profile_compute(method, batch)
        else:
            profiler = ComputeProfiler(method)
            profiler.observe(batch)
            found = profiler.finish()
        fingerprints.append(parameter_fingerprint(module))
        left = len(module._forward_hooks) + sum(
            len(p._post_accumulate_grad_hooks or {}) for p in module.parameters())
        return found.model_dump_json(), fingerprints, left


@pytest.fixture(scope="module")
def profiles() -> dict[int, list[tuple[ComputeProfile, list[str], int]]]:
    """By the number of ranks: what each rank found."""
    return {ranks: [(ComputeProfile.model_validate_json(text), *rest)
                    for text, *rest in run_ranks(_profile, ranks, False)] for ranks in (1, 2)}


def test_all_replicas_have_the_same_profile_and_it_is_that_of_the_slowest(profiles):
    (alone, *_), = profiles[1]
    (first, *_), (second, *_) = profiles[2]
    assert first == second
    assert first.forward == pytest.approx(2 * alone.forward) and first.update == pytest.approx(2 * alone.update)
    assert [group.ready for group in first.gradients] == pytest.approx([2 * group.ready for group in alone.gradients])
    assert first.compression == pytest.approx({name: 2 * seconds for name, seconds in alone.compression.items()})


def test_what_it_holds(profiles):
    found, fingerprints, hooks = profiles[1][0]
    assert sum(group.bytes for group in found.gradients) == 4 * sum(p.numel() for p in Network().parameters())
    assert sum(group.tensors for group in found.gradients) == 6
    # The last layer's weight and bias come first, the first layer's last, and with them those that nobody uses.
    assert [group.bytes for group in found.gradients[:2]] in ([12, 768], [768, 12])
    assert found.gradients[-1].ready == found.backward and found.gradients[-2].ready == found.backward
    assert [group.ready for group in found.gradients] == sorted(group.ready for group in found.gradients)
    assert found.gradients[0].ready > 0 and found.forward > 0 and found.update > 0
    assert found.compression.keys() == set(COMPRESSIONS)
    # Rank 1 factors: (64 + 8) and (3 + 64) numbers; (5 + 5) of the unused matrix.
    assert sum(group.factor_bytes for group in found.gradients) == 4 * (72 + 67 + 10)
    assert sum(group.dense_bytes for group in found.gradients) == 4 * (64 + 3 + 5)
    assert hooks == 0 and fingerprints[0] != fingerprints[1]


def test_a_probe_leaves_no_trace():
    (text, fingerprints, hooks), *_ = run_ranks(_profile, 2, True)
    assert fingerprints[0] == fingerprints[1] and hooks == 0
    assert ComputeProfile.model_validate_json(text).rounds > 1


def test_many_gradients_become_few_groups():
    parameters = [nn.Parameter(torch.zeros(3, 40)) for _ in range(200)]
    groups = group_gradients(parameters, [float(place) for place in range(200)], 1)
    assert len(groups) <= MAX_GROUPS and sum(group.tensors for group in groups) == 200
    assert groups[-1].ready == 199 and sum(group.bytes for group in groups) == 200 * 480
