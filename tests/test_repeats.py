"""Repeats: read in order, compared within each repeat, refused together where one of them is refused."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from sample_results import sample, write
from test_html_report import Page

import analyze_results
from gradsync.analysis.load import Assumed
from gradsync.analysis.repeat_report import render_repeats
from gradsync.analysis.repeats import Repeats, compare_repeats, find_repeats

METHODS = ("baseline_ddp", "all_reduce", "ps")


def slowed(run: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same run where everything takes ``factor`` times as long."""
    for epoch in run["epochs"]:
        for key in ("train_time", "avg_batch_time", "avg_comm_time", "avg_comm_time_pull", "avg_comm_time_push"):
            epoch[key] = epoch[key] * factor if epoch[key] is not None else None
        epoch["train_throughput"] /= factor
        epoch["phases"] = {name: value * factor for name, value in epoch["phases"].items()}
        epoch["phases_per_replica"] = [epoch["phases"]] * len(epoch["phases_per_replica"])
        epoch["step_times"] = [value * factor for value in epoch["step_times"]]
    run["summary"]["avg_train_throughput"] /= factor
    run["summary"]["avg_train_time_per_epoch"] *= factor
    return run


def repeated(folder: Path, factors: dict[str, list[float]]) -> Path:
    """``repeat_1`` ... with each method slowed by its factor of that repeat."""
    for number in range(len(next(iter(factors.values())))):
        runs = [slowed(sample(name), factors[name][number]) for name in factors]
        for run in runs:
            run["recipe"]["seed"] = 42 + number
        write(folder / f"repeat_{number + 1}", *runs)
    return folder


def read(folder: Path) -> Repeats:
    return compare_repeats(find_repeats(folder), Assumed())


def test_repeats_are_found_in_order(tmp_path):
    for name in ("repeat_10", "repeat_2", "repeat_1", "repeat_x", "other"):
        (tmp_path / name).mkdir()
    assert [folder.name for folder in find_repeats(tmp_path)] == ["repeat_1", "repeat_2", "repeat_10"]
    write(tmp_path, sample("ps"))
    assert find_repeats(tmp_path) == [], "results of its own come first"


def test_drift_of_the_machine_cancels_within_a_repeat(tmp_path):
    drift = [1.0, 1.6, 0.8, 1.3, 2.0]
    repeats = read(repeated(tmp_path, {"baseline_ddp": drift, "all_reduce": [value * 1.25 for value in drift]}))
    baseline, all_reduce = repeats.methods
    assert baseline.ratio is None
    assert all_reduce.ratio.shown
    assert all_reduce.ratio.n == 5
    assert all_reduce.throughput.n == 5
    assert repeats.seeds == [42, 43, 44, 45, 46]
    expected = sample_speed("all_reduce") / sample_speed("baseline_ddp") / 1.25
    assert all_reduce.ratio.ratio == pytest.approx(expected, rel=1e-6)
    assert [method.name for method in repeats.ranking] == ["baseline_ddp", "all_reduce"]


def sample_speed(name: str) -> float:
    return sorted(epoch["train_throughput"] for epoch in sample(name)["epochs"])[2]


def test_no_difference_is_a_result(tmp_path, capsys):
    alike = sample_speed("all_reduce") / sample_speed("baseline_ddp")
    noise = [0.97, 1.04, 1.0, 0.95, 1.05]
    repeated(tmp_path, {"baseline_ddp": [1.0] * 5, "all_reduce": [alike * value for value in noise]})
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "all_reduce against baseline_ddp: no difference shown" in printed
    assert (tmp_path / "out" / "performance_report.txt").read_text() in printed
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert {"report.html", "plots/repeats.png", "repeat_5/performance_report.txt",
            "repeat_1/plots/loss_curves.png"} <= written


def test_page_says_what_the_text_says(tmp_path):
    repeats = read(repeated(tmp_path, {"baseline_ddp": [1.0, 1.1, 0.9], "all_reduce": [1.3, 1.45, 1.15]}))
    files = render_repeats(repeats)
    page, text = (" ".join(files[Path(name)].decode().split()) for name in ("report.html", "performance_report.txt"))
    assert Page(page).unbalanced == []
    sentence = next(line for line in files[Path("performance_report.txt")].decode().splitlines() if "slower" in line)
    for said in (sentence.removeprefix("- "), "COMPARABLE: the audit of no repeat objects", "seeds 42, 43, 44"):
        assert said in page and said in text
    links = re.findall(r'href="(repeat_[^"]+)"', page)
    assert len(links) == 3 and all(Path(link) in files for link in links)
    assert f'src="data:image/png;base64,{b64encode(files[Path("plots/repeats.png")]).decode()}"' in page


def test_a_doubtful_repeat_is_named(tmp_path):
    repeated(tmp_path, {name: [1.0, 1.1] for name in METHODS})
    doubtful = sample("ps")
    doubtful["summary"]["avg_train_throughput"] *= 2
    doubtful["recipe"]["seed"] = 43
    write(tmp_path / "repeat_2", doubtful)
    page = render_repeats(read(tmp_path))[Path("report.html")].decode()
    assert "WITH RESERVATIONS: the audit doubts or rejects figures of repeat_2;" in page
    assert re.findall(r'report.html">(\w+)</a> <span class="badge (\w+)"', page) == [
        ("repeat_1", "pass"), ("repeat_2", "suspect")]


def test_one_bad_repeat_withholds_all_ranking(tmp_path, capsys):
    repeated(tmp_path, {name: [1.0, 1.1] for name in METHODS})
    bad = sample("ps")
    bad["recipe"]["lr"] = 0.1
    write(tmp_path / "repeat_2", bad)
    repeats = read(tmp_path)
    assert {folder.name for folder, _ in repeats.withheld} == {"repeat_2"}
    assert repeats.ranking == []
    assert all(method.ratio is None for method in repeats.methods)
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    assert "NOT COMPARABLE" in capsys.readouterr().out


def test_an_unreadable_repeat_leaves_everything_as_it_was(tmp_path, capsys):
    repeated(tmp_path, {name: [1.0, 1.1] for name in METHODS})
    (tmp_path / "performance_report.txt").write_text("earlier")
    (tmp_path / "repeat_2" / "results_ps.json").write_text("{")
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 2
    assert "results_ps.json" in capsys.readouterr().err
    assert (tmp_path / "performance_report.txt").read_text() == "earlier"
    assert not (tmp_path / "repeat_1" / "performance_report.txt").exists()
