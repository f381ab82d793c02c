"""report.html: one page that needs nothing but itself, says what the text report says, and fits any window."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser
from sample_results import TIMES, older, sample, write

import analyze_results
from gradsync.analysis.comparison import Comparison, compare
from gradsync.analysis.html_report import render_page
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.load import load
from gradsync.analysis.output import CHARTS
from gradsync.analysis.pictures import PICTURES
from gradsync.analysis.report import render_report

THREE = ("baseline_ddp", "all_reduce", "ps")
PIXEL = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c489".replace(" ", ""))
VOID = {"meta", "link", "img", "br", "hr"}
HOSTILE = ("<script>alert(1)</script>", '"onmouseover="alert(1)', "'><img src=x onerror=alert(1)>", "</style><b>",
           "{{ 7 * 7 }}", "&lt;i&gt;", "javascript:alert(1)", "--><!--", "\u202eevil\x00\n")


class Page(HTMLParser):
    """Every tag with its attributes, the text of each section, and what is out of balance."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = known["id"]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.sections[self._section] = self.sections.get(self._section, "") + data

    def text(self, section: str | None = None) -> str:
        chosen = self.sections.values() if section is None else [self.sections[section]]
        return " ".join(" ".join(chosen).split())

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def compared(directory: Path, *runs: dict[str, Any]) -> Comparison:
    return compare(load(write(directory, *runs)))


def page_of(comparison: Comparison, language: str = "en") -> Page:
    page = Page(render_page(comparison, dict.fromkeys(CHARTS, PIXEL), LANGUAGES[language]))
    assert page.unbalanced == []
    return page


