"""Distance from the lower bound in the report, and the audit of the probe: planted faults, silence on sound files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_results import sample, write

from gradsync.analysis.comparison import Comparison, compare
from gradsync.analysis.finding import Finding
from gradsync.analysis.html_report import render_page
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.links import distance
from gradsync.analysis.load import load
from gradsync.analysis.report import render_report
from gradsync.errors import UsageError

MB = 1e6
BYTES = 480_000  # of the sample's gradients
RATE = 100 * MB
HOSTS = [0, 1, 2, 3]
LEAST = {"baseline_ddp": 1.5 * BYTES / RATE, "all_reduce": 1.5 * BYTES / RATE, "ps": 6 * BYTES / RATE}  # seconds
SETTINGS = {"baseline_ddp": {}, "all_reduce": {"variant": "per-parameter"},
            "ps": {"transfer": "per-parameter", "mode": "sync", "num_servers": 1}}


def measurement(bandwidth: float, factor: float = 1.0) -> dict[str, Any]:
    seconds = 4 * MB / bandwidth
    return {"bytes": 4_000_000, "repeats": 5, "seconds": seconds, "low": seconds, "high": seconds, "algbw": bandwidth,
            "busbw": factor * bandwidth}


def probed(hosts: list[int]) -> dict[str, Any]:
    pairs = [{"ranks": [0, rank], "same_host": hosts[0] == hosts[rank], "latency": 1e-4,
              "one_way": [measurement(RATE - rank * MB)], "both_ways": measurement(RATE / 2)} for rank in (1, 2, 3)]
    pairs[0]["one_way"] = [measurement(RATE)]
    return {"hosts": hosts, "memory": "cpu", "all_reduce": [measurement(0.6 * RATE, 1.5)], "pairs": pairs,
            "shift": None, "latency": 1e-4, "bandwidth": RATE, "seconds": 9.0}


def run(method: str, multiple: float | None = 1.05, hosts: list[int] | None = None) -> dict[str, Any]:
    """A run with probed links whose exchange alone takes ``multiple`` of its bound between four hosts."""
    results = sample(method)
    results |= {"links": probed(hosts or HOSTS), "settings": SETTINGS[method], "method_family": method}
    results["environment"] |= {"num_hosts": len(set(hosts or HOSTS)), "ranks_per_host": 4 // len(set(hosts or HOSTS))}
    results["communication"]["replica_bytes_per_step"] = BYTES * (2.0 if method == "ps" else 1.0)
    if multiple is not None:
        median = LEAST[method] * multiple
        results["probe"]["exchange_times"] = [median * factor for factor in (0.98, 0.99, 1, 1.01, 1.02)]
    return results


def compared(directory: Path, *runs: dict[str, Any]) -> Comparison:
    return compare(load(write(directory, *runs)))


def only(comparison: Comparison, check: str, subject: str) -> Finding:
    (found,) = [each for each in comparison.findings if (each.check, each.subject) == (check, subject)]
    return found


@pytest.mark.parametrize("method", LEAST)
def test_the_distance_of_each_method(method, tmp_path):
    found = distance(compared(tmp_path, run(method)).runs[0])
    assert found.least == pytest.approx(LEAST[method])
    assert found.colocated == (pytest.approx(1.5 * BYTES / RATE) if method == "ps" else None)
    assert found.alone.median == pytest.approx(1.05 * LEAST[method]) and found.alone.n == 5


@pytest.mark.parametrize(("multiple", "hosts", "verdict"), [
    (1.05, HOSTS, "pass"), (30, HOSTS, "pass"), (0.95, HOSTS, "pass"), (0.85, HOSTS, "suspect"),
    (0.5, HOSTS, "invalid"), (0.5, [0, 0, 0, 0], "note"), (1.05, [0, 0, 0, 0], "pass"),
])
def test_an_exchange_below_its_bound(multiple, hosts, verdict, tmp_path):
    """A probe is right within 10%; on one host its figures are no limit."""
    comparison = compared(tmp_path, run("all_reduce", multiple, hosts), run("baseline_ddp", None, hosts))
    finding = only(comparison, "lower bound", "all_reduce")
    assert finding.verdict == verdict
    assert f"{LEAST['all_reduce'] * 1e3:.2f} ms that it takes at least" in str(finding.figures)
    assert (comparison.run("all_reduce") in comparison.rankable) == (verdict != "invalid")


def test_ranks_of_a_host_share_its_bound(tmp_path):
    """Two hosts of two ranks need M / B, which four hosts would need 1.5 times as long for."""
    comparison = compared(tmp_path, run("all_reduce", 0.8, [0, 0, 1, 1]))
    found = distance(comparison.runs[0])
    assert found.least == pytest.approx(BYTES / RATE) and found.alone.median / found.least == pytest.approx(1.2)
    assert only(comparison, "lower bound", "all_reduce").verdict == "pass"


def test_what_overlaps_may_be_below_the_bound(tmp_path):
    """DDP has no exchange by itself, and its exposed communication no lower bound."""
    results = run("baseline_ddp", None)
    results["probe"]["exposed_communication"] = 0.1 * LEAST["baseline_ddp"]
    comparison = compared(tmp_path, results)
    assert [each for each in comparison.findings if each.check == "lower bound"] == []
    assert "what overlaps with computing does not show" in " ".join(render_report(comparison).split())


def change(results: dict[str, Any], *path: str | int, to: Any) -> None:
    for key in path[:-1]:
        results = results[key]
    results[path[-1]] = to


@pytest.mark.parametrize(("path", "to", "says"), [
    (("all_reduce", 0, "busbw"), 0.6 * RATE, "busbw of 4000000 bytes"),
    (("all_reduce", 0, "algbw"), RATE, "algbw of 4000000 bytes"),
    (("pairs", 2, "both_ways", "seconds"), 1e-3, "algbw of 4000000 bytes in 1.00 ms is 4,000 MB/s"),
    (("bandwidth",), 2 * RATE, "said to carry 200.0 MB/s, and its measurements show 100.0"),
])
def test_a_probe_that_contradicts_itself(path, to, says, tmp_path):
    results = run("all_reduce")
    assert only(compared(tmp_path, results), "links", "all_reduce").verdict == "pass"
    change(results["links"], *path, to=to)
    finding = only(compared(tmp_path, results), "links", "all_reduce")
    assert finding.verdict == "invalid" and says in str(finding.figures)


def test_the_probe_is_the_ceiling_of_the_bandwidth_check(tmp_path):
    """480 kB in the 9.8 ms of its phase are 49 MB/s; a network of 25 MB/s cannot have carried that."""
    results = run("all_reduce", None)
    assert "fastest transfer that --probe-links saw, 0.100 GB/s" in str(
        only(compared(tmp_path, results), "bandwidth", "all_reduce").figures)
    for sample_ in (*results["links"]["all_reduce"], *(pair["both_ways"] for pair in results["links"]["pairs"]),
                    *(pair["one_way"][0] for pair in results["links"]["pairs"])):
        sample_["busbw"] = 25 * MB
    assert only(compared(tmp_path, results), "bandwidth", "all_reduce").verdict == "invalid"
    results["environment"]["num_hosts"] = 1
    assert only(compared(tmp_path, results), "bandwidth", "all_reduce").verdict == "pass"


def test_a_damaged_probe_is_refused(tmp_path):
    results = run("all_reduce")
    results["links"]["pairs"][0]["ranks"] = [0, 9]
    with pytest.raises(UsageError, match=r"results_all_reduce.json: key links.*rank beyond the 4"):
        load(write(tmp_path, results))


@pytest.mark.parametrize("language", LANGUAGES)
def test_reports_give_links_and_multiples(language, tmp_path):
    comparison = compared(tmp_path, run("baseline_ddp", None), run("all_reduce"), run("ps", 1.25))
    text, page = render_report(comparison, LANGUAGES[language]), render_page(comparison, {}, LANGUAGES[language])
    for row in (["ps", "28.8", "7.20", "36.0", "35.6 - 36.4", "1.25"], ["0 - 3", "97.00", "50.00", "100"]):
        assert all(cell in text and cell in page for cell in row), row
    yardstick = "只是一把尺子" if language == "zh" else "only a yardstick"
    assert yardstick not in text and yardstick not in page
    shared = compared(tmp_path / "one", run("all_reduce", 1.05, [0, 0, 0, 0]))
    assert yardstick in render_page(shared, {}, LANGUAGES[language])


def test_nothing_is_said_of_runs_without_a_probe(tmp_path):
    text = render_report(compared(tmp_path, sample("baseline_ddp"), sample("all_reduce")))
    assert "x least" not in text and "algbw" not in text
