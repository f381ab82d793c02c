"""The audit: planted faults that published comparisons had, checks of clocks and curves, and silence on good runs.

``test_analysis.py`` plants the faults that one changed key makes; here are those that take a history.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_results import EPOCHS, STEPS, TIMES, at_throughput, older, sample, trained_losses, write

import analyze_results
from gradsync.analysis import gradient_sizes
from gradsync.analysis.audit import CHECKS
from gradsync.analysis.certificate import certificates
from gradsync.analysis.change_point import change_point
from gradsync.analysis.comparison import Comparison, compare
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import Assumed, load
from gradsync.analysis.report import render_report, render_terminal

GB, MB = 1e9, 1e6


def compared(directory: Path, *runs: dict[str, Any], assumed: Assumed | None = None) -> Comparison:
    return compare(load(write(directory, *runs), assumed or Assumed()))


def findings(comparison: Comparison, check: str, subject: str = "") -> list[Finding]:
    return [finding for finding in comparison.findings
            if finding.check == check and subject in ("", finding.subject)]


def only(comparison: Comparison, check: str, subject: str = "") -> Finding:
    (found,) = findings(comparison, check, subject)
    return found


def three() -> dict[str, dict[str, Any]]:
    return {method: sample(method) for method in ("baseline_ddp", "all_reduce", "ps")}


def test_every_check_speaks_on_good_runs(tmp_path):
    comparison = compared(tmp_path, *(sample(method) for method in TIMES))
    only_sometimes = {"staleness", "server updates", "resumed", "links", "lower bound"}
    assert {finding.check for finding in comparison.findings} == set(CHECKS) - only_sometimes
    assert {finding.verdict for finding in comparison.findings} == {"pass"}


# Published faults, from files that hold only the older keys.


def server_counted() -> list[dict[str, Any]]:
    """4 ranks, 3 workers: 17% slower than DDP in truth, 11% faster as published."""
    ddp, ps = at_throughput(sample("baseline_ddp"), 1000.0), at_throughput(sample("ps"), 832.5)
    for epoch in ps["epochs"]:
        epoch["train_throughput"] *= 4 / 3
    ps["summary"]["avg_train_throughput"] *= 4 / 3
    return [older(ddp), older(ps)]


def test_server_counted_as_a_worker(tmp_path):
    comparison = compared(tmp_path, *server_counted())
    finding = only(comparison, "samples", "ps")
    assert finding.verdict == "invalid" and str(finding.cause) == "counted the server as a worker"
    assert "1.333 times" in str(finding.figures) and "corrected throughput 832.5 img/s" in str(finding.figures)
    correction = str(only(comparison, "samples", "comparison").figures)
    assert "11.0% faster than baseline_ddp" in correction and "16.8% slower (832.5 against 1,000 img/s)" in correction
    assert [run.name for run in comparison.ranking] == ["baseline_ddp"]


def test_server_counted_is_seen_without_the_number_of_workers(tmp_path):
    ddp, ps = server_counted()
    del ps["num_workers"]
    found = findings(compared(tmp_path, ddp, ps), "samples", "ps")
    assert [f.verdict for f in found] == ["not known", "invalid"]  # by its own figures, by those of the other run
    assert str(found[1].cause) == "counted the server as a worker"
    assert "corrected throughput 832.5 img/s" in str(found[1].figures)


def test_share_of_the_server_is_not_trained_on(tmp_path):
    runs = three()
    for epoch in runs["ps"]["epochs"]:  # truthful about three quarters of the data
        epoch.update(samples=0.75 * epoch["samples"], train_throughput=0.75 * epoch["train_throughput"])
    runs["ps"]["samples_per_epoch"] = round(0.75 * runs["ps"]["samples_per_epoch"])
    for epoch in runs["ps"]["epochs"]:
        epoch["samples"] = round(epoch["samples"])
    finding = only(compared(tmp_path, *runs.values()), "same samples")
    assert finding.verdict == "suspect" and "as many shares as there are ranks" in str(finding.cause)


@pytest.mark.parametrize("older_keys", [True, False])
def test_weights_not_shared(older_keys, tmp_path):
    ddp, own = sample("baseline_ddp"), sample("all_reduce")
    ddp["all_losses"], own["all_losses"] = trained_losses(), trained_losses("weights not shared")
    own["initial_fingerprints"] = ["5f1e", "b", "c", "d"]
    comparison = compared(tmp_path, *(map(older, (ddp, own)) if older_keys else (ddp, own)))
    finding = only(comparison, "trajectory")
    assert finding.verdict == "suspect" and comparison.ranking == []
    assert "(1) the replicas never got the same initial weights" in str(finding.cause)
    if older_keys:
        assert "both runs begin near ln 10 = 2.30" in str(finding.cause)
        assert "ln 10 = 2.303" in str(only(comparison, "start").figures)
    else:
        assert only(comparison, "replicas", "all_reduce").verdict == "invalid"
        assert "fingerprints" in str(finding.cause)


def resnet50_push(milliseconds: float) -> list[dict[str, Any]]:
    ddp, ps = at_throughput(sample("baseline_ddp"), 900.0), at_throughput(sample("ps"), 400.0)
    for epoch in ps["epochs"]:
        epoch.update(avg_comm_time_push=milliseconds / 1e3, avg_comm_time_pull=0.030)
    return [older(ddp), older(ps)]


def test_push_that_was_timed_too_early(tmp_path):
    runs = resnet50_push(5.6)
    comparison = compared(tmp_path, *runs, assumed=Assumed(gradient_bytes=102 * MB))
    finding = only(comparison, "bandwidth", "ps")
    assert finding.verdict == "suspect" and "before the device had moved the data" in str(finding.cause)
    for text in ("push: 3 x 102 MB", "5.60 ms = 54.6 GB/s", "18.2 GB/s for each", "31.5 GB/s (PCIe 4.0 x16"):
        assert text in str(finding.figures)
    assert "COMPARABLE WITH RESERVATIONS" in render_terminal(comparison, [])
    outside = [found for found in findings(comparison, "phases", "ps") if found.verdict == "suspect"]
    assert "times a whole step of baseline_ddp" in str(outside[0].figures)


def test_bandwidth_by_the_name_of_the_model_and_by_a_stated_link(tmp_path):
    runs = [{**run, "model_name": "ResNet-50"} for run in resnet50_push(5.6)]
    finding = only(compared(tmp_path, *runs), "bandwidth", "ps")
    assert finding.verdict == "suspect" and "102 MB (float32 gradients of ResNet-50)" in str(finding.figures)
    fast = compared(tmp_path, *runs, assumed=Assumed(link_bytes_per_second=300 * GB))
    assert only(fast, "bandwidth", "ps").verdict == "pass"
    slow = compared(tmp_path, *runs, assumed=Assumed(link_bytes_per_second=12 * GB))
    assert only(slow, "bandwidth", "ps").verdict == "invalid"  # 18 GB/s of one worker alone is too much


@pytest.mark.parametrize(("push", "verdicts"), [(60.0, ["pass"]), (None, ["not known"])])
def test_bandwidth_is_silent_on_possible_pushes(push, verdicts, tmp_path):
    runs = resnet50_push(push or 5.6)
    assumed = Assumed(gradient_bytes=102 * MB) if push else Assumed()
    assert [f.verdict for f in findings(compared(tmp_path, *runs, assumed=assumed), "bandwidth")] == verdicts


def test_an_all_reduce_that_was_timed_too_early(tmp_path):
    runs = three()
    runs["all_reduce"]["communication"]["replica_bytes_per_step"] = 5e9
    assert only(compared(tmp_path, *runs.values()), "bandwidth", "all_reduce").verdict == "invalid"


def test_known_gradient_sizes():
    assert gradient_sizes.known_gradient_bytes("resnet50") == 102_228_128
    assert gradient_sizes.known_gradient_bytes("VGG-16") == 553_430_176
    assert gradient_sizes.known_gradient_bytes("my_net") is None


@pytest.mark.slow
def test_gradient_sizes_are_those_of_torchvision():
    import torch
    import torchvision

    with torch.device("meta"):
        counts = {name: sum(parameter.numel() for parameter in torchvision.models.get_model(name).parameters())
                  for name in gradient_sizes.PARAMETERS}
    assert counts == gradient_sizes.PARAMETERS


# Clocks.


def with_step_times(times: list[float] | np.ndarray) -> dict[str, Any]:
    run = sample("baseline_ddp", epochs=1, steps=len(times))
    run["epochs"][0]["step_times"] = [float(time) for time in times]
    return run


@pytest.mark.parametrize(
    ("times", "verdict", "text"),
    [
        ([0.045] * 5 + [0.015] * 45, "suspect", "steps 1 to 5 take 45.0 ms, those after it 15.0 ms"),
        ([0.015] * 30 + [0.030] * 20, "note", "steps 1 to 30 take 15.0 ms, those after it 30.0 ms"),
        ([0.015] * 50, "pass", "one level"),
        ([0.015] * 10, "not known", "too few"),
    ],
)
def test_warm_up_inside_the_measured_part(times, verdict, text, tmp_path):
    noisy = np.array(times) * (1 + 0.05 * np.random.default_rng(3).standard_normal(len(times)))
    finding = only(compared(tmp_path, with_step_times(np.where(np.array(times) == noisy, noisy, times))), "warm-up")
    assert finding.verdict == verdict and text in str(finding.figures)
    change = change_point(noisy)
    assert (change.place if change else 0) == {"suspect": 5, "note": 30}.get(verdict, 0)


def test_warm_up_is_found_beside_a_drift_from_epoch_to_epoch():
    drift = np.repeat([0.0851, 0.0849, 0.0860, 0.0842, 0.0855], 30)
    change = change_point(np.concatenate([[0.25] * 8, drift[8:]]))
    assert change is not None and change.place == 8
    assert change_point(drift) is None


def correlated(random: np.random.Generator, count: int, correlation: float) -> np.ndarray:
    values = random.standard_normal(count)
    for step in range(1, count):
        values[step] = correlation * values[step - 1] + (1 - correlation**2) ** 0.5 * values[step]
    return values


NOISE = {
    "normal": lambda random, count: 1 + 0.05 * random.standard_normal(count),
    "log-normal": lambda random, count: np.exp(0.5 * random.standard_normal(count)),
    "heavy-tailed": lambda random, count: 1 + 0.3 * random.pareto(1.5, count),
    "two levels": lambda random, count: np.where(random.random(count) < 0.4, 1.5, 1.0),
    "spikes": lambda random, count: np.where(np.arange(count) % 20 < 1, 3.0, 1.0),
    "correlated": lambda random, count: np.exp(0.2 * correlated(random, count, 0.5)),
    "strongly correlated": lambda random, count: np.exp(0.2 * correlated(random, count, 0.8)),
}


@pytest.mark.parametrize("name", NOISE)
def test_stationary_noise_raises_no_false_alarm(name):
    random = np.random.default_rng(7)
    alarms = [change_point(NOISE[name](random, count)) is not None for count in (50, 200) for _ in range(200)]
    assert np.mean(alarms) < 0.02


@pytest.mark.parametrize("name", ["normal", "spikes", "correlated", "heavy-tailed"])
def test_a_slow_beginning_is_found_in_noise(name):
    random = np.random.default_rng(8)
    found = []
    for _ in range(50):
        times = NOISE[name](random, 50)
        times[:5] *= 3
        change = change_point(times)
        found.append(change is not None and change.place in (4, 5, 6))
    assert np.mean(found) > 0.6


def test_training_longer_than_the_run(tmp_path):
    runs = three()
    runs["ps"]["end_time"] = "2031-05-04 10:00:09"
    finding = only(compared(tmp_path, *runs.values()), "clocks", "ps")
    assert finding.verdict == "invalid" and "which are 9.000 s apart" in str(finding.figures)


def slow_replica(run: dict[str, Any], replica: int) -> None:
    for epoch in run["epochs"]:
        phases = [dict(phases) for phases in epoch["phases_per_replica"]]
        phases[replica]["forward_backward"] *= 2.5
        epoch["phases_per_replica"] = phases


def test_stragglers_are_named_by_rank(tmp_path):
    runs = three()
    slow_replica(runs["all_reduce"], 1)
    slow_replica(runs["ps"], 2)
    slow_replica(runs["baseline_ddp"], 0)  # in DDP the others wait inside the backward pass: phases do not tell
    runs["baseline_ddp"]["probe"]["local_step_per_replica"][3] *= 2.2
    comparison = compared(tmp_path, *runs.values())
    for name, rank in (("baseline_ddp", 3), ("all_reduce", 1), ("ps", 3)):
        finding = only(comparison, "stragglers", name)
        assert finding.verdict == "suspect" and f"rank {rank} works" in str(finding.figures)


def test_more_threads_than_cores(tmp_path):
    runs = three()
    for run in runs.values():
        run["environment"]["cpu_cores"] = 2
    comparison = compared(tmp_path, *runs.values())
    assert {f.verdict for f in findings(comparison, "threads")} == {"note"} and comparison.ranking
    assert "4 ranks x 2 threads on 2 cores" in render_terminal(comparison, [])


def test_wait_outside_the_clock_shows_in_the_step_time(tmp_path):
    runs = [older(run) for run in three().values()]
    for epoch in runs[1]["epochs"]:
        epoch["avg_batch_time"] *= 0.7
    found = only(compared(tmp_path, *runs), "step time", "all_reduce")
    assert found.verdict == "suspect" and "the wait for input" in str(found.cause)


# What a run computes: evaluation, values, staleness, start.


@pytest.mark.parametrize(("evaluated", "cause"), [(604, "pads"), (150, "only some replicas")])
def test_number_of_samples_evaluated(evaluated, cause, tmp_path):
    runs = three()
    for epoch in runs["ps"]["epochs"]:
        epoch["val_samples"] = evaluated
    comparison = compared(tmp_path, *runs.values())
    assert cause in str(only(comparison, "evaluation", "ps").cause)
    assert "evaluated samples is 600" in str(only(comparison, "evaluation", "comparison").figures)


def test_other_validation_transforms(tmp_path):
    runs = three()
    for run in runs.values():
        run["dataset"]["val_transforms"] = "normalise"
    runs["ps"]["dataset"]["val_transforms"] = "resize, normalise"
    assert only(compared(tmp_path, *runs.values()), "evaluation", "comparison").verdict == "invalid"


@pytest.mark.parametrize(("accuracy", "verdict"), [(140.0, "invalid"), (-1.0, "invalid"), (0.9, "note")])
def test_figures_outside_their_range(accuracy, verdict, tmp_path):
    runs = three()
    for epoch in runs["ps"]["epochs"]:
        epoch["val_accuracy"] = accuracy
    runs["ps"]["summary"] = None
    assert only(compared(tmp_path, *runs.values()), "values", "ps").verdict == verdict


@pytest.mark.parametrize(("staleness", "verdict", "ranked"), [
    (None, "invalid", False), ({}, "invalid", False), ({"0": 50, "2": 50}, "pass", True)])
def test_asynchronous_runs_are_ranked_only_with_their_staleness(staleness, verdict, ranked, tmp_path):
    runs = three()
    runs["ps"].update(synchronous=False, staleness=staleness)
    runs["ps"]["all_losses"] = (np.array(runs["ps"]["all_losses"]) + 0.3).tolist()
    comparison = compared(tmp_path, *runs.values())
    finding = only(comparison, "staleness")
    assert finding.verdict == verdict and ("ps" in [run.name for run in comparison.ranking]) == ranked
    if ranked:
        assert "1.00 updates old on average, 2 at most" in str(finding.figures)
    assert only(comparison, "trajectory", "ps").verdict == "note"


def test_first_losses_tell_of_another_start(tmp_path):
    ddp, own = older(sample("baseline_ddp")), older(sample("all_reduce"))
    own["all_losses"] = [0.5 * loss for loss in own["all_losses"]]
    finding = only(compared(tmp_path, ddp, own), "start")
    assert finding.verdict == "suspect" and "trained before" in str(finding.cause)


# Trajectories that were really trained.


CAUSES = {
    "summed": "the gradients are summed",
    "divided twice": "the gradients are divided twice",
    "another order": "another order of the data",
}


@pytest.mark.parametrize("fault", CAUSES)
def test_causes_are_ranked_by_the_figures(fault, tmp_path):
    ddp, own = sample("baseline_ddp"), sample("all_reduce")
    ddp["all_losses"], own["all_losses"] = trained_losses(), trained_losses(fault)
    finding = only(compared(tmp_path, ddp, own), "trajectory")
    assert finding.verdict == "suspect" and f"(1) {CAUSES[fault]}" in str(finding.cause)


def test_another_schedule_is_suspected_where_curves_part_late(tmp_path):
    ddp, own = older(sample("baseline_ddp")), older(sample("all_reduce"))
    ddp["all_losses"], own["all_losses"] = trained_losses(rate=0.05), trained_losses("schedule", rate=0.05)
    finding = only(compared(tmp_path, ddp, own), "trajectory")
    assert finding.verdict == "suspect" and "(1) another learning-rate schedule" in str(finding.cause)
    assert "only at step 32" in str(finding.cause) and "an epoch begins" in str(finding.cause)


def test_an_unweighted_average_shows_after_the_short_batch(tmp_path):
    ddp, own = sample("baseline_ddp"), sample("all_reduce")
    for run in (ddp, own):
        run["samples_per_epoch"] -= 1
        for epoch in run["epochs"]:
            epoch.update(samples=epoch["samples"] - 1)
    losses = np.array(ddp["all_losses"])
    own["all_losses"] = (losses + 0.4 * (np.arange(len(losses)) >= 30)).tolist()
    finding = only(compared(tmp_path, ddp, own), "trajectory")
    assert "(1) shares of unequal size are averaged as if they were equal" in str(finding.cause)


def test_older_files_with_other_batches_are_not_suspected(tmp_path):
    ddp, own = older(sample("baseline_ddp")), older(sample("all_reduce"))
    ddp["all_losses"], own["all_losses"] = trained_losses(), trained_losses("another order")
    comparison = compared(tmp_path, ddp, own)
    assert only(comparison, "trajectory").verdict == "note" and comparison.ranking


def test_a_deviation_within_the_noise_of_the_seed_is_noted(tmp_path):
    ddp, own, repeat = sample("baseline_ddp"), sample("all_reduce"), sample("baseline_ddp")
    ddp["all_losses"], own["all_losses"] = trained_losses(), trained_losses("another start")
    repeat["recipe"]["seed"], repeat["all_losses"] = 43, trained_losses(seed=43)
    write(tmp_path, ddp, own)
    (tmp_path / "results_another_seed.json").write_text(json.dumps(repeat))
    comparison = compare(load(tmp_path))
    finding = only(comparison, "trajectory")
    assert finding.verdict == "note" and "another seed" in str(finding.cause)
    assert comparison.withheld == []


@pytest.mark.parametrize(("stops", "verdict"), [
    ([], None), ([(1, 0)], "note"), ([(2, 29), (EPOCHS, 3)], "note"), ([(EPOCHS + 1, 0)], "note"),
    ([(2, STEPS)], "invalid"), ([(EPOCHS + 1, 1)], "invalid"), ([(EPOCHS + 2, 0)], "invalid"), ([(0, 0)], "invalid"),
])
def test_a_resumed_run_is_noted_and_ranked_unless_it_cannot_be(stops, verdict, tmp_path):
    runs = three()
    runs["ps"]["resumed_at"] = [{"epoch": epoch, "step": step} for epoch, step in stops]
    comparison = compared(tmp_path, *runs.values())
    found = [finding for finding in comparison.findings if finding.check == "resumed"]
    assert [finding.verdict for finding in found] == ([verdict] if verdict else [])
    assert ("ps" in {run.name for run in comparison.ranking}) == (verdict != "invalid")


def test_a_run_resumed_in_another_environment_is_suspect(tmp_path):
    runs = three()
    runs["ps"]["resumed_at"] = [{"epoch": 2, "step": 1, "changed": ["torch: 2.11.0 before, 2.15.0 now"]}]
    finding = only(compared(tmp_path, *runs.values()), "resumed")
    assert finding.verdict == "suspect" and "2.15.0 now" in str(finding.figures)


# The certificate.


def certificate(directory: Path, **changes: Any) -> dict[str, Any]:
    runs = {**three(), "single": sample("single")}
    runs["ps"].update(changes)
    found = {each.run.name: each for each in certificates(compared(directory, *runs.values()).runs)}
    return {"all": found, "ps": found["ps"]}


def test_certificate_compares_with_the_single_process(tmp_path):
    found = certificate(tmp_path)
    assert {name: each.reference.name for name, each in found["all"].items()} == dict.fromkeys(
        ("baseline_ddp", "all_reduce", "ps"), "single")
    assert {str(each.verdict) for each in found["all"].values()} == {"identical"}


def test_certificate_measures_parameters(tmp_path):
    run = sample("ps")
    last = run["epochs"][-1]
    last["fingerprints"], last["parameter_sketch"] = ["other"] * 3, [5.0 * 1.0005] * 64
    run["all_losses"][7] += 1e-5
    found = certificate(tmp_path, **run)["ps"]
    assert found.identical is False and found.distance == pytest.approx(5e-4)
    assert (str(found.parameters), str(found.verdict)) == ("5e-04 of the way", "equivalent")
    assert str(found.largest_loss_difference) == "0.000010 at step 8"
    for away, verdict in ((5.2, "equivalent up to amplified rounding"), (9.0, "same losses, other parameters")):
        last["parameter_sketch"] = [away] * 64
        assert str(certificate(tmp_path, **run)["ps"].verdict) == verdict


def test_certificate_without_a_fitting_single_process_takes_the_baseline(tmp_path):
    runs = {**three(), "single": sample("single")}
    runs["single"].update(global_batch_size=24)
    found = certificates(compared(tmp_path, *runs.values()).runs)
    assert {each.run.name: each.reference.name for each in found} == {"all_reduce": "baseline_ddp",
                                                                      "ps": "baseline_ddp"}
    report = render_report(compared(tmp_path, *runs.values()))
    assert "Largest loss difference" in report and "EQUIVALENCE" in report


@pytest.mark.parametrize("arguments", [["--gradient-mb", "-1"], ["--gradient-mb", "x"], ["--link-gbs", "inf"],
                                       ["--lang", "fr"]])
def test_bad_flags_are_refused(arguments, tmp_path, capsys):
    write(tmp_path, sample("ps"))
    assert analyze_results.main(["--results-dir", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and arguments[0] in error
