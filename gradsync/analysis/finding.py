"""What a check says: one finding, with its figures, its likely cause and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from gradsync.analysis.message import Text

Verdict = Literal["pass", "note", "not known", "suspect", "invalid"]
SEVERITY: tuple[Verdict, ...] = get_args(Verdict)  # from harmless to fatal
COMPARISON = "comparison"


@dataclass(frozen=True)
class Finding:
    """``subject`` names a run or several, or is ``COMPARISON``. No ``cause`` and ``action`` where all is well."""

    check: str
    verdict: Verdict
    subject: Text
    figures: Text
    cause: Text = ""
    action: Text = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    return max((finding.verdict for finding in findings), key=SEVERITY.index, default="pass")
