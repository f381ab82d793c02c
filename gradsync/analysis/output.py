"""The files of an analysis: rendered in memory first, then replaced together or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

from gradsync.analysis import bar_charts, curves
from gradsync.analysis.canvas import quiet_matplotlib
from gradsync.analysis.comparison import Comparison
from gradsync.analysis.html_report import render_page
from gradsync.analysis.message import ENGLISH, Language
from gradsync.analysis.report import render_report
from gradsync.errors import RunError, UsageError
from gradsync.files import below, remove_stale_temporaries, write_together

CHARTS = {
    "throughput_comparison": bar_charts.throughput_comparison,
    "training_time_comparison": bar_charts.training_time_comparison,
    "loss_curves": curves.loss_curves,
    "accuracy_curves": curves.accuracy_curves,
    "communication_overhead": bar_charts.communication_overhead,
    "time_breakdown": bar_charts.time_breakdown,
}


def render(comparison: Comparison, language: Language = ENGLISH) -> dict[Path, bytes]:
    """Relative path and content of each file; the reports last, so that they never describe older charts.

    Every chart is drawn each time, if need be with a sentence in place of bars: a chart of an earlier
    analysis beside a new report would mislead.
    """
    with quiet_matplotlib():
        pictures = {name: draw(comparison) for name, draw in CHARTS.items()}
    reports = {"report.html": render_page(comparison, pictures, language),
               "performance_report.txt": render_report(comparison, language)}
    return {Path("plots") / f"{name}.png": picture for name, picture in pictures.items()} | {
        Path(name): text.encode("utf-8", "backslashreplace") for name, text in reports.items()}


def write(directory: Path, files: dict[Path, bytes]) -> list[Path]:
    """Write ``files`` below ``directory``, all or none; it is made if need be. Returns their paths.

    Raises UsageError that names a target which cannot be written, RunError where the disk is full.
    """
    targets = {below(directory, str(relative)): content for relative, content in files.items()}
    try:
        for folder in dict.fromkeys(path.parent for path in targets):
            remove_stale_temporaries(folder)
        write_together(targets)
    except OSError as error:
        text = f"{error.filename}: cannot be written ({error.strerror}); choose another --output-dir"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(text) from error
        raise UsageError(text) from error
    return list(targets)
