"""The languages in which a report can be had."""

from __future__ import annotations

from gradsync.analysis import zh, zh_cost, zh_links, zh_page, zh_scaling
from gradsync.analysis.message import ENGLISH, Language

CHINESE = zh.CATALOGUE | zh_page.CATALOGUE | zh_links.CATALOGUE | zh_scaling.CATALOGUE | zh_cost.CATALOGUE
LANGUAGES = {language.code: language for language in (ENGLISH, Language("zh", CHINESE))}
