"""The speed-up study: what it plans, what the analysis makes of it, and what it refuses to compare."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_results import at_throughput, sample, write
from studies import EFFICIENCY, Change, write_study
from test_html_report import Page
from test_language import in_use

import analyze_results
from check_environment import load_scripts, parse, single_device
from gradsync.analysis.canvas import quiet_matplotlib
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.load import Assumed
from gradsync.analysis.scaling import Scaled, Study, compare_study, find_study
from gradsync.analysis.scaling_charts import breakdown_chart, speedup_chart
from gradsync.analysis.scaling_report import render_study, study_summary
from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.study import Scaling, expanded
from gradsync.survey import Survey

TOP = Path(__file__).resolve().parent.parent
METHODS = (("baseline_ddp", {}), ("ps", {}))


def survey(scaling: Scaling, **config: Any) -> Survey:
    known = TrainConfig(dataset="digits", **config)
    return Survey(known, None, load_scripts(METHODS), 1, 0.0, scaling, single_device())


def study(directory: Path, **options: Any) -> Study:
    return compare_study(find_study(write_study(directory, **options)), Assumed())


def row(found: Study, name: str, ranks: int) -> Scaled:
    return next(each for each in found.rows if (each.name, each.ranks) == (name, ranks))


@pytest.mark.parametrize(("scaling", "config", "batches", "rates"), [
    (Scaling((1, 2, 4)), {}, [256] * 6, [0.02] * 6),
    (Scaling((1, 2, 4)), {"global_batch_size": 120, "lr": 0.01, "scale_lr": "replicas"}, [120] * 6,
     [0.01, 0.01, 0.02, 0.01, 0.04, 0.03]),
    (Scaling((1, 2, 4), weak=True), {"batch_size": 16}, [16, 16, 32, 16, 64, 48], [0.02] * 6),
    (Scaling((1, 2, 4), weak=True), {"batch_size": 16, "lr": 0.01, "scale_lr": "batch"}, [16, 16, 32, 16, 64, 48],
     [0.01, 0.01, 0.02, 0.01, 0.04, 0.03]),
])
def test_plan_of_a_study(scaling, config, batches, rates, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    plan = survey(scaling, output_dir=str(tmp_path), **config)
    assert [(run.name, run.ranks, run.folder) for run in plan.runs] == [
        ("single", 0, "ranks_1"), ("baseline_ddp", 1, "ranks_1"), ("baseline_ddp", 2, "ranks_2"), ("ps", 2, "ranks_2"),
        ("baseline_ddp", 4, "ranks_4"), ("ps", 4, "ranks_4")]
    assert [line[:2] for line in plan.skipped] == [("skip", "ps")]
    assert [run.plan.learning_rate for run in plan.runs] == pytest.approx(rates)
    assert [run.share for run in plan.runs] == [-(-batch // run.replicas)
                                                for batch, run in zip(batches, plan.runs, strict=True)]
    assert plan.threads == max(1, plan.cores // 4), "one number of threads, that of the most ranks"


def test_plan_is_what_the_script_reads(tmp_path):
    flags = ["--scaling", "1,2", "--weak", "--scale-lr", "--output-dir", "a 'b"]
    plan = survey(Scaling((1, 2), weak=True), output_dir=str(tmp_path), scale_lr="batch").plan(flags)
    shown = subprocess.run(["bash", "-c", f'{plan} printf "%s|" "${{ranks[@]}}" "${{folders[@]}}" "${{methods[@]}}"; '
                            'eval "words=(${commands[0]})"; printf "%s|" "${words[@]}"'],
                           capture_output=True, text=True, check=True).stdout.split("|")
    assert shown == ["0", "1", "2", "2", "ranks_1", "ranks_1", "ranks_2", "ranks_2", "single", "baseline_ddp",
                     "baseline_ddp", "ps", "baseline_multi_card.py", "--scale-lr", "--output-dir", "a 'b", ""]
    strong = survey(Scaling((1, 2)), output_dir=str(tmp_path)).plan(["--global-batch-size=9", "--scaling=1,2"])
    assert strong.count("--global-batch-size 128") == 4, "what the survey was given counts, once for each run"


def test_the_classic_study_is_its_flags(tmp_path):
    config, scope, _ = parse(expanded(["--study", "classic", "--data-dir=-x"]))
    assert (scope.scaling, [name for name, _ in scope.methods]) == (Scaling((1, 2)), ["baseline_ddp"])
    expected = TrainConfig(dataset="cifar10", image_size=224, model="resnet18", global_batch_size=512, epochs=1,
                           lr=0.01, scale_lr="replicas", momentum=0.9, weight_decay=0.0, lr_schedule="constant",
                           data_dir="-x")
    assert config == expected
    assert [config.base_learning_rate(512, replicas) for replicas in (1, 2)] == [0.01, 0.02]
    config, scope, _ = parse(expanded(["--scaling=1,2,4", "--study=classic", "--image-size", "32"]))
    assert (config.image_size, scope.scaling) == (32, Scaling((1, 2, 4))), "further flags prevail"


@pytest.mark.parametrize(("flags", "named"), [
    (["--scaling", "1,x"], "--scaling"), (["--scaling="], "--scaling"), (["--scaling", "0,2"], "--scaling"),
    (["--scaling", "1,2", "--nproc", "2"], "--nproc 2"), (["--weak"], "--weak"), (["--study", "modern"], "--study"),
    (["--scaling", "1,2", "--weak", "--global-batch-size", "64"], "--global-batch-size 64"),
    (["--study", "classic", "--weak"], "--global-batch-size 512"), (["--scale-lr", "linear"], "--scale-lr"),
])
def test_contradictions_are_refused(flags, named):
    with pytest.raises(UsageError, match=f"^{named}"):
        parse(expanded(flags))


def test_a_method_that_fits_no_point_is_refused(tmp_path):
    with pytest.raises(UsageError, match="needs 2 ranks or more"):
        survey(Scaling((1,)), output_dir=str(tmp_path))


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("drift", [(1.0,), (1.0, 1.7, 0.8)])
def test_speedup_and_efficiency(weak, drift, tmp_path):
    found = study(tmp_path, weak=weak, repeats=drift)
    assert found.rule == ("weak" if weak else "strong")
    assert found.withheld == []
    assert {finding.verdict for finding in found.findings} == {"pass"}
    for name, share in EFFICIENCY.items():
        widest, replicas = row(found, name, 4), 3 if name == "ps" else 4
        assert (widest.replicas, widest.speedup.n) == (replicas, len(drift))
        assert widest.speedup.median == pytest.approx(share * replicas)
        assert widest.speedup.high - widest.speedup.low < 1e-9, "drift of the machine cancels within a repeat"
        assert widest.efficiency.median == pytest.approx(share)
        assert widest.efficiency_per_rank.median == pytest.approx(share * replicas / 4)


def test_what_was_not_run_says_why(tmp_path):
    def failing(method: str, ranks: int, run: dict[str, Any]) -> None:
        if (method, ranks) == ("all_reduce", 4):
            run.update(status="failed", error="rank 3 was killed")

    found = study(tmp_path, change=failing)
    assert [str(each.absent) for each in found.rows if not each.runs] == ["failed", "needs 2 ranks"]
    assert "rank 3 was killed" in study_summary(found)
    (tmp_path / "ranks_2" / "results_baseline_ddp.json").unlink()
    again = compare_study(find_study(tmp_path), Assumed())
    assert str(row(again, "baseline_ddp", 2).absent) == "no results file"


def test_a_study_without_its_reference_has_no_speedup(tmp_path):
    write_study(tmp_path)
    (tmp_path / "ranks_1" / "results_single.json").unlink()
    found = compare_study(find_study(tmp_path), Assumed())
    assert [each.speedup for each in found.rows] == [None] * len(found.rows)
    assert study_summary(found).count("NO SPEED-UP") == 1
    assert "reference" in {finding.check for finding in found.findings if finding.verdict == "not known"}


def at(ranks: int, method: str, section: str, key: str, value: Any) -> Change:
    """A change of one value in the file of one run."""
    def change(name: str, count: int, run: dict[str, Any]) -> None:
        if (name, count) == (method, ranks):
            (run[section] if section else run)[key] = value
    return change


def rates(rule: str, factor: float = 1.0, *, per: str = "num_replicas") -> Change:
    """A learning rate that follows ``per``, but for ``factor`` at 4 ranks."""
    def change(_: str, count: int, run: dict[str, Any]) -> None:
        run["recipe"] |= {"scale_lr": rule, "lr": 0.01 * run[per] * (factor if count == 4 else 1)}
    return change


def faster(name: str, count: int, run: dict[str, Any]) -> None:
    if (name, count) == ("baseline_ddp", 4):
        at_throughput(run, 2200.0)


def small_machine(_: str, __: int, run: dict[str, Any]) -> None:
    run["environment"]["cpu_cores"] = 2


FAULTS = {
    "recipe": (at(4, "ps", "recipe", "momentum", 0.5), "recipe", "invalid"),
    "rate": (at(2, "baseline_ddp", "recipe", "lr", 0.1), "recipe", "invalid"),
    "rate beside its rule": (rates("replicas", 2.0), "recipe", "invalid"),
    "model": (at(2, "ps", "model", "gradient_bytes", 7), "recipe", "invalid"),
    "threads of the single device": (at(1, "single", "environment", "threads_per_rank", 2), "threads", "invalid"),
    "another machine": (at(4, "all_reduce", "environment", "cpu_cores", 64), "environment", "invalid"),
    "another start": (at(4, "ps", "", "initial_fingerprints", ["77"] * 3), "start", "invalid"),
    "batch of one point": (at(4, "baseline_ddp", "", "global_batch_size", 192), "updates", "invalid"),
    "length of one point": (at(2, "ps", "", "all_losses", [1.0] * 7), "updates", "invalid"),
    "file in another's folder": (at(2, "ps", "", "world_size", 4), "ranks", "invalid"),
    "superlinear": (faster, "superlinear", "suspect"),
    "too few cores": (small_machine, "cores", "note"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name, tmp_path):
    change, check, verdict = FAULTS[name]
    found = study(tmp_path, change=change)
    assert (check, verdict) in {(finding.check, finding.verdict) for finding in found.findings}
    assert bool(found.withheld) is (verdict == "invalid")
    assert (row(found, "baseline_ddp", 2).speedup is None) is (verdict == "invalid")


@pytest.mark.parametrize(("weak", "change"), [
    (False, rates("replicas")), (True, rates("replicas")), (True, rates("batch", per="global_batch_size")),
    (False, rates("batch", per="global_batch_size")),
])
def test_a_rate_that_follows_its_rule_is_the_same_recipe(weak, change, tmp_path):
    found = study(tmp_path, weak=weak, change=change)
    assert found.withheld == []
    assert row(found, "ps", 4).speedup is not None, "though its replicas are fewer than its neighbours'"


def test_a_point_whose_audit_objects_withholds_speedups(tmp_path):
    def scrambled(name: str, count: int, run: dict[str, Any]) -> None:
        if (name, count) == ("all_reduce", 2):
            run["all_losses"] = run["all_losses"][::-1]

    found = study(tmp_path, change=scrambled)
    assert [(place, finding.check) for place, finding in found.withheld] == [("ranks_2", "trajectory")]
    assert "withheld" in study_summary(found)


def test_an_invalid_run_alone_has_no_speedup(tmp_path):
    def multiplied(name: str, count: int, run: dict[str, Any]) -> None:
        if (name, count) == ("ps", 4):
            run["epochs"][0]["train_throughput"] *= 4 / 3

    found = study(tmp_path, change=multiplied)
    assert (found.verdict(row(found, "ps", 4)), row(found, "ps", 4).speedup) == ("invalid", None)
    assert row(found, "ps", 2).speedup is not None


def test_parts_of_a_step_add_up_and_tell_where_efficiency_went(tmp_path):
    found = study(tmp_path)
    for each in found.rows:
        if each.runs:
            assert sum(each.parts.by_name.values()) == pytest.approx(each.parts.step)
    for name, share in EFFICIENCY.items():
        lost = found.lost(row(found, name, 4))
        assert lost.total == pytest.approx(1 - share)
        assert sum(lost.shares.values()) == pytest.approx(lost.total)
    assert found.single.parts.exposed == 0
    assert found.lost(row(found, "ps", 4)).shares["exposed communication"] > 0.1


def test_what_is_not_known_is_not_zero(tmp_path):
    def silent(name: str, count: int, run: dict[str, Any]) -> None:
        if name == "all_reduce":
            run["probe"] = None
        if name == "ps":
            run["epochs"][0]["phases"] = None

    found = study(tmp_path, change=silent)
    assert list(row(found, "all_reduce", 1).parts.by_name.values())[1:] == [None] * 3
    assert row(found, "ps", 4).parts.data_wait is None and row(found, "ps", 4).parts.rest is None
    assert row(found, "ps", 4).parts.compute is not None
    assert "the others not known" in study_summary(found)


def test_studies_are_found_in_order(tmp_path):
    for name in ("ranks_16", "ranks_2", "ranks_1", "ranks_x", "ranks_02", "other"):
        (tmp_path / name).mkdir()
    assert [[folder.name for folder in found] for found in find_study(tmp_path)] == [["ranks_1", "ranks_2", "ranks_16"]]
    (tmp_path / "repeat_1" / "ranks_4").mkdir(parents=True)
    assert find_study(tmp_path) == [[tmp_path / "repeat_1" / "ranks_4"]], "repeats come first"
    write(tmp_path, sample("ps"))
    assert find_study(tmp_path) == [], "results of its own come before"


def test_command_writes_report_page_and_charts(tmp_path, capsys):
    write_study(tmp_path, ranks=(1, 2), methods=("baseline_ddp",), repeats=(1.0, 1.1))
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "STRONG SCALING" in printed
    assert (tmp_path / "performance_report.txt").read_text() == printed
    page = (tmp_path / "report.html").read_text()
    assert Page(page).unbalanced == []
    assert page.count("data:image/png;base64,") == 2
    assert "1.80 (1.80 to 1.80)" in page and "repeat_2/ranks_2/report.html" in page
    for name in ("plots/speedup.png", "plots/scaling_breakdown.png", "repeat_2/ranks_2/report.html"):
        assert (tmp_path / name).stat().st_size > 1000


def test_report_in_chinese_holds_no_english_sentence(tmp_path):
    found = study(tmp_path, ranks=(2, 4), change=faster)
    files = render_study(found, LANGUAGES["zh"])
    text = " ".join(" ".join(files[Path(name)].decode().split()) for name in ("report.html", "performance_report.txt"))
    fragments = {fragment.strip() for template in in_use() for fragment in re.split(r"\{\w+\}", template)}
    assert [fragment for fragment in fragments if fragment.count(" ") >= 2 and fragment in text] == []
    assert "强扩展" in text and "超线性" in text


@pytest.mark.parametrize("options", [
    {"ranks": (1,)}, {"ranks": (1, 2, 4, 8, 16, 32), "methods": ("baseline_ddp", "all_reduce", "ps", "a", "b$x$")},
    {"ranks": (2,), "methods": ("baseline_ddp",), "change": at(1, "single", "environment", "threads_per_rank", 2)},
])
def test_charts_are_drawn_whatever_there_is(options, tmp_path):
    found = study(tmp_path, **options)
    with quiet_matplotlib():
        for chart in (speedup_chart(found), breakdown_chart(found)):
            assert chart.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_study_for_real(tmp_path):
    flags = ["--scaling", "1,2", "--methods", "baseline_ddp", "--max-steps", "2", "--batch-size", "16"]
    chosen = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run([TOP / "run_all_experiments.sh", *flags, "--output-dir", tmp_path], capture_output=True,
                          text=True, timeout=240, check=False, env={**os.environ, **chosen})
    assert (done.returncode, done.stderr) == (0, "")
    found = compare_study(find_study(tmp_path), Assumed())
    assert [(each.name, each.ranks, each.replicas) for each in found.rows] == [
        ("single", 1, 1), ("baseline_ddp", 1, 1), ("baseline_ddp", 2, 2)]
    assert (found.rule, found.withheld) == ("strong", [])
    assert all(each.speedup and each.parts.rest is not None for each in found.rows)
    assert {run.results.environment.threads_per_rank for each in found.rows for run in each.runs} == {1}

