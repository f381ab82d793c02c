"""What a check says: one finding, with its figures, its likely cause and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Verdict = Literal["pass", "note", "not known", "suspect", "invalid"]
SEVERITY: tuple[Verdict, ...] = get_args(Verdict)  # from harmless to fatal
COMPARISON = "comparison"


@dataclass(frozen=True)
class Finding:
    """``subject`` is the name of a run, or ``COMPARISON``. Empty ``cause`` and ``action`` where all is well."""

    check: str
    verdict: Verdict
    subject: str
    figures: str
    cause: str = ""
    action: str = ""


def worst(findings: Iterable[Finding]) -> Verdict:
    return max((finding.verdict for finding in findings), key=SEVERITY.index, default="pass")
