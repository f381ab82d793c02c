"""Every text for readers exists in both languages: found in the code and in the templates, not on trust."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import Environment, nodes
from sample_results import TIMES, older, sample, trained_losses, write

import analyze_results
from gradsync.analysis import breakdown, checks_scaling, checks_set, layout, step_parts
from gradsync.analysis.audit import CHECKS
from gradsync.analysis.comparison import compare
from gradsync.analysis.finding import SEVERITY
from gradsync.analysis.language import LANGUAGES
from gradsync.analysis.load import load
from gradsync.analysis.message import ENGLISH, Listing, clauses, joined, msg
from gradsync.analysis.report import render_report, render_terminal

ANALYSIS = Path(checks_set.__file__).parent
CHINESE = LANGUAGES["zh"]
SECTIONS = ("flag", "data set", "model")
LISTINGS = (", ", " and ", ", and ", "; ", " ")
# Texts that a list of words holds and `term` shows.
WORDS = {*SEVERITY, *CHECKS, *checks_scaling.CHECKS, *breakdown.SEGMENTS, *step_parts.PARTS, *checks_set.OUR_KEYS,
         *SECTIONS, *LISTINGS}


def in_code(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "msg":
            template = node.args[0]
            assert isinstance(template, ast.Constant), f"{path.name}:{node.lineno}: msg() of no literal"
            yield template.value


def in_template(path: Path) -> Iterator[str]:
    tree = Environment().parse(path.read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "_":
            assert isinstance(call.args[0], nodes.Const), f"{path.name}:{call.lineno}: _() of no literal"
            yield call.args[0].value


def in_use() -> set[str]:
    code = {text for path in ANALYSIS.glob("*.py") for text in in_code(path)}
    return code | {text for path in ANALYSIS.glob("templates/*.j2") for text in in_template(path)} | WORDS


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def test_every_text_is_in_chinese_with_the_same_placeholders():
    missing = sorted(in_use() - CHINESE.catalogue.keys())
    assert missing == [], f"{len(missing)} texts are missing in gradsync/analysis/zh.py"
    differing = {text for text in in_use() if placeholders(text) != placeholders(CHINESE.catalogue[text])}
    assert differing == set()


def test_the_catalogue_holds_nothing_else():
    assert sorted(CHINESE.catalogue.keys() - in_use()) == []


def test_placeholders_are_names():
    assert all(name.isidentifier() for text in in_use() for name in placeholders(text))


@pytest.mark.parametrize("path", sorted(ANALYSIS.glob("templates/*.txt.j2")), ids=lambda path: path.name)
def test_text_templates_hold_no_untranslated_text(path):
    tree = Environment().parse(path.read_text(encoding="utf-8"))
    assert [data.data for data in tree.find_all(nodes.TemplateData)
            if re.search("[A-Za-z]", data.data.replace("/performance_report.txt", ""))] == []


def write_doubtful(directory: Path) -> Path:
    """Runs that nearly every check has something to say of."""
    runs = {method: sample(method) for method in TIMES}
    for epoch in runs["ps"]["epochs"]:
        epoch["train_throughput"] *= 4 / 3
        epoch["val_samples"] = 300
        epoch["phases"] = {name: 2 * seconds for name, seconds in epoch["phases"].items()}
    runs["all_reduce"]["all_losses"] = trained_losses("summed")
    runs["all_reduce"]["environment"]["threads_per_rank"] = 8
    runs["baseline_ddp"]["all_losses"] = trained_losses()
    runs["baseline_ddp"]["dataset"]["accuracy_is_meaningful"] = False
    failed = {**sample("mine", like="ps"), "status": "failed", "error": "rank 2 was killed"}
    return write(directory, *runs.values(), failed, {**older(sample("other", like="ps"))})


def test_chinese_report_holds_no_english_sentence(tmp_path):
    comparison = compare(load(write_doubtful(tmp_path)))
    text = " ".join((render_report(comparison, CHINESE) + render_terminal(comparison, [], CHINESE)).split())
    fragments = {fragment.strip() for template in in_use() for fragment in re.split(r"\{\w+\}", template)}
    assert [fragment for fragment in fragments if fragment.count(" ") >= 2 and fragment in text] == []
    assert "吞吐量" in text and "counted the server" not in text


def test_command_speaks_chinese(tmp_path, capsys):
    write_doubtful(tmp_path)
    arguments = ["--results-dir", str(tmp_path), "--output-dir", str(tmp_path), "--lang", "zh"]
    assert analyze_results.main(arguments) == 0
    printed, report = capsys.readouterr().out, (tmp_path / "performance_report.txt").read_text(encoding="utf-8")
    assert "把服务器也算作工作进程" in printed and "把服务器也算作工作进程" in report


def test_columns_align_by_their_width_on_screen(tmp_path):
    comparison = compare(load(write(tmp_path, *(sample(method) for method in TIMES))))
    lines = render_terminal(comparison, [], CHINESE).splitlines()
    rule = next(place for place, line in enumerate(lines) if set(line) == {"-"})
    rows = lines[rule - 2 : rule] + lines[rule + 1 : rule + 1 + len(TIMES)]
    ends = {layout.display_width(row[: row.index(figure)] + figure) for row, figure in
            zip(rows[2:], ("1,", "1,", "1,", "56"), strict=True) if figure in row}
    assert max(map(layout.display_width, lines)) <= 112
    assert ends and layout.display_width("副本 a") == 6


def test_lines_break_between_wide_characters_but_not_before_punctuation():
    text = "吞吐量乘以时间等于样本数，" * 12 + "throughput x time = samples"
    lines = layout.wrapped(text, 40, prefix="- ")
    assert all(layout.display_width(line) <= 40 for line in lines) and lines[0].startswith("- ")
    assert not any(line.strip().startswith("，") for line in lines)
    assert "".join(line[2:] for line in lines).replace(" ", "") == text.replace(" ", "")


def test_wrapping_of_plain_text_breaks_at_spaces_and_cuts_what_is_too_long():
    assert layout.wrapped("a bb ccc", 4, "- ") == ["- a", "  bb", "  cc", "  c"]
    assert layout.shortened("x" * 30, 10) == "xxxx..xxxx"
    assert layout.display_width(layout.shortened("名" * 30, 10)) <= 10


def test_messages_are_rendered_late_and_their_values_are_made_printable():
    text = msg("{verdict}: {finding}", verdict=msg("not known"), finding="{oops}\n\x1b[31m")
    assert ENGLISH(text) == "not known: {oops}\\n\\x1b[31m"
    assert CHINESE(text).startswith(CHINESE.catalogue["not known"]) and "{oops}\\n" in CHINESE(text)
    assert ENGLISH(joined(["a", "b", "c"])) == "a, b and c" and CHINESE(joined(["a", "b", "c"])) == "a、b 和 c"
    assert ENGLISH(joined([])) == "none" and ENGLISH(clauses(["a"])) == "a"
    assert ENGLISH(Listing((), ", ", " and ")) == ""
