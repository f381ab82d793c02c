"""What a run survives: a straggler, a failed run before it, a batch larger than the data set, another run beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import SHORT, Nursery

import analyze_results
from gradsync.results import read_results


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rank", "other"), [("baseline_ddp", 0, 1), ("all_reduce", 1, 0), ("ps", 2, 1)])
def test_a_straggler_is_named_in_the_report(method, rank, other, nursery: Nursery, tmp_path):  # row 5
    outcome = nursery.run(method, tmp_path, {"rank": rank, "action": "slow_down", "stage": "warm-up"})
    assert outcome.codes == [0, 0, 0], outcome.output
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    report = (tmp_path / "performance_report.txt").read_text()
    assert f"rank {rank} works" in report
    assert f"rank {other} works" not in report


def test_a_successful_run_takes_the_place_of_a_failed_one(nursery: Nursery, tmp_path):  # row 24
    failed, complete = tmp_path / "results_ps.failed.json", tmp_path / "results_ps.json"
    nursery.run("ps", tmp_path, {"rank": 1, "action": "SIGKILL", "stage": "training", "step": 2})
    assert (failed.exists(), complete.exists()) == (True, False)
    assert nursery.run("ps", tmp_path).codes == [0, 0, 0]
    assert (failed.exists(), complete.exists()) == (False, True)
    assert read_results(complete).status == "complete"


@pytest.mark.slow
def test_a_batch_larger_than_the_data_set(nursery: Nursery, tmp_path):  # row 15
    outcome = nursery.run("all_reduce", tmp_path, ranks=2, flags=["--global-batch-size", "4001", "--max-steps", "1"])
    assert outcome.codes == [0, 0]
    assert "Note: 4000 training samples are fewer than one global batch of 4001" in outcome.output
    assert read_results(tmp_path / "results_all_reduce.json").epochs[0].samples == 4000


@pytest.mark.slow
def test_two_runs_at_once_do_not_meet(nursery: Nursery, tmp_path):  # row 33
    other = Nursery()
    try:
        with ThreadPoolExecutor() as pool:
            runs = [pool.submit(one.run, "all_reduce", tmp_path / str(number), ranks=2, flags=[*SHORT, "--seed", "7"])
                    for number, one in enumerate((nursery, other))]
            assert [run.result().codes for run in runs] == [[0, 0], [0, 0]]
    finally:
        other.close()
    first, second = (read_results(Path(tmp_path / str(number) / "results_all_reduce.json")) for number in (0, 1))
    assert first.all_losses == second.all_losses
