"""A rank dies, stops, stays away or runs out of memory: one line, exit 1 everywhere, and what was there stays."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from jobs import SHORT, Nursery, Outcome, earlier_run, snapshot

from gradsync.results import read_results

METHODS = ("baseline_ddp", "all_reduce", "ps")
SERVER = "the parameter server (rank 0)"


def check(outcome: Outcome, folder: Path, method: str, before: dict[str, bytes], line: str, lost: int | None) -> None:
    """``line`` is a pattern for the whole one line; ``lost`` the rank that did not end by itself."""
    (error,) = outcome.errors
    assert re.fullmatch(f"error: {line}", error), outcome.output
    assert [code for rank, code in enumerate(outcome.codes) if rank != lost] == [1] * (3 - (lost is not None))
    after = snapshot(folder)
    failed = after.pop(f"results_{method}.failed.json")
    assert after == before
    assert json.loads(failed)["status"] == "failed"
    assert read_results(folder / f"results_{method}.failed.json").error == error.removeprefix("error: ")


KILLED = [  # method, rank, where, how the line calls the rank, where the line says it was
    ("baseline_ddp", 2, {"stage": "training", "epoch": 1, "step": 2, "phase": "forward_backward"}, "rank 2"),
    ("baseline_ddp", 0, {"stage": "validation", "epoch": 1, "step": 1}, "rank 0"),
    ("all_reduce", 0, {"stage": "training", "epoch": 1, "step": 2, "phase": "all_reduce"}, "rank 0"),
    ("all_reduce", 2, {"stage": "warm-up", "phase": "all_reduce"}, "rank 2"),
    ("ps", 2, {"stage": "training", "epoch": 1, "step": 3, "phase": "push"}, "rank 2"),
    ("ps", 1, {"stage": "validation", "epoch": 1, "step": 1}, "rank 1"),
    ("ps", 0, {"stage": "training", "epoch": 1, "step": 2, "phase": "update"}, SERVER),
]


def in_words(place: dict[str, object]) -> str:
    stage = f"{place['stage']} ({place['phase']})" if "phase" in place else str(place["stage"])
    return re.escape(", ".join([stage, *(f"{key} {place[key]}" for key in ("epoch", "step") if key in place)]))


@pytest.mark.parametrize(("method", "rank", "place", "name"), KILLED)
def test_a_killed_rank_is_named(method, rank, place, name, nursery: Nursery, tmp_path):  # rows 1, 2, 3
    before = earlier_run(tmp_path / "out", method)
    outcome = nursery.run(method, tmp_path / "out", {"rank": rank, "action": "SIGKILL", **place})
    line = f"{method}: {re.escape(name)} was lost, killed by SIGKILL, in {in_words(place)}(, step 1)?"
    check(outcome, tmp_path / "out", method, before, line, rank)
    assert outcome.codes[rank] == -9


STEP = {"stage": "training", "epoch": 1, "step": 2}
VARIANTS = [  # results file, method, flags, rank, how the line calls it
    ("baseline_ddp_fp16", "baseline_ddp", ["--compress", "fp16"], 1, "rank 1"),
    ("all_reduce_overlapped", "all_reduce", ["--variant", "overlapped"], 2, "rank 2"),
    ("ps_pipelined", "ps", ["--transfer", "pipelined"], 1, "rank 1"),
    ("ps_pipelined", "ps", ["--transfer", "pipelined"], 0, SERVER),
    ("ps_async", "ps", ["--mode", "async"], 2, "rank 2"),
    ("ps_async", "ps", ["--mode", "async"], 0, SERVER),
    ("ps_2servers", "ps", ["--num-servers", "2"], 1, "the parameter server (rank 1)"),
    ("ps_2servers", "ps", ["--num-servers", "2"], 2, "rank 2"),
]


@pytest.mark.parametrize(("name", "method", "flags", "rank", "called"), VARIANTS)
def test_a_killed_rank_of_a_variant_is_named(name, method, flags, rank, called, nursery: Nursery, tmp_path):
    before = earlier_run(tmp_path / "out", name)  # rows 1, 2, 3
    outcome = nursery.run(method, tmp_path / "out", {"rank": rank, "action": "SIGKILL", **STEP}, flags=[*SHORT, *flags])
    line = rf"{name}: {re.escape(called)} was lost, killed by SIGKILL, in training( \(.*\))?, epoch 1, step 2"
    check(outcome, tmp_path / "out", name, before, line, rank)
    assert outcome.codes[rank] == -9


@pytest.mark.parametrize(("method", "rank"), [("baseline_ddp", 2), ("all_reduce", 0), ("ps", 0), ("ps", 2)])
def test_a_rank_killed_in_checkpointing(method, rank, nursery: Nursery, tmp_path):  # rows 1, 2, 3 and 26
    """The checkpoint before counts: the run goes on from there."""
    flags = [*SHORT, "--checkpoint-every", "1"]
    before = earlier_run(tmp_path / "out", method)
    server = method == "ps" and rank == 0
    # After two steps. A server counts the one that it has not been asked for yet.
    second = {"stage": "training", "epoch": 1, "step": 3 if server else 2, "phase": "checkpoint"}
    outcome = nursery.run(method, tmp_path / "out", {"rank": rank, "action": "SIGKILL", **second}, flags=flags)
    (error,) = outcome.errors
    assert re.fullmatch(f"error: {method}: {re.escape(SERVER) if server else f'rank {rank}'} was lost, killed by "
                        f"SIGKILL, in {in_words(second)}", error)
    assert [code for other, code in enumerate(outcome.codes) if other != rank] == [1, 1]
    after = snapshot(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    assert nursery.run(method, tmp_path / "out", flags=[*flags, "--resume"]).codes == [0, 0, 0]
    (resumed,) = read_results(tmp_path / "out" / f"results_{method}.json").resumed_at
    assert (resumed.epoch, resumed.step) == (1, 1)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rank"), [("baseline_ddp", 1), ("all_reduce", 0), ("ps", 0), ("ps", 2)])
def test_a_stopped_rank_is_named_and_ended(method, rank, nursery: Nursery, tmp_path):  # row 4
    before = earlier_run(tmp_path / "out", method)
    phase = "update" if (method, rank) == ("ps", 0) else "forward_backward"
    place = {"stage": "training", "epoch": 1, "step": 2, "phase": phase}
    outcome = nursery.run(method, tmp_path / "out", {"rank": rank, "action": "SIGSTOP", **place}, tell_others=False)
    name = SERVER if phase == "update" else f"rank {rank}"
    line = (rf"{method}: {re.escape(name)} has not answered for \d+ s \(stopped, or its host cannot be reached\), "
            f"last seen in {in_words(place)}")
    check(outcome, tmp_path / "out", method, before, line, rank)
    assert outcome.codes[rank] == -9, "a stopped process cannot end by itself"


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rank", "phase"), [
    ("baseline_ddp", 1, "data_wait"), ("all_reduce", 2, "data_wait"), ("ps", 1, "forward_backward"),
    ("ps", 0, "update"),
])
def test_a_rank_that_does_not_come_is_named(method, rank, phase, nursery: Nursery, tmp_path):  # row 4
    before = earlier_run(tmp_path / "out", method)
    place = {"stage": "training", "epoch": 1, "step": 2, "phase": phase}
    outcome = nursery.run(method, tmp_path / "out", {"rank": rank, "action": "stay", **place})
    name = SERVER if rank == 0 else f"rank {rank}"
    line = (rf"{method}: {re.escape(name)} has kept the others waiting for more than 4 s \(--timeout\) in "
            f"{in_words(place)}")
    check(outcome, tmp_path / "out", method, before, line, None)


OTHERS = [  # action, line
    ("leave", r"all_reduce: rank 1 was lost, it ended with exit code 3, in training \(all_reduce\), epoch 1, step 2"),
    ("run_out_of_memory", r"all_reduce, rank 1: out of memory; try a smaller --batch-size .*"),  # row 29
]


@pytest.mark.parametrize(("action", "line"), OTHERS)
def test_other_ends(action, line, nursery: Nursery, tmp_path):
    before = earlier_run(tmp_path / "out", "all_reduce")
    place = {"stage": "training", "epoch": 1, "step": 2, "phase": "all_reduce"}
    outcome = nursery.run("all_reduce", tmp_path / "out", {"rank": 1, "action": action, **place})
    check(outcome, tmp_path / "out", "all_reduce", before, line, 1 if action == "leave" else None)


def test_the_first_cause_is_named_and_not_its_echo(nursery: Nursery, tmp_path):
    """Rank 1 runs out of memory; what its end leads to on the others must not be said, whoever is faster."""
    for _ in range(3):
        fault = {"rank": 1, "action": "run_out_of_memory", "stage": "training", "step": 2}
        outcome = nursery.run("all_reduce", tmp_path / "out", fault, tell_others=False)
        assert len(outcome.errors) == 1, outcome.output
        assert "rank 1: out of memory" in outcome.errors[0]


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_an_interrupted_rank_takes_the_job_with_it(number, code, nursery: Nursery, tmp_path):  # row 6
    before = earlier_run(tmp_path / "out", "all_reduce")
    outcome = nursery.run("all_reduce", tmp_path / "out", {"rank": 1, "action": number, "stage": "training", "step": 2})
    assert set(outcome.codes) == {code}
    assert outcome.errors == [], "whoever has interrupted it knows"
    assert snapshot(tmp_path / "out") == before


def test_another_learning_rate_on_one_rank(nursery: Nursery, tmp_path):  # row 27
    outcome = nursery.run("ps", tmp_path / "out", flags_of={"2": ["--lr", "0.5"]})
    assert outcome.errors == ["error: ps: rank 2: --lr is 0.5, rank 0 has 0.02; "
                              "start every rank with the same flags and data"]
    assert outcome.codes == [1, 1, 1]


@pytest.mark.slow
def test_random_faults(nursery: Nursery, tmp_path, request):
    """Twenty draws of (method, rank, place, action)."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    draw = random.Random(seed)
    for number in range(20):
        method, rank, folder = draw.choice(METHODS), draw.randrange(3), tmp_path / str(number)
        server = method == "ps" and rank == 0
        stage, step = draw.choice([("warm-up", None), ("training", draw.randint(1, 4)), ("validation", None)])
        action = draw.choice(["SIGKILL", "SIGKILL", "SIGTERM", "leave"] if server else
                             ["SIGKILL", "SIGSTOP", "SIGTERM", "leave", "run_out_of_memory"])
        fault = {"rank": rank, "action": action, "stage": stage, **({"step": step} if step else {})}
        before = earlier_run(folder, method)
        flags = ["--max-steps", "4", "--timeout", "2", "--batch-size", "16"]
        outcome = nursery.run(method, folder, fault, flags=flags)
        said = f"draw {number} of seed {seed}: {method}, {fault}\n{outcome}"
        after = snapshot(folder)
        assert None not in outcome.codes, said
        assert 0 not in outcome.codes, said
        after.pop(f"results_{method}.failed.json", None)
        assert after == before, said
        assert len(outcome.errors) == (action != "SIGTERM"), said
        assert all(re.search(rf"rank {rank}\b", error) for error in outcome.errors), said
