"""The parts of the watchdog, without a job."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from jobs import TOP

from gradsync import watchdog
from gradsync.agreement import first_difference
from gradsync.distributed import Launch, process_group
from gradsync.errors import JobError, RunError, UsageError
from gradsync.failure import failure_line, is_echo
from gradsync.noticeboard import Cause, Noticeboard, Sighting
from gradsync.position import STAGES, PeerPosition, Position, SharedPosition
from gradsync.process import how_it_ended, in_words, oom_kills
from gradsync.watchdog import stuck_rank

STEP = Position("training", 1, 7, "all_reduce", 30)
STUCK = [  # positions by rank, servers, the rank that the others wait for
    ({0: STEP, 1: replace(STEP, phase="data_wait", moves=28), 2: STEP}, 0, 1),
    ({0: STEP, 1: STEP}, 0, None),
    ({0: STEP, 1: STEP, 2: STEP}, 1, 0),
    ({0: Position("training", 1, 7, "wait", 90), 1: STEP, 2: replace(STEP, moves=29)}, 1, 2),
    ({0: Position("end of epoch", 1, 0, "", 0), 1: Position("validation", 1, 9, "", 9)}, 0, 1),
    ({0: Position("training", 2, 1, "", 1), 1: Position("end of epoch", 1)}, 0, 1),
    ({0: Position("writing the results"), 1: Position("leaving")}, 0, 0),
    ({0: Position("end of epoch", 3), 1: Position("leaving")}, 0, 0),
]


@pytest.mark.parametrize(("positions", "servers", "expected"), STUCK)
def test_the_rank_that_the_others_wait_for(positions, servers, expected):
    assert stuck_rank(positions, servers) == expected


@pytest.mark.parametrize(("position", "words"), [
    (STEP, "training (all_reduce), epoch 1, step 7"), (Position("warm-up"), "warm-up"),
    (Position("validation", 2), "validation, epoch 2"),
])
def test_positions_in_words(position, words):
    assert str(position) == words


def test_a_position_can_be_read_when_its_process_is_gone():
    child = subprocess.Popen(
        [sys.executable, "-c", "from gradsync.position import here; print(here.share(), flush=True); "
                               "here.enter('training', 2, 5); here.begin('push'); print('there', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TOP)
    assert child.stdout
    peer = PeerPosition(child.pid, int(child.stdout.readline()))
    child.stdout.readline()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert how_it_ended(child.pid) == "killed by SIGKILL"
    child.wait()
    assert how_it_ended(child.pid) == ""
    assert peer.read() == Position("training", 2, 5, "push", 1)
    child.communicate()


def test_an_unshared_position_moves_too():
    position = SharedPosition()
    for stage in STAGES:
        position.enter(stage, 1)
        position.next_step()
        assert (position.stage, position.step, position.moves) == (stage, 1, 1)


def test_one_cause_wins_and_all_learn_of_it():
    store = dist.HashStore()
    boards = [Noticeboard(store, rank, 3) for rank in range(3)]
    for board in boards:
        board.start()
    outcomes: dict[int, bool] = {}

    def claim(rank: int) -> None:
        outcomes[rank] = boards[rank].claim(Cause("the same words"))

    threads = [threading.Thread(target=claim, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == [False, False, True], "the words are alike, and yet only one rank says them"
    assert {board.cause for board in boards} == {replace(Cause("the same words"), by=boards[0].cause.by)}
    for board in boards:
        board.close()


def test_a_rank_killed_for_want_of_memory(monkeypatch):  # row 29
    """A stand-in for the kernel's count: a test must not exhaust a machine's memory."""
    for before, after, advised in ((3, 3, False), (3, 4, True)):
        monkeypatch.setattr(watchdog, "oom_kills", iter([before, after]).__next__)
        watch = watchdog.Watchdog("ps", Launch(), 0, 5.0, print)
        watch.start(dist.HashStore())
        line = watch._lost(0, "killed by SIGKILL").line
        watch.stop()
        assert line.startswith("ps: rank 0 was lost, killed by SIGKILL, in ")
        assert line.endswith("this host ran out of memory, try a smaller --batch-size") is advised


class Ageing:
    """A clock and a board: as time goes by, what has fallen silent stays so, and all else is heard of again."""

    def __init__(self, store: float, rank: float) -> None:
        """Seconds since the store has answered, and since rank 1 was heard of."""
        self.now, self.cause, self.answered = 100.0, None, 100.0 - store
        self.sightings = {1: Sighting(Position(), 1, 100.0 - rank, 100.0)}
        self.store_answers, self.rank_answers = store == 0, rank == 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.answered += seconds * self.store_answers
        self.sightings[1].seen += seconds * self.rank_answers

    def watch_all(self) -> None:
        pass


STORE = "the launcher's store has not answered"
UNHEARD = [  # seconds since the store has answered, since rank 1 was heard of, the first sign, why a collective failed
    (0, 0, None, "the echo"), (0, 20, "rank 1 has not answered for 20 s", "rank 1 was lost"),
    (20, 20, STORE, STORE), (20, 22, STORE, STORE),
]


@pytest.mark.parametrize(("store", "rank", "sign", "reason"), UNHEARD)
def test_a_rank_is_not_silent_because_the_store_is(store, rank, sign, reason, monkeypatch):  # row 32
    """Else a host that is cut off would blame a rank of its own, and kill it."""
    board = Ageing(store, rank)
    monkeypatch.setattr(watchdog, "time", board)
    watch = watchdog.Watchdog("ps", Launch(), 0, 5.0, print)
    watch.board, watch._peers, watch._oom_kills = board, {}, oom_kills()
    cause = watch._silence(board.now, 0.0)
    assert cause is None if sign is None else sign in cause.line
    assert reason in watch._reason_for_echo("the echo").line


def test_the_kernels_count_can_be_read():
    assert oom_kills() >= 0


@pytest.mark.parametrize(("code", "words"), [
    (-9, "killed by SIGKILL"), (-11, "killed by SIGSEGV"), (-63, "killed by signal 63"),
    (3, "it ended with exit code 3"),
])
def test_exit_codes_in_words(code, words):
    assert in_words(code) == words


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:17532"
FAILURES = [  # error, whether it is an echo, how the line goes on
    (RuntimeError(GLOO), True, "ps, rank 1: RuntimeError: [../third_party"),
    (dist.DistNetworkError("Timed out"), True, "ps, rank 1: DistNetworkError"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False, "ps, rank 1: out of memory; try a"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"), False,
     "ps, rank 1: out of memory; try a smaller --batch-size"),
    (MemoryError(), False, "ps, rank 1: out of memory"),
    (RuntimeError("shapes do not match"), False, "ps, rank 1: RuntimeError: shapes do not match"),
    (OSError(errno.ENOSPC, "No space left on device", "out/a.json"), False,
     "ps, rank 1: out/a.json: No space left on device"),
    (JobError("rank 2: the loss is not finite"), False, "ps: rank 2: the loss"),
    (RunError("Caught RunError in DataLoader worker.\nTraceback\ngradsync.errors.RunError: a.png: cut"), False,
     "ps, rank 1: a.png: cut"),
]


@pytest.mark.parametrize(("error", "echo", "start"), FAILURES)
def test_failures_in_one_line(error, echo, start):
    assert is_echo(error) is echo
    line = failure_line(error, "ps", 1)
    assert line.startswith(start)
    assert "\n" not in line


FACTS = {"lr": 0.1, "classes": ["cat", "dog"], "training files": "5f1e"}


@pytest.mark.parametrize(("changed", "line"), [
    ({}, ""),
    ({"lr": 0.2}, "rank 2: --lr is 0.2, rank 0 has 0.1; start every rank"),
    ({"classes": ["dog", "cat"]}, "rank 2: classes is ['dog', 'cat'], rank 0 has ['cat', 'dog']"),
    ({"training files": "77aa"}, "rank 2: training files is 77aa"),
    ({"extra": 1}, "rank 2: extra is 1, rank 0 has None"),
])
def test_what_ranks_must_agree_on(changed, line):  # row 27
    difference = first_difference([FACTS, FACTS, {**FACTS, **changed}])
    assert difference.startswith(line)
    assert bool(difference) is bool(changed)


def join(launch: Launch) -> None:
    with process_group(launch, "gloo", torch.device("cpu"), 0, 5.0):
        raise AssertionError("there is nobody to meet")


def test_a_port_in_use_is_named(monkeypatch):  # row 18
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(UsageError, match=rf"MASTER_PORT {taken.getsockname()[1]}: cannot be listened at"):
            join(Launch(0, 2, 0, 2, by_torchrun=True))


def test_a_launcher_that_is_gone_is_noticed_at_once():  # row 7
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(RunError, match=r"store at .* does not answer"):
        join(Launch(0, 2, 0, 2, by_torchrun=True, launcher_store=address))


def test_signal_names_are_known():
    assert all(in_words(-number) == f"killed by {number.name}" for number in signal.Signals)
