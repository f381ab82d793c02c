"""Several hosts: their flags, how they meet, and what each of them is told to do. No rank is started here."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from doc_commands import comparison
from ranks import run_ranks

from check_environment import load_scripts, parse
from gradsync.agreement import first_difference
from gradsync.config import PER_HOST_FLAGS, TrainConfig
from gradsync.delivery import deliver
from gradsync.distributed import Launch, process_group
from gradsync.errors import RunError, UsageError
from gradsync.hosts import Hosts
from gradsync.meeting import Meeting
from gradsync.roll_call import roll_call
from gradsync.survey import Survey
from launch.torchrun import last_word

TOP = Path(__file__).resolve().parent.parent
TWO = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "node0"]


@pytest.mark.parametrize(("flags", "expected"), [
    ([], None),
    (["--nnodes", "1"], None),
    (TWO, Hosts(2, 1, "node0", 29500, 1800.0)),
    ([*TWO, "--master-port", "1234", "--timeout", "9"], Hosts(2, 1, "node0", 1234, 9.0)),
    ([*TWO[:5], "10.0.0.1:80"], Hosts(2, 1, "10.0.0.1", 80, 1800.0)),
])
def test_the_hosts_that_flags_name(flags, expected):
    assert parse(flags)[1].hosts == expected


@pytest.mark.parametrize(("flags", "line"), [
    (["--node-rank", "0"], "--node-rank 0: is for several hosts; add --nnodes"),
    (["--master-addr", "a"], "--master-addr a: is for several hosts"),
    (["--nnodes", "0"], "--nnodes 0: give a number of hosts"),
    (["--nnodes", "2"], "--nnodes 2: each host also needs --node-rank (0 to 1) and --master-addr"),
    ([*TWO[:3], "2", *TWO[4:]], "--node-rank 2: of 2 host(s), so give a number from 0 to 1"),
    ([*TWO[:5], "a:b"], "--master-addr a:b: give an IPv4 address or a name, and one port"),
    ([*TWO[:5], "a:80", "--master-port", "80"], "--master-addr a:80: give"),
    ([*TWO, "--master-port", "70000"], "--master-port 70000: give a port"),
    ([*TWO, "--scaling", "1,2"], "--nnodes 2: a study of several numbers of ranks runs on one host"),
    ([*TWO, "--study", "classic"], "--nnodes 2: a study of several numbers of ranks runs on one host"),
])
def test_flags_that_are_refused(flags, line):
    with pytest.raises(UsageError, match=re.escape(line)):
        comparison(flags)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def attend(index: int, port: int, topic: str, word: str, count: int = 2, patience: float = 20.0) -> list[str]:
    with Meeting(Hosts(count, index, "127.0.0.1", port, patience), topic) as held:
        return held.exchange("word", word)


def test_hosts_wait_for_each_other_and_hear_all_words(port):
    """One of them is at the next meeting already, and waits until host 0 gets there, too."""
    with ThreadPoolExecutor() as pool:
        early = pool.submit(attend, 1, port, "second", "e")
        first = [pool.submit(attend, index, port, "first", word) for index, word in enumerate("ab")]
        assert [one.result() for one in first] == [["a", "b"], ["a", "b"]]
        assert attend(0, port, "second", "d") == ["d", "e"]
        assert early.result() == ["d", "e"]


def test_who_does_not_come_is_named(port):
    with pytest.raises(RunError, match=r"host 1, 2 of 3 has not come to the check within 0\.3 s .* port \d+ of 127"):
        attend(0, port, "the check", "", count=3, patience=0.3)
    with pytest.raises(RunError, match=r"host 0 has not been met at port \d+ within 0\.3 s .*Connection refused"):
        attend(1, port, "the check", "", patience=0.3)


def test_two_hosts_that_claim_one_number(port):
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(attend, 0, port, "topic", "", 2, 2.0)
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        store.set("host/1", "node7, process 5")
        with pytest.raises(UsageError, match="--node-rank 1: is taken already, by node7, process 5"):
            attend(1, port, "topic", "")
        assert isinstance(waiting.exception(), RunError)


@pytest.mark.parametrize(("address", "resolved", "line"), [
    ("192.0.2.1", None, "--master-addr 192.0.2.1, --master-port .*: host 0 cannot listen there"),
    ("node0", "127.0.1.1", "--master-addr node0: is 127.0.1.1 to this host, where no other can reach it"),
    ("no.such.name.invalid", None, "--master-addr no.such.name.invalid: cannot be resolved"),
])
def test_an_address_at_which_host_0_cannot_be_reached(address, resolved, line, port, monkeypatch):
    if resolved:
        monkeypatch.setattr(Hosts, "resolved", lambda self: resolved)
    with pytest.raises(UsageError, match=line), Meeting(Hosts(2, 0, address, port, 1.0), "topic"):
        raise AssertionError("there is nobody to meet")


def test_a_port_in_use_is_named(port):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UsageError, match=f"--master-port {port}: host 0"):
        attend(0, port, "topic", "")


def hold(index: int, port: int, status: int) -> list[int]:
    with Meeting(Hosts(2, index, "127.0.0.1", port, 20.0), "run") as held:
        held.end(status)
        held.exchange("ended both", None)
        return held.failed()


def test_hosts_know_which_have_failed(port):
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(hold, index, port, status) for index, status in enumerate((0, 2))]
        assert [one.result() for one in both] == [[1], [1]]


def test_the_roll_call_tells_attempts_apart():
    """Of the first attempt, rank 2 has signed in and died; of the second, all have met; then comes a third."""
    store = dist.HashStore()
    store.set("word/2", "left over")
    names = []
    for _ in range(2):
        with ThreadPoolExecutor() as pool:
            found = {one.result() for one in [pool.submit(roll_call, store, rank, 3, 20.0) for rank in range(3)]}
        assert len(found) == 1
        names += found
    assert len(set(names)) == 2
    with pytest.raises(RunError, match="rank 1 has not met the ranks of all hosts"):
        roll_call(store, 1, 3, patience=0.3)


def survey(hosts: Hosts | None, methods: str = "all_reduce,ps", **flags) -> Survey:
    scripts = load_scripts(tuple((name, {}) for name in methods.split(",")))
    return Survey(TrainConfig(**flags), None, scripts, 1, 0.0, hosts=hosts)


def test_the_plan_of_one_of_several_hosts(tmp_path, monkeypatch):
    """Ranks are per host, the batch is that of all of them, and the training scripts get none of the hosts' flags."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    flags = [*TWO, "--output-dir", str(tmp_path), "--timeout", "90"]
    planned = survey(Hosts(2, 1, "node0", 29500, 90.0), output_dir=str(tmp_path), timeout=90.0)
    show = 'printf "%s\\n" "$host" "${hosts[*]}" "${ranks[*]}" "${commands[1]}"'
    shown = subprocess.run(["bash", "-c", planned.plan(flags) + show], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "1", "--nnodes 2 --node-rank 1 --master-addr node0 --master-port 29500 --timeout 90", "1 1",
        f"ps_train.py --output-dir {tmp_path} --timeout 90 --global-batch-size 128"]
    launches = [one.launch for one in planned.prepared]
    assert [(one.rank, one.world_size, one.num_hosts) for one in launches] == [(1, 2, 2)] * 2
    command = next(line for line in planned.commands(flags) if "ps_train.py" in line)
    assert "--nnodes 2 --node-rank 1 --master-addr node0 --master-port 29500 --nproc_per_node=1 " in command


