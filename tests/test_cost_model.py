"""The cost model: its formulas against the lower bounds, its buckets and its fit against what is known."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest
from cost_cells import COSTS, MIB, grid, profile

from gradsync.analysis import cost_grid, cost_model
from gradsync.analysis.cost_grid import fit_costs, held_out, judge, summarise
from gradsync.analysis.cost_model import FREE, Cluster, Link, cut_into_buckets, shaped_link, step_time
from gradsync.analysis.lower_bound import least_seconds
from gradsync.analysis.overlap import Job, overlapped
from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.variants import num_servers, settings

# Seconds of computing; when each job may start; jobs (seconds, busy) -> end of the computing, ends of the jobs.
OVERLAPS = {
    "nothing to send": (1.0, [], [], 1.0, []),
    "hidden": (1.0, [0.2], [(0.5, 0.0)], 1.0, [0.7]),
    "the last one is exposed": (1.0, [0.2, 1.0], [(0.5, 0.0), (0.5, 0.0)], 1.0, [0.7, 1.5]),
    "one after the other": (1.0, [0.1, 0.2], [(0.5, 0.0), (0.5, 0.0)], 1.0, [0.6, 1.1]),
    "all processors taken: the sum of both": (1.0, [0.5], [(0.5, 0.5)], 1.5, [1.0]),
    "half of them taken": (1.0, [0.5], [(0.5, 0.25)], 1.25, [1.0]),
    "more than there are": (1.0, [0.5], [(0.5, 2.0)], 1.5, [1.0]),
    "computing ends within the job": (1.0, [0.9], [(0.5, 0.25)], 1.1, [1.4]),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_overlap(case):
    computing, ready, jobs, finished, ends = OVERLAPS[case]
    found, each = overlapped(computing, ready, [Job(*job) for job in jobs])
    assert found == pytest.approx(finished) and each == pytest.approx(ends)


BOUND_ROWS = ("all_reduce", "all_reduce_flat", "all_reduce_bucketed", "all_reduce_overlapped", "baseline_ddp",
              "all_reduce_flat_fp16", "ps", "ps_flat", "ps_pipelined", "ps_pipelined_2servers")


@pytest.mark.parametrize("row", BOUND_ROWS)
@pytest.mark.parametrize("ranks", [3, 4, 7])
def test_without_costs_and_computing_a_step_is_its_lower_bound(row, ranks):
    """The bounds are another module's, and METHODS.md's. A pipelined server's first and last chunk come on top."""
    instant = profile(0.0, 0.0).model_copy(update={"update": 0.0, "compression": dict.fromkeys(("fp16",), 0.0)})
    method, config = cost_model.read_variant(row, TrainConfig(chunk_mb=1e-3))
    size = sum(group.bytes for group in instant.gradients)
    handed = 2 * size if method == "ps" else size / 2 if row.endswith("fp16") else size
    bound = least_seconds(settings(method, config), handed, list(range(ranks)), num_servers(method, config), 1e8)
    found = step_time(row, instant, Cluster(ranks, Link(1e8)), config, steps=1)
    assert found == pytest.approx(bound, rel=2e-3)


def test_what_a_message_costs():
    """Ring: 2 (N-1) steps for each of the tensors; trees: 2 log2 N."""
    cluster = Cluster(8, Link(1e9, latency=1e-3))
    assert cluster.all_reduce(0, tensors=5).seconds == pytest.approx(5 * 14e-3)
    assert replace(cluster, tree=True).all_reduce(0, tensors=5).seconds == pytest.approx(5 * 6e-3)
    assert cluster.transfer(0, 3, reduced=False) == pytest.approx(3e-3)


def test_shared_processors_add_up_and_own_ones_do_not():
    costs = replace(FREE, byte=1e-9)
    shared, own = (Cluster(4, Link(1e12), costs, cores) for cores in (2, None))
    # 4 ranks send and receive 1.5 MB each.
    assert shared.all_reduce(1e6).seconds == pytest.approx(4 * 2 * 1.5e6 * 1e-9 / 2, rel=1e-3)
    assert own.all_reduce(1e6).seconds == pytest.approx(1.5e6 * 1e-9, rel=1e-3)


def test_serial_is_the_share_that_is_not_hidden():
    times = [Cluster(2, Link(1e9), replace(FREE, byte=5e-10, serial=serial)).all_reduce(1e9).seconds
             for serial in (0.0, 0.5, 1.0)]
    assert times == pytest.approx([1.0, 1.25, 1.5])


def test_a_step_far_from_the_start_is_shorter_where_workers_take_turns():
    cluster = Cluster(4, Link(1e9))
    first, steady = (step_time("ps", profile(), cluster, steps=steps) for steps in (1, None))
    assert steady < first


@pytest.mark.parametrize(("name", "limit"), [("all_reduce", None), ("all_reduce", 5.0), ("baseline_ddp", None)])
def test_buckets_are_those_that_the_methods_make(name, limit):
    import torchvision
    from torch import nn

    from gradsync import buckets
    from gradsync.compute_profile import group_gradients

    parameters = list(torchvision.models.get_model("resnet18", weights=None).parameters())[::-1]
    groups = group_gradients(parameters, [float(place) for place in range(len(parameters))], 4)
    found = [bucket.bytes for bucket in cut_into_buckets(
        profile().model_copy(update={"gradients": groups}), name, TrainConfig(bucket_mb=limit))]
    if name == "baseline_ddp":
        from torch.distributed import _compute_bucket_assignment_by_size

        caps = [MIB, 25 * MIB]
        expected, _ = _compute_bucket_assignment_by_size(parameters, caps, [False] * len(parameters))
        sizes = [sum(parameters[index].nbytes for index in members) for members in expected]
    else:
        copies = [nn.Parameter(parameter.detach()) for parameter in parameters]
        sizes = [bucket.flat.nbytes for bucket in buckets.cut_into_buckets(copies, (limit or 12) * MIB)]
    assert found == sizes


@pytest.mark.parametrize("row", ["ps_async", "ps_ssp_staleness2", "ring"])
def test_what_is_not_modelled_is_refused(row):
    with pytest.raises(UsageError, match=row):
        step_time(row, profile(), Cluster(4, Link(1e9)))


def test_nominal_rates_lose_their_headers():
    assert shaped_link(1e9).bandwidth == pytest.approx(1e9 / 8 * 1448 / 1514)


def test_a_fit_finds_the_costs_that_made_the_grid():
    found = fit_costs(grid(COSTS))
    assert astuple(found.costs) == pytest.approx(astuple(COSTS), rel=0.1)
    assert max(found.factors.values()) < 1.2
    assert summarise(judge(grid(COSTS), found.costs)).worst < 0.02


def test_no_row_of_a_fitted_cell_is_judged(monkeypatch):
    fitted: list[list[tuple[int, float]]] = []
    monkeypatch.setattr(cost_grid, "fit_costs", lambda cells: (
        fitted.append([(cell.hosts, cell.rate) for cell in cells]), cost_grid.Fitted(COSTS, {}))[1])
    judged = held_out(grid(COSTS))
    halves = [{(one.cell.hosts, one.cell.rate) for one in part}
              for part in (judged[: len(judged) - 8 * len(fitted[0])], judged[len(judged) - 8 * len(fitted[0]):])]
    assert [half & set(seen) for half, seen in zip(halves, fitted, strict=True)] == [set(), set()]
    assert halves[0] | halves[1] == {(cell.hosts, cell.rate) for cell in grid(COSTS)} and len(judged) == 72
