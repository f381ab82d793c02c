"""The analysis: every check catches its planted fault, is silent on good runs, and bad input changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_results import GLOBAL_BATCH, TIMES, older, sample, write

import analyze_results
from gradsync.analysis import curves, figures, words
from gradsync.analysis.breakdown import FROM_PROBE, INSEPARABLE, OTHER, breakdown
from gradsync.analysis.comparison import Comparison, compare, groups_without_difference
from gradsync.analysis.load import load
from gradsync.analysis.output import CHARTS
from gradsync.analysis.report import render_report, render_terminal
from gradsync.results import read_results

ROOT = Path(__file__).resolve().parents[1]
THREE = ("baseline_ddp", "all_reduce", "ps")
Runs = dict[str, dict[str, Any]]


def good(*methods: str) -> Runs:
    return {method: sample(method) for method in methods or THREE}


def compared(directory: Path, runs: Runs) -> Comparison:
    return compare(load(write(directory, *runs.values())))


def outputs(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Checks: silence on good runs, and a planted fault for each.


def test_good_runs_raise_no_finding(tmp_path):
    comparison = compared(tmp_path, good(*TIMES))
    assert [finding for finding in comparison.findings if finding.verdict != "pass"] == []
    assert [run.name for run in comparison.ranking] == ["baseline_ddp", "all_reduce", "ps", "single"]
    assert {finding.check for finding in comparison.findings} >= {
        "finished", "samples", "summary", "phases", "step time", "replicas", "input-bound",
        "recipe", "environment", "updates", "start", "trajectory"}


def epochs_of(runs: Runs, method: str, change: Callable[[dict[str, Any]], None]) -> None:
    for epoch in runs[method]["epochs"]:
        change(epoch)


def scale_throughput(method: str, factor: float) -> Callable[[Runs], None]:
    return lambda runs: epochs_of(runs, method, lambda epoch: epoch.update(
        train_throughput=epoch["train_throughput"] * factor))


def scale_phases(method: str, factor: float) -> Callable[[Runs], None]:
    return lambda runs: epochs_of(runs, method, lambda epoch: epoch.update(
        phases={name: value * factor for name, value in epoch["phases"].items()}))


def wait_for_data(runs: Runs) -> None:
    def change(epoch: dict[str, Any]) -> None:
        moved = 0.2 * epoch["train_time"]
        epoch["phases"]["data_wait"] += moved
        epoch["phases"]["forward_backward"] -= moved

    epochs_of(runs, "all_reduce", change)


def update_per_push(runs: Runs) -> None:
    server = {"wait": 0.05, "send_parameters": 0.01, "receive_gradients": 0.01, "update": 0.001,
              "bytes_sent": 1, "bytes_received": 1, "messages": 1}
    epochs_of(runs, "ps", lambda epoch: epoch.update(server={**server, "updates": 3 * epoch["steps"]}))


def halve_updates(runs: Runs) -> None:
    runs["ps"].update(global_batch_size=2 * GLOBAL_BATCH, all_losses=runs["ps"]["all_losses"][::2])


def never_learns(runs: Runs) -> None:
    runs["ps"]["all_losses"] = [2.3] * len(runs["ps"]["all_losses"])


def set_key(method: str, *path: Any, to: Any) -> Callable[[Runs], None]:
    def plant(runs: Runs) -> None:
        place = runs[method]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to

    return plant


# fault, check, verdict, subject, words of the finding, whether the whole ranking is withheld
FAULTS = {
    "server counted": (
        scale_throughput("ps", 4 / 3), "samples", "invalid", "ps", "counted the server as a worker", False),
    "total multiplied": (
        scale_throughput("all_reduce", 4), "samples", "invalid", "all_reduce", "already a total", False),
    "one replica counted": (
        scale_throughput("baseline_ddp", 1 / 4), "samples", "invalid", "baseline_ddp", "one replica", False),
    "unexplained rate": (
        scale_throughput("ps", 1.1), "samples", "invalid", "ps", "1.100 times", False),
    "summary": (
        set_key("ps", "summary", "avg_train_throughput", to=9e9), "summary", "suspect", "ps", "9,000,000,000", False),
    "timer stopped early": (
        scale_phases("all_reduce", 0.5), "phases", "suspect", "all_reduce", "before the device", False),
    "time counted twice": (
        scale_phases("all_reduce", 1.5), "phases", "suspect", "all_reduce", "twice", False),
    "step time": (
        set_key("ps", "epochs", 2, "avg_batch_time", to=0.001), "step time", "suspect", "ps", "epoch 3", False),
    "replicas start apart": (
        set_key("ps", "initial_fingerprints", to=["5f1e", "5f1e", "b"]), "replicas", "invalid", "ps",
        "before step 1", False),
    "replicas diverge": (
        set_key("all_reduce", "epochs", 1, "fingerprints", to=["a", "b", "a", "a"]), "replicas", "invalid",
        "all_reduce", "after epoch 2", False),
    "update per push": (
        update_per_push, "server updates", "invalid", "ps", "90 updates in 30 steps", False),
    "no epoch": (
        set_key("ps", "epochs", to=[]), "finished", "invalid", "ps", "no epoch", False),
    "input-bound": (
        wait_for_data, "input-bound", "suspect", "all_reduce", "21.0%", True),
    "recipe": (
        set_key("ps", "recipe", "lr", to=0.4), "recipe", "invalid", "comparison",
        "lr is 0.05 in results_baseline_ddp.json and results_all_reduce.json; 0.4 in results_ps.json", True),
    "schedule": (
        set_key("ps", "epochs", 4, "learning_rate", to=0.5), "recipe", "invalid", "comparison", "learning rate", True),
    "data set": (
        set_key("ps", "dataset", "name", to="cifar10"), "recipe", "invalid", "comparison", "dataset.name", True),
    "hardware": (
        set_key("ps", "environment", "threads_per_rank", to=8), "environment", "invalid", "comparison", "threads",
        True),
    "world size": (
        set_key("all_reduce", "world_size", to=8), "environment", "invalid", "comparison", "world_size", True),
    "updates": (
        halve_updates, "updates", "invalid", "comparison", "75 in results_ps.json", True),
    "start": (
        set_key("ps", "initial_fingerprints", to=["other"] * 3), "start", "invalid", "comparison", "other", True),
    "trajectory": (
        never_learns, "trajectory", "suspect", "ps", "largest loss difference from baseline_ddp", True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_caught(name, tmp_path):
    plant, check, verdict, subject, text, withheld = FAULTS[name]
    runs = good()
    plant(runs)
    comparison = compared(tmp_path, runs)
    caught = [finding for finding in comparison.findings if (finding.check, finding.verdict) == (check, verdict)]
    assert {finding.subject for finding in caught} == {subject}
    assert any(text in f"{finding.figures} {finding.cause}" for finding in caught)
    assert bool(comparison.withheld) == withheld
    if withheld:
        assert comparison.ranking == [] and all(comparison.speedup(run) is None for run in comparison.runs)
    elif verdict == "invalid":
        assert subject not in [run.name for run in comparison.ranking]
    assert check in render_report(comparison) and check in render_terminal(comparison, [])


def test_corrected_throughput_is_given(tmp_path):
    runs = good()
    truth = runs["ps"]["epochs"][0]["train_throughput"]
    runs["ps"]["epochs"] = runs["ps"]["epochs"][:1]
    scale_throughput("ps", 4 / 3)(runs)
    finding = next(f for f in compared(tmp_path, runs).findings if f.check == "samples" and f.subject == "ps")
    assert f"corrected throughput {words.number(truth)} img/s" in str(finding.figures)


def test_inferred_samples_allow_for_a_short_last_batch(tmp_path):
    runs = {method: older(sample(method, steps=3)) for method in THREE}  # 3 steps: a short batch is 14% of the epoch
    comparison = compared(tmp_path, runs)
    assert {f.verdict for f in comparison.findings if f.check == "samples"} == {"pass"}


def test_rounding_that_training_amplifies_is_only_noted(tmp_path):
    runs = good()
    steps = np.arange(len(runs["all_reduce"]["all_losses"]))
    drift = 0.08 * np.sin(steps) * (steps > 60)
    runs["all_reduce"]["all_losses"] = (np.array(runs["all_reduce"]["all_losses"]) + drift).tolist()
    comparison = compared(tmp_path, runs)
    assert [f.verdict for f in comparison.findings if f.check == "trajectory"] == ["note", "pass"]
    assert comparison.ranking


def test_single_device_may_differ_in_what_concerns_the_group(tmp_path):
    assert compared(tmp_path, good("baseline_ddp", "single")).withheld == []


# Spread, speed-up and breakdown.


def with_throughputs(method: str, *values: float) -> dict[str, Any]:
    run = sample(method, epochs=len(values))
    for epoch, value in zip(run["epochs"], values, strict=True):
        time = epoch["samples"] / value
        factor = time / epoch["train_time"]
        epoch.update(train_throughput=value, train_time=time, avg_batch_time=time / epoch["steps"],
                     phases={name: seconds * factor for name, seconds in epoch["phases"].items()})
    run["summary"] = None
    return run


@pytest.mark.parametrize(
    ("values", "shown", "groups"),
    [
        ((1000.0, 1010.0, 990.0), False, 1),  # 2% apart, range 2%
        ((1100.0, 1110.0, 1090.0), True, 2),  # 10% apart
        ((1100.0,), None, 1),  # one epoch has no range
    ],
)
def test_difference_within_the_spread_is_not_shown(values, shown, groups, tmp_path):
    comparison = compared(tmp_path, {
        "baseline_ddp": with_throughputs("baseline_ddp", *([985.0, 1005.0, 985.0][: len(values)])),
        "all_reduce": with_throughputs("all_reduce", *values),
    })
    assert comparison.speedup(comparison.run("all_reduce")).shown is shown
    assert len(groups_without_difference(comparison.ranking)) == groups
    text = " ".join(render_report(comparison).split())
    assert ("no difference shown (" in text) == (shown is False)
    assert ("one epoch has no range" in text) == (shown is None)


def test_one_unsteady_run_does_not_level_the_others(tmp_path):
    comparison = compared(tmp_path, {
        "baseline_ddp": with_throughputs("baseline_ddp", 1000.0, 1010.0, 990.0),
        "ps": with_throughputs("ps", 500.0, 505.0, 495.0),
        "single": with_throughputs("single", 1100.0, 1120.0, 300.0),
    })
    groups = [[run.name for run in group] for group in groups_without_difference(comparison.ranking)]
    assert groups == [["single", "baseline_ddp"], ["ps"]]


def test_speedup_and_scaling_efficiency_are_ratios_of_medians(tmp_path):
    comparison = compared(tmp_path, {
        "baseline_ddp": with_throughputs("baseline_ddp", 1000.0, 1001.0, 5000.0),
        "ps": with_throughputs("ps", 2002.0, 2002.0, 2002.0),
        "single": with_throughputs("single", 250.25, 250.25, 250.25),
    })
    assert comparison.speedup(comparison.run("ps")).ratio == pytest.approx(2.0)
    assert comparison.scaling_efficiency(comparison.run("baseline_ddp")) == pytest.approx(1.0)
    assert comparison.scaling_efficiency(comparison.run("ps")) == pytest.approx(2002 / (3 * 250.25))


def test_breakdown_adds_up_and_splits_ddp_with_the_probe(tmp_path):
    runs = good()
    comparison = compared(tmp_path, runs)
    for run in comparison.runs:
        step = np.median([epoch["train_time"] / epoch["steps"] for epoch in runs[run.name]["epochs"]])
        assert breakdown(run).total == pytest.approx(step)
        assert breakdown(run).segments[OTHER] > 0
    exposed = runs["baseline_ddp"]["probe"]["exposed_communication"]
    assert breakdown(comparison.run("baseline_ddp")).segments[FROM_PROBE] == pytest.approx(exposed)
    assert {"pull", "push"} < set(breakdown(comparison.run("ps")).segments)


def test_what_was_not_measured_is_never_zero(tmp_path):
    runs = good()
    runs["baseline_ddp"]["probe"] = None
    epochs_of(runs, "baseline_ddp", lambda epoch: epoch.update(avg_comm_time=0.0))
    run = compared(tmp_path, runs).run("baseline_ddp")
    assert INSEPARABLE in breakdown(run).segments and "compute" not in breakdown(run).segments
    assert figures.communication_phases(run) == {} and figures.exposed_communication(run) is None


# Any subset, older keys, failures, synthetic data.


SUBSETS = [chosen for size in range(1, 5) for chosen in itertools.combinations(TIMES, size)]


@pytest.mark.parametrize("methods", SUBSETS, ids="+".join)
def test_any_subset_is_analysed_and_the_rest_named(methods, tmp_path):
    comparison = compared(tmp_path, good(*methods))
    text = render_terminal(comparison, []) + render_report(comparison)
    for method in TIMES:
        assert (f"results_{method}.json: " in text) == (method not in methods)
    assert ("no speed-up;" in text) == ("baseline_ddp" not in methods)
    assert max(map(len, render_terminal(comparison, []).splitlines())) <= 112


def test_older_keys_are_enough(tmp_path):
    write(tmp_path, *(older(sample(method), losses_in_epochs=method == "ps") for method in THREE))
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    comparison = compare(load(tmp_path))
    assert [run.name for run in comparison.ranking] == list(THREE)
    assert {f.verdict for f in comparison.findings} == {"pass", "not known"}
    assert all(breakdown(run) is None for run in comparison.runs)
    assert "COMPARABLE AS FAR AS KNOWN" in (tmp_path / "performance_report.txt").read_text()


def test_failed_run_is_listed_and_takes_no_part(tmp_path):
    failed = {**sample("ps"), "status": "failed", "error": "rank 2 was killed\nby SIGKILL \x1b[31m"}
    comparison = compared(tmp_path, {**good("baseline_ddp", "all_reduce"), "ps": failed})
    assert [run.name for run in comparison.runs] == ["baseline_ddp", "all_reduce"]
    text = " ".join(render_report(comparison).split())
    assert r"results_ps.failed.json: rank 2 was killed\nby SIGKILL \x1b[31m" in text
    row = next(line for line in render_terminal(comparison, []).splitlines() if line.startswith("ps"))
    assert row.endswith("failed")


def test_failed_rerun_leaves_the_earlier_run_valid(tmp_path):
    write(tmp_path, {**sample("ps"), "status": "failed", "error": "disk full"})
    comparison = compared(tmp_path, good())
    assert "ps" in [run.name for run in comparison.ranking]
    assert any("of another run, results_ps.json" in str(f.figures) for f in comparison.findings)


def test_only_failed_runs(tmp_path, capsys):
    write(tmp_path, {"method": "ps", "status": "failed", "error": "lost"})
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 0
    assert "no run is complete" in capsys.readouterr().out


def test_synthetic_accuracies_are_not_shown(tmp_path):
    runs = good()
    for run in runs.values():
        run["dataset"]["accuracy_is_meaningful"] = False
    comparison = compared(tmp_path, runs)
    text = render_terminal(comparison, []) + render_report(comparison)
    assert "n/a (synthetic)" in text and "90.85" not in text


def test_unknown_methods_take_part(tmp_path):
    runs = {**good(), "mine": {**sample("compressed", like="all_reduce"), "title": "Compressed, 8 bit"}}
    comparison = compared(tmp_path, runs)
    assert "compressed" in [run.name for run in comparison.ranking]


def test_copies_do_not_replace_the_known_file(tmp_path):
    write(tmp_path, *good().values())
    (tmp_path / "results_a_copy.json").write_text((tmp_path / "results_baseline_ddp.json").read_text())
    names = {run.name: run.path.name for run in load(tmp_path).runs}
    assert names["baseline_ddp"] == "results_baseline_ddp.json"
    assert names["baseline_ddp (results_a_copy.json)"] == "results_a_copy.json"


HOSTILE = ("\x1b[2Jps\nerror: fake", "_hidden $\\frac{1$", "{{ 7 * 7 }}", "\u202eevil", "\u540d\u524d", "x" * 300)


def test_user_text_is_printed_safely(tmp_path, capsys):
    write(tmp_path, sample("baseline_ddp"))
    for index, method in enumerate(HOSTILE):
        (tmp_path / f"results_{index}.json").write_text(json.dumps(sample(method, like="ps")))
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    text = captured.out + (tmp_path / "performance_report.txt").read_text(encoding="utf-8")
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\nerror: fake" not in text and captured.err == ""


# The command: what it writes, and bad input that must change nothing.


def test_writes_the_table_the_report_and_every_chart(tmp_path, capsys):
    write(tmp_path / "my results", *good(*TIMES).values())
    out = tmp_path / "new" / "out put"
    assert analyze_results.main(["--results-dir", str(tmp_path / "my results"), "--output-dir", str(out)]) == 0
    files = outputs(out)
    assert set(files) == {"performance_report.txt", "report.html"} | {f"plots/{name}.png" for name in CHARTS}
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith(".png"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].strip() == str(out / "performance_report.txt")
    row = next(line for line in printed if line.startswith("ps "))
    assert "0.64" in row and "pass" in row


GOOD_TEXT = json.dumps(sample("ps"))
BAD_FILES = {
    "empty": ("", "line 1"),
    "truncated": (json.dumps(sample("ps"), indent=1)[:4000], "line "),
    "not an object": ("[1, 2]", "list"),
    "not UTF-8": (b"\xff\xfe{}", "not JSON"),
    "NaN": (GOOD_TEXT.replace('"lr": 0.05', '"lr": NaN'), "recipe.lr"),
    "Infinity": (GOOD_TEXT.replace('"all_losses": [', '"all_losses": [-Infinity, '), "all_losses.0"),
    "1e999": (GOOD_TEXT.replace('"lr": 0.05', '"lr": 1e999'), "recipe.lr"),
    "wrong type": (GOOD_TEXT.replace('"world_size": 4', '"world_size": "four"'), "world_size"),
    "negative time": (json.dumps({"method": "ps", "epochs": [{"epoch": 1, "train_time": -1}]}), "epochs.0.train_time"),
    "no method": ('{"epochs": []}', "method"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_line_and_changes_nothing(name, tmp_path, capsys):
    content, place = BAD_FILES[name]
    out = tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "performance_report.txt").write_text("earlier")
    (out / "plots" / "loss_curves.png").write_bytes(b"earlier")
    before = outputs(out)
    write(tmp_path, sample("baseline_ddp"))
    (tmp_path / "results_ps.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "results_ps.json" in captured.err and place in captured.err
    assert outputs(out) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--results-dir", "{tmp}/nowhere"], "nowhere"),
        (["--results-dir", "{tmp}/empty"], "run_all_experiments.sh"),
        (["--results-dir", "{tmp}/runs", "--output-dir", "{tmp}/a file"], "a file"),
        (["--results-dir", "{tmp}/runs", "--output-dir", "{tmp}/taken"], "performance_report.txt"),
        (["--result-dir", "x"], "--result-dir"),
    ],
)
def test_unusable_directory_or_flag_is_named(arguments, text, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("")
    (tmp_path / "taken" / "performance_report.txt").mkdir(parents=True)
    write(tmp_path / "runs", sample("ps"))
    assert analyze_results.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and text in error


def test_output_link_is_replaced_not_followed(tmp_path):
    write(tmp_path, sample("ps"))
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "performance_report.txt").symlink_to(tmp_path / "precious")
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "performance_report.txt").is_symlink()


def test_needs_neither_torch_nor_display_nor_home(tmp_path):
    write(tmp_path, *good().values())
    code = ("import sys, analyze_results; code = analyze_results.main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules; sys.exit(code)")
    environment = {"PATH": os.environ["PATH"], "HOME": os.devnull, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, "--results-dir", ".", "--output-dir", "."], cwd=tmp_path,
                          env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.glob("matplotlib-*"))


# Small tools.


def test_running_mean_is_centred_and_exact():
    values = np.arange(20.0)
    assert curves.smoothed(values, 5) == pytest.approx(values)  # a straight line stays one, also near its ends
    spike = np.zeros(21)
    spike[10] = 5.0
    assert curves.smoothed(spike, 5)[8:13] == pytest.approx(np.ones(5))
    assert curves.smoothed(spike, 5).sum() == pytest.approx(5.0)


def test_drawing_fewer_points_keeps_every_spike():
    values = np.zeros(100_000)
    values[54_321], values[77_777] = 9.0, -9.0
    places, drawn = curves.envelope(values)
    assert len(places) <= curves.POINTS and {9.0, -9.0} <= set(drawn) and (np.diff(places) >= 0).all()
    assert (values[places] == drawn).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not known"), (0, "0"), (1234567.0, "1,234,567"), (1720.4, "1,720"), (0.0123456, "0.01235"),
     (-0.5, "-0.5000"), (1e-9, "1.000e-09"), (99.999, "100.00")],
)
def test_numbers(value, text):
    assert str(words.number(value)) == text


def test_older_files_may_name_their_model_by_a_string(tmp_path):
    older_run = older(sample("ps")) | {"model": "resnet50", "dataset": "imagenet"}
    results = read_results(write(tmp_path, older_run) / "results_ps.json")
    assert (results.model, results.model_name, results.dataset_name) == (None, "resnet50", "imagenet")
