"""What the cost model says: its answers in words, its pictures, and the command that makes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cost_cells import COSTS, grid, profile, synthetic
from sample_results import sample, write

from benchmarks import predict_scaling
from gradsync.analysis import answers, crossover
from gradsync.analysis.cost_grid import rows
from gradsync.analysis.cost_model import Link
from gradsync.analysis.cost_report import own_errors, probed_costs
from gradsync.analysis.load import load
from gradsync.analysis.projection import Subject, projected_step
from gradsync.config import TrainConfig
from gradsync.probed import Links

SLOW, FAST, FAR = Link(1e7), Link(1e12), Link(1e12, latency=0.05)


@pytest.mark.parametrize(("link", "what"), [(SLOW, answers.BANDWIDTH), (FAST, answers.COMPUTING),
                                            (FAR, answers.LATENCY)])
def test_the_bottleneck(link, what):
    gains = answers.what_ifs(Subject("m", profile(), TrainConfig()), "baseline_ddp", link, 8)
    assert max(gains, key=lambda key: gains[key]) is what
    assert f"your bottleneck is {what}" in str(answers.bottleneck(Subject("m", profile(), TrainConfig()), "l", link, 8))


@pytest.mark.parametrize(("link", "told_apart", "expected"), [
    (SLOW, 0.1, "would pay from 2 hosts on"),
    (SLOW, 2.0, "cannot be told"),
    (FAST, 0.1, "would not pay at any number"),
    (FAST, 0.5, "cannot be told"),
    (Link(1.1e9), 0.02, "would pay from 4 hosts on"),
])
def test_whether_compression_pays(link, told_apart, expected):
    assert expected in str(answers.pays(Subject("m", profile(), TrainConfig()), "baseline_ddp_fp16", "l", link,
                                        told_apart))


def test_where_a_server_falls_behind():
    subject = Subject("m", profile(), TrainConfig())
    text = str(answers.loses(subject, "l", Link(1e10), 0.1))
    first = int(re.search(r"from (\d+) replicas on", text)[1])
    assert projected_step(subject, "ps_pipelined", Link(1e10), first) > 1.1 * projected_step(
        subject, "baseline_ddp", Link(1e10), first)
    assert "nowhere slower" in str(answers.loses(subject, "l", Link(1e18), 0.1))


@pytest.mark.parametrize(("change", "expected"), [
    ({}, crossover.RIGHT),
    ({"all_reduce_flat": (1e-3, 1e-3, 1e-3)}, crossover.WRONG),
    ({"all_reduce_flat": "a shade faster"}, crossover.TIED),
])
def test_a_measured_cell_is_right_tied_or_wrong(change, expected):
    cell = synthetic(4, 1e9, COSTS)
    best = crossover.measured_standing(cell, rows(cell)).best
    if "a shade faster" in change.values():
        low, median, high = cell.step[best]
        change = {"all_reduce_flat": (0.99 * low, 0.995 * median, high)}
    assert best != "all_reduce_flat"
    assert crossover.verdict(cell.model_copy(update={"step": cell.step | change}), rows(cell), COSTS) == expected


def links(ranks: int = 2, bandwidth: float = 1e8) -> Links:
    def sample(size: int, seconds: float) -> dict[str, float]:
        times = dict.fromkeys(("seconds", "low", "high"), seconds)
        return {"bytes": size, "repeats": 3, "algbw": 1, "busbw": 1, **times}

    return Links.model_validate({
        "hosts": list(range(ranks)), "memory": "cpu", "latency": 1e-4, "bandwidth": bandwidth, "seconds": 1.0,
        "shift": None, "all_reduce": [sample(8, 1e-3), sample(10**7, 0.1 + 1e-3 + 0.05)],
        "pairs": [{"ranks": [0, 1], "same_host": False, "latency": 1e-4, "one_way": [sample(8, 1e-4)],
                   "both_ways": sample(8, 1e-4)}]})


def test_what_an_all_reduce_adds_comes_from_the_probe():
    """1 ms for two steps, of which a message is 0.1 ms each; 10^7 bytes: 0.1 s on the link, 0.05 s for half of them."""
    costs = probed_costs(links())
    assert costs.latency == pytest.approx(4e-4) and costs.reduce == pytest.approx(0.05 / 5e6)


@pytest.fixture
def probed_run(tmp_path) -> Path:
    """A run with all that a projection needs."""
    results = sample("baseline_ddp")
    write(tmp_path, {**results, "num_replicas": 2, "world_size": 2, "synchronous": True,
                     "links": links().model_dump(), "compute_profile": profile().model_dump()})
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    return ["--results-dir", str(folder), "--output-dir", str(folder / "out"), *more]


@pytest.fixture
def small_grid(tmp_path) -> Path:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps([cell.model_dump() for cell in grid(COSTS)]))
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_command_writes_pictures_and_words(probed_run, small_grid, capsys, language):
    arguments = command(probed_run, "--grid", str(small_grid), "--links", "1gbit,400gbit", "--latency-us", "10",
                        "--lang", language)
    assert predict_scaling.main(arguments) == 0
    text = (probed_run / "out" / "cost_model.txt").read_text(encoding="utf-8")
    assert text.strip() in capsys.readouterr().out
    assert {"en": "PREDICTED, NOT MEASURED", "zh": "预测，并非实测"}[language] in text
    assert "1gbit" in text and "400gbit" in text
    for name in ("crossover", "projection"):
        assert (probed_run / "out" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_grid_alone_needs_no_results(tmp_path, small_grid, capsys):
    assert predict_scaling.main(["--grid-only", "--grid", str(small_grid), "--output-dir", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "plots" / "projection.png").exists()
    assert "cells held out" in capsys.readouterr().out


def test_a_run_is_compared_with_what_it_measured(probed_run):
    (run, measured, predicted), = own_errors(load(probed_run).runs)
    assert run.name == "baseline_ddp" and measured > 0 and predicted > profile().step


BAD = {
    "no run with a probe": (["--grid", "GRID"], "--probe-links"),
    "a link without a unit": (["--links", "10"], "--links 10"),
    "too many links": (["--links", "1gbit,2gbit,3gbit,4gbit,5gbit"], "at most 4"),
    "a latency that is none": (["--latency-us", "-1"], "--latency-us"),
    "no such grid": (["--grid", "nowhere.json"], "nowhere.json"),
    "a grid that is no grid": (["--grid", "NOT_A_GRID"], "not_a_grid.json: 0.hosts"),
    "a grid of one number of hosts": (["--grid", "ONE"], "hosts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(case, tmp_path, small_grid, capsys):
    arguments, expected = BAD[case]
    write(tmp_path, sample("baseline_ddp"))
    (tmp_path / "not_a_grid.json").write_text("[{}]")
    (tmp_path / "one.json").write_text(json.dumps([synthetic(2, 1e9, COSTS).model_dump()]))
    places = {"GRID": str(small_grid), "NOT_A_GRID": str(tmp_path / "not_a_grid.json"),
              "ONE": str(tmp_path / "one.json")}
    assert predict_scaling.main(command(tmp_path, *(places.get(word, word) for word in arguments))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
