"""The link probe: nccl-tests' formulas, what a probe of real ranks leaves, and lower bounds where ranks share a link.

The probed bandwidth is held against a shaped rate between emulated hosts, at a rate that no processor is too slow for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from parity import Job, train_on_rank
from pydantic import ValidationError
from ranks import TOP, run_ranks

from benchmarks.namespaces import Hosts
from gradsync import link_probe
from gradsync.analysis.lower_bound import all_reduce_seconds, server_seconds, shard_bytes
from gradsync.bandwidth import ALL_REDUCE, SENDRECV, algbw, busbw, fastest, link_bandwidth, nodes
from gradsync.config import TrainConfig
from gradsync.distributed import Launch, process_group
from gradsync.errors import UsageError
from gradsync.link_probe import SIZES, chosen_peers, probe_links
from gradsync.probed import LinkPair, Links, LinkSample

MB = 1e6
RATE = "200mbit"
PAYLOAD = 1448 / 1514  # of a full Ethernet frame with TCP over IPv4, what the rate counts


def sample(bandwidth: float, size: int = 1_000_000, factor: float = 1.0) -> LinkSample:
    seconds = size / bandwidth
    return LinkSample(bytes=size, repeats=3, seconds=seconds, low=seconds, high=seconds, algbw=bandwidth,
                      busbw=bandwidth * factor)


def pair(first: int, second: int, same_host: bool, one_way: float, both_ways: float) -> LinkPair:
    return LinkPair(ranks=[first, second], same_host=same_host, latency=1e-4, one_way=[sample(one_way)],
                    both_ways=sample(both_ways))


@pytest.mark.parametrize(("operation", "ranks", "factor"), [
    (ALL_REDUCE, 2, 1.0), (ALL_REDUCE, 3, 4 / 3), (ALL_REDUCE, 4, 1.5), (ALL_REDUCE, 8, 1.75), (ALL_REDUCE, 1, 0.0),
    (SENDRECV, 2, 1.0), (SENDRECV, 8, 1.0),
])
def test_the_bandwidths_of_nccl_tests(operation, ranks, factor):
    assert algbw(1_000_000, 0.01) == 100 * MB
    assert busbw(operation, 100 * MB, ranks) == pytest.approx(factor * 100 * MB)


# (hosts of the ranks, all-reduce's algbw, pairs, shift's algbw) -> bytes/s of a link
LINKS = {
    "one host: a link a rank": ([0, 0], 90, [pair(0, 1, True, 100, 80)], None, 100),
    "one host: its all-reduce was faster": ([0, 0, 0], 90, [pair(0, 1, True, 100, 80)], None, 120),
    "two hosts": ([0, 1], 90, [pair(0, 1, False, 100, 80)], None, 100),
    "pairs within a host do not count": ([0, 0, 1, 1], 60, [pair(0, 1, True, 900, 900), pair(0, 2, False, 100, 80)],
                                         None, 100),
    "the ring of four ranks over two hosts": ([0, 0, 1, 1], 90, [pair(0, 2, False, 80, 70)], None, 90),
    "each of two ranks has half of the link": ([0, 0, 1, 1], 60, [pair(0, 2, False, 80, 70)], 50, 100),
}


@pytest.mark.parametrize("case", LINKS)
def test_what_a_link_carries(case):
    hosts, reduced, pairs, shift, expected = LINKS[case]
    found = link_bandwidth(hosts, sample(reduced), pairs, sample(shift) if shift else None)
    assert found == pytest.approx(expected)


def test_the_fastest_transfer_is_one_within_a_host_too():
    pairs = [pair(0, 1, True, 900, 800), pair(0, 2, False, 100, 80)]
    links = Links(hosts=[0, 0, 1], memory="cpu", all_reduce=[sample(60)], pairs=pairs, shift=None, latency=1e-4,
                  bandwidth=100, seconds=1)
    assert fastest(links) == pytest.approx(900)


# Seconds over links of 1 byte/s; M is 120 bytes. Nodes of the ranks, servers first.
BOUNDS = {
    "all-reduce, two ranks": (all_reduce_seconds, ([0, 1],), 120),
    "all-reduce, four ranks": (all_reduce_seconds, ([0, 1, 2, 3],), 180),
    "all-reduce, four ranks on two hosts": (all_reduce_seconds, ([0, 0, 1, 1],), 120),
    "one server in turn": (server_seconds, ([0, 1, 2, 3], 1, False), 720),
    "one server pipelined": (server_seconds, ([0, 1, 2, 3], 1, True), 360),
    "two servers, two workers": (server_seconds, ([0, 1, 2, 3], 2, True), 120),
    "three servers, one worker": (server_seconds, ([0, 1, 2, 3], 3, True), 120),
    "a worker beside the server": (server_seconds, ([0, 0, 1, 1], 1, True), 240),
    "all beside the server": (server_seconds, ([0, 0, 0, 0], 1, True), 0),
    "a server and a worker on each host": (server_seconds, ([0, 1, 0, 1], 2, True), 120),
    "a server and a worker on each host, in turn": (server_seconds, ([0, 1, 0, 1], 2, False), 120),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_lower_bounds_where_ranks_share_links(case):
    bound, arguments, expected = BOUNDS[case]
    assert bound(120, *arguments, 1.0) == pytest.approx(expected)


def test_shards_differ_by_one_element():
    assert shard_bytes(44, 3) == [16, 16, 12]


def test_nodes_are_hosts_where_there_are_several():
    assert nodes([0, 0, 0]) == [0, 1, 2]
    assert nodes([0, 0, 1]) == [0, 0, 1]


@pytest.mark.parametrize(("ranks", "peers"), [
    (2, [1]), (4, [1, 2, 3]), (17, list(range(1, 17))), (33, list(range(2, 33, 2))),
])
def test_rank_0_is_paired_with_all_or_with_evenly_spread_ones(ranks, peers):
    assert chosen_peers(ranks) == peers


@pytest.mark.parametrize("wrong", [
    {"bandwidth": 0}, {"bandwidth": float("inf")}, {"bandwidth": 1e16}, {"latency": -1e-6}, {"pairs": []},
    {"hosts": [0]}, {"pairs": [pair(0, 2, False, 60, 60)]}, {"all_reduce": [sample(1)] * 65},
])
def test_the_schema_refuses_what_no_probe_finds(wrong):
    sound = {"hosts": [0, 1], "memory": "cpu", "all_reduce": [sample(60)], "pairs": [pair(0, 1, False, 60, 60)],
             "shift": None, "latency": 1e-4, "bandwidth": 60, "seconds": 1}
    Links.model_validate(sound)
    with pytest.raises(ValidationError):
        Links.model_validate(sound | wrong)


def _probe(rank: int, world_size: int, store_path: str, names: list[str]) -> tuple[str, set[int]]:
    """On ranks that call their hosts by these names; the result, and the sizes that this rank sent to another."""
    sent: set[int] = set()
    send, link_probe.SIZES = torch.distributed.send, SIZES[:5]

    def counted(tensor, dst):
        sent.add(tensor.nbytes)
        send(tensor, dst=dst)

    link_probe.socket.gethostname, torch.distributed.send = lambda: names[rank], counted
    launch = Launch(rank, world_size, rank, world_size, by_torchrun=True)
    store = torch.distributed.FileStore(store_path, world_size)
    with process_group(launch, "gloo", torch.device("cpu"), 1, 60, store) as ctx:
        return probe_links(ctx).model_dump_json(), sent


def test_a_probe_over_real_ranks():
    """A server among them; two hosts by name, of two ranks each."""
    found = run_ranks(_probe, 4, ["a", "a", "b", "b"])
    texts, sent = zip(*found, strict=True)
    links = Links.model_validate_json(texts[0])
    assert {replace_time(text) for text in texts} == {replace_time(texts[0])}
    assert links.hosts == [0, 0, 1, 1]
    assert [(each.ranks, each.same_host) for each in links.pairs] == [
        ([0, 1], True), ([0, 2], False), ([0, 3], False)]
    assert links.shift is not None
    for samples in (links.all_reduce, *(each.one_way for each in links.pairs)):
        assert [each.bytes for each in samples] == list(SIZES[:5])
    assert all(each >= set(SIZES[:5]) for each in sent)
    for each in links.all_reduce:
        assert each.algbw == pytest.approx(each.bytes / each.seconds)
        assert each.busbw == pytest.approx(each.algbw * 1.5)
    assert links.latency == max(each.one_way[0].seconds for each in links.pairs)


def replace_time(text: str) -> str:
    """Ranks agree on all but the time that the whole took, which each has by its own clock."""
    return json.dumps({**json.loads(text), "seconds": 0})


def test_ranks_of_unequal_hosts_have_no_shift():
    links = Links.model_validate_json(run_ranks(_probe, 3, ["a", "a", "b"])[0][0])
    assert links.shift is None


EXCHANGES = {"all_reduce": True, "all_reduce_overlapped_fp16": True, "all_reduce_bucketed_powersgd": True, "ps": True,
             "ps_pipelined": True, "ps_async": True, "baseline_ddp": False}


@pytest.mark.slow
def test_the_exchange_alone_is_measured_and_leaves_no_trace():
    """Training goes on as without it; what DDP does inside backward cannot be had apart."""
    plain = Job(32, double=True, config=TrainConfig(epochs=1, lr=0.01))
    probing = replace(plain, config=replace(plain.config, probe_links=True))
    runs = [(name, job, None) for name in EXCHANGES for job in (plain, probing)]
    done = run_ranks(train_on_rank, 3, runs)[-1]
    for (name, has_one), without, found in zip(EXCHANGES.items(), done[::2], done[1::2], strict=True):
        assert without.results.probe.exchange_times is None
        times = found.results.probe.exchange_times
        assert (times is not None and len(times) == 2 and min(times) > 0) if has_one else times is None, name
        if name != "ps_async":  # the order of arrival decides there
            assert found.losses == pytest.approx(without.losses, rel=1e-12), name


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> dict[int, Links]:
    """By ranks per host, between two emulated hosts."""
    folder, found = tmp_path_factory.mktemp("links"), {}
    try:
        with Hosts(1, RATE):
            pass
    except UsageError as error:
        pytest.skip(str(error))
    for ranks in (1, 2):
        command = [sys.executable, "benchmarks/emulated_cluster.py", "--hosts", "2", "--ranks-per-host", str(ranks),
                   "--rate", RATE, "--script", "all_reduce_train.py", "--probe-links", "--max-steps", "1",
                   "--batch-size", "4", "--checkpoint-every", "0", "--output-dir", str(folder)]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=200, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert "Links (probed in" in done.stdout
        results = json.loads((folder / "results_all_reduce.json").read_text())
        found[ranks] = Links.model_validate(results["links"])
        assert results["probe"]["exchange_times"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_found_bandwidth_is_the_shaped_rate(probed, ranks):
    """Within 10% of it, between two ranks and, with a link for each, in the all-reduce; headers take 4.4%.

    Several streams at once keep dropping each other's packets in the shaper's short queue, so they only have a ceiling.
    """
    links, shaped = probed[ranks], 200e6 / 8
    across = [each for each in links.pairs if not each.same_host]
    assert len(across) == ranks
    alone = [links.bandwidth, max(each.one_way[-1].algbw for each in across)]
    together = [links.all_reduce[-1].busbw, ranks * links.shift.algbw, *(each.both_ways.algbw for each in across)]
    found = [*alone, links.all_reduce[-1].busbw] if ranks == 1 else alone
    assert all(speed == pytest.approx(shaped, rel=0.1) for speed in found), found
    assert max(together) < 1.1 * shaped
    assert min(alone + together) < 1.02 * shaped * PAYLOAD


@pytest.mark.slow
def test_ranks_of_a_host_are_no_measure_of_its_link(probed):
    (within,) = [each for each in probed[2].pairs if each.same_host]
    assert within.one_way[-1].algbw > 2 * probed[2].bandwidth