def assert_self_contained(page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "svg", "b", "i"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert {anchor["href"][1:] for anchor in page.named("a")} <= {section["id"] for section in page.named("section")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_page_needs_nothing_but_itself(language, tmp_path):
    page = page_of(compared(tmp_path, *map(sample, TIMES)), language)
    assert_self_contained(page)
    assert page.named("html") == [{"lang": language}]
    policy = next(meta["content"] for meta in page.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert page.text("") and len(page.named("h1")) == 1 and len(page.named("main")) == 1
    assert [image["src"].partition(",")[0] for image in page.named("img")] == ["data:image/png;base64"] * len(CHARTS)


def test_every_chart_has_words_that_state_its_figures(tmp_path):
    assert set(PICTURES) == set(CHARTS)
    comparison = compared(tmp_path, *map(sample, THREE))
    texts = [image["alt"] for image in page_of(comparison).named("img")]
    assert "baseline_ddp: 1,7" in texts[0] and " to " in texts[0] and all("ps: " in text for text in texts)


def test_sections_in_the_order_of_a_reader(tmp_path):
    page = page_of(compared(tmp_path, *map(sample, THREE)))
    assert [section["id"] for section in page.named("section")] == [
        "verdict", "comparison", "plots", "time", "communication", "equivalence", "audit", "recipe", "environment",
        "limits"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_of_users_is_inert(language, tmp_path):
    write(tmp_path, sample("baseline_ddp"))
    for index, text in enumerate(HOSTILE):
        run = {**sample(text, like="ps"), "title": text, "start_time": text}
        run["recipe"][text] = text
        run["dataset"]["name"] = run["model"]["name"] = run["environment"]["device"] = text
        (tmp_path / f"results_{index}.json").write_text(json.dumps(run))
        failed = {"method": text, "status": "failed", "error": text}
        (tmp_path / f"results_{index}.failed.json").write_text(json.dumps(failed))
    (tmp_path / "results_<script>alert(2)<%2fscript>.json").write_text(json.dumps(sample("x", like="ps")))
    page = page_of(compare(load(tmp_path)), language)
    assert_self_contained(page)
    for text in HOSTILE[:-1]:
        assert text in page.text()
    assert all(char.isprintable() or char == "\n" for text in page.sections.values() for char in text)


SITUATIONS = {
    "good": [sample(method) for method in THREE],
    "one": [sample("ps")],
    "older keys": [older(sample(method)) for method in THREE],
    "another recipe": [sample("baseline_ddp"), {**sample("ps"), "recipe": {"lr": 1.0}}],
    "only failed": [{"method": "ps", "status": "failed", "error": "lost"}],
    "no epoch": [sample("baseline_ddp"), {**sample("ps"), "epochs": []}],
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_verdict_is_that_of_the_text_report(name, tmp_path):
    comparison = compared(tmp_path, *SITUATIONS[name])
    report = " ".join(render_report(comparison).split())
    verdict = page_of(comparison).text("verdict").removeprefix("Verdict ")
    first = re.split(r"[.:] ", verdict, maxsplit=2)
    assert f"{first[0]}: {first[1]}" in report


@pytest.mark.parametrize("methods", [*((name,) for name in TIMES), THREE[1:], tuple(TIMES)], ids="+".join)
def test_any_subset_of_files(methods, tmp_path):
    comparison = compared(tmp_path, *map(sample, methods))
    page = page_of(comparison)
    for method in TIMES:
        assert (f"results_{method}.json: " in page.text("comparison")) == (method not in methods)
    assert ("is the fastest" in page.text("verdict")) == (len(methods) > 1)


def test_winner_is_computed(tmp_path):
    text = page_of(compared(tmp_path, *map(sample, THREE))).text("verdict")
    fastest = r"baseline_ddp is the fastest: 1,7\d\d img/s, \d\.\d% more than all_reduce \(1,5\d\d img/s\)"
    assert re.search(fastest, text)
    assert re.search(r"ps is the slowest: 1,1\d\d img/s, 6\d\.\d% of the throughput of baseline_ddp", text)
    assert "All ended at a training loss of 0." in text and "all-reduce" in text


def test_no_winner_within_the_range(tmp_path):
    runs = [sample("baseline_ddp", noise=0.2), sample("all_reduce", like="baseline_ddp", noise=0.2)]
    text = page_of(compared(tmp_path, *runs)).text("verdict")
    assert "No winner is shown: " in text and "fastest" not in text


def test_level_runs_are_not_called_fastest_or_slowest(tmp_path):
    """The unsteady run is level with both neighbours, though these differ from each other."""
    speeds = {"baseline_ddp": (1000, 1010, 990), "all_reduce": (900, 905, 895), "ps": (850, 1000, 700)}
    runs = [sample(method, epochs=3) for method in speeds]
    for run in runs:
        for epoch, speed in zip(run["epochs"], speeds[run["method"]], strict=True):
            epoch.update(train_throughput=speed, train_time=epoch["samples"] / speed)
    text = page_of(compared(tmp_path, *runs)).text("verdict")
    assert "No winner is shown: baseline_ddp and ps differ" in text and "slowest" not in text


def test_no_winner_where_the_range_is_not_known(tmp_path):
    text = page_of(compared(tmp_path, sample("baseline_ddp", epochs=1), sample("ps", epochs=1))).text("verdict")
    assert "No winner can be named" in text and "fastest" not in text


def test_withheld_ranking_is_said_at_the_top(tmp_path):
    page = page_of(compared(tmp_path, *SITUATIONS["another recipe"]))
    assert page.text("verdict").startswith("Verdict NOT COMPARABLE") and "lr" in page.text("verdict")
    assert "fastest" not in page.text() and "Ranking" not in page.text("comparison")
    assert {"withheld"} <= set(page.text("comparison").split())


def test_invalid_and_failed_runs_are_named_and_marked(tmp_path):
    broken = sample("ps")
    for epoch in broken["epochs"]:
        epoch["train_throughput"] *= 4 / 3
    failed = {"method": "mine", "status": "failed", "error": "rank 2 <died>"}
    page = page_of(compared(tmp_path, *map(sample, THREE[:2]), broken, failed))
    assert "Not ranked: ps" in page.text("verdict") and "rank 2 <died>" in page.text("verdict")
    assert [row["class"] for row in page.named("tr") if "class" in row] == ["void"]
    assert "ps: invalid" in page.named("img")[0]["alt"]
    assert "corrected throughput" in page.text("audit") and "invalid" in page.text("audit")


def test_passes_are_folded_away(tmp_path):
    page = page_of(compared(tmp_path, *map(sample, THREE)))
    assert page.named("details") == [{}] and len(page.named("summary")) == 1


def test_chinese_page_is_chinese(tmp_path):
    comparison = compared(tmp_path, *map(sample, TIMES))
    page, english = page_of(comparison, "zh"), page_of(comparison)
    for section in english.sections:
        assert re.search(r"[\u4e00-\u9fff]", page.text(section)), section
    assert "Where the time went" not in page.text() and "baseline_ddp" in page.text()
    assert all(re.search(r"[\u4e00-\u9fff]", image["alt"]) for image in page.named("img"))


def test_command_writes_the_page(tmp_path, capsys):
    write(tmp_path, *map(sample, THREE))
    assert analyze_results.main(["--results-dir", str(tmp_path), "--output-dir", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")
    assert str(tmp_path / "report.html") in capsys.readouterr().out


# In a browser.


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on PATH")
    with Browser(program, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_page_fits_narrow_and_wide_windows(language, browser, tmp_path):
    long = {**sample("compressed_all_reduce_with_a_name_" * 5, like="all_reduce"), "title": "w" * 90}
    long["recipe"]["path"] = "/somewhere/" + "x" * 300
    write(tmp_path / "runs", *map(sample, THREE), {"method": "y" * 120, "status": "failed", "error": "z" * 400})
    (tmp_path / "runs" / "results_long.json").write_text(json.dumps(long))
    out = tmp_path / "out"
    assert analyze_results.main(["--results-dir", str(tmp_path / "runs"), "--output-dir", str(out), "--lang",
                                 language]) == 0
    for width in (360, 1280):
        sight = browser.look(out / "report.html", width, before=UNFOLD)
        assert (sight.width, sight.inside) == (width, width)
        assert sight.messages == []
        assert [request for request in sight.requests if not request.startswith("data:")] == [
            (out / "report.html").as_uri()]
        assert len(sight.images) == len(CHARTS) and min(sight.images) > 500


@pytest.mark.slow
def test_hostile_text_runs_nothing(browser, tmp_path):
    write(tmp_path / "runs", sample("baseline_ddp"))
    for index, text in enumerate(HOSTILE):
        run = {**sample(text, like="ps"), "title": text}
        (tmp_path / "runs" / f"results_{index}.json").write_text(json.dumps(run))
    assert analyze_results.main(["--results-dir", str(tmp_path / "runs"), "--output-dir", str(tmp_path)]) == 0
    sight = browser.look(tmp_path / "report.html", 800, before=UNFOLD)
    assert sight.messages == []


UNFOLD = "document.querySelectorAll('details').forEach(each => each.open = true)"
