"""The languages in which a report can be had."""

from __future__ import annotations

from gradsync.analysis import zh, zh_page
from gradsync.analysis.message import ENGLISH, Language

LANGUAGES = {language.code: language for language in (ENGLISH, Language("zh", zh.CATALOGUE | zh_page.CATALOGUE))}