@pytest.mark.parametrize(("flags", "line"), [
    ({}, ""),
    ({"data_dir": "elsewhere", "output_dir": "elsewhere", "workers": 3}, ""),
    ({"lr": 0.5}, "host 1: --lr is 0.5, host 0 has 0.02; start every host with the same flags and data"),
    ({"checkpoint_every": 5}, "host 1: --checkpoint-every is 5, host 0 has None"),
    ({"methods": "ps"}, "host 1: --methods is ['ps'], host 0 has ['all_reduce', 'ps']"),
])
def test_what_hosts_must_agree_on(flags, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"dataset": "synthetic", "model": "groupnorm_cnn"}
    facts = [survey(Hosts(2, index, "node0", 29500, 9.0), **data, **more).must_agree()
             for index, more in enumerate(({}, flags))]
    assert first_difference(json.loads(json.dumps(facts)), "host").startswith(line or "")
    assert bool(first_difference(facts, "host")) is bool(line)


def test_every_flag_must_agree_within_a_job_but_for_those_of_a_host():
    assert set(TrainConfig().job_flags()) == set(vars(TrainConfig())) - PER_HOST_FLAGS


def deliver_two_files(rank: int, world_size: int, store: str, num_servers: int) -> list[bytes]:
    import torch

    with process_group(Launch(rank, world_size, rank, world_size, by_torchrun=True), "gloo", torch.device("cpu"),
                       num_servers, 60.0, dist.FileStore(store, world_size)) as ctx:
        files = [b"results", bytes(range(256)) * 9] if ctx.is_recorder else []
        return deliver(ctx, files, 2) if ctx.is_recorder or rank == 0 else []


@pytest.mark.parametrize("num_servers", [0, 2])
def test_results_reach_rank_0(num_servers):
    assert run_ranks(deliver_two_files, 3, num_servers) == [[b"results", bytes(range(256)) * 9], [], []]


@pytest.mark.parametrize(("cause", "ranks", "word"), [
    (None, range(0, 2), "ps.py: rank 1 was lost, killed by SIGKILL"),
    ({"line": "ps: rank 1 was lost in training", "rank": 1, "spoken": False, "by": 2}, range(0, 2),
     "ps: rank 1 was lost, killed by SIGKILL, in training"),
    ({"line": "ps: rank 3 was lost in training", "rank": 3, "spoken": False, "by": 0}, range(0, 2),
     "ps: rank 3 was lost in training"),
    ({"line": "ps, rank 2: disk full", "rank": None, "spoken": True, "by": 2}, range(0, 2), "ps, rank 2: disk full"),
    ({"line": "ps, rank 0: disk full", "rank": None, "spoken": True, "by": 0}, range(0, 2), ""),
])
def test_the_last_word_of_a_host(cause, ranks, word):
    """One line on each host: what another host's rank has said is not read on this one."""
    store = dist.HashStore()
    if cause:
        store.set("gradsync/0/cause", json.dumps(cause))
    assert last_word(store, "ps.py", 1, {1: "SIGKILL"}, ranks) == word
