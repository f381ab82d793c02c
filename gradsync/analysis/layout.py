"""Plain text in columns and paragraphs, by the columns that characters take on a screen, not by their number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# A wide character may end a line, but none of these may begin one, and none of the others may end one.
WIDE_PUNCTUATION = "，。；：！？）」』、》"
NOT_FIRST, NOT_LAST = ",.;:!?)]}…" + WIDE_PUNCTUATION, "([{（「『《"


def display_width(text: str) -> int:
    """Columns on a terminal: two for East Asian wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(char) else 1 + _is_wide(char) for char in text)


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), gap: str = "  ") -> list[str]:
    """Columns as wide as their widest cell; those in ``left`` are flush left, the others flush right."""
    widths = [max(display_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [gap.join(_padded(cell, width, column in left)
                     for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def ruled(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), head: int = 1) -> list[str]:
    """``aligned``, with a rule below the ``head`` first rows."""
    lines = aligned(rows, left)
    return [*lines[:head], "-" * max(map(display_width, lines)), *lines[head:]]


def _padded(cell: str, width: int, flush_left: bool) -> str:
    space = " " * (width - display_width(cell))
    return cell + space if flush_left else space + cell


def shortened(text: str, width: int) -> str:
    """At most ``width`` columns, cut in the middle: variants of a method differ at the end of their names."""
    if display_width(text) <= width:
        return text
    tail = (width - 2) // 2
    return f"{_cut(text, width - 2 - tail)}..{_cut(text[::-1], tail)[::-1]}"


def _cut(text: str, width: int) -> str:
    """As much of the beginning as ``width`` columns hold."""
    taken = 0
    for place, char in enumerate(text):
        taken += display_width(char)
        if taken > width:
            return text[:place]
    return text


def wrapped(text: str, width: int = 96, prefix: str = "") -> list[str]:
    """Lines of at most ``width`` columns; the first starts with ``prefix``, the others align to it."""
    room = width - display_width(prefix)
    lines = [""]
    for space, piece in _pieces(text, room):
        if lines[-1] and display_width(lines[-1] + space + piece) > room:
            lines.append(piece)
        else:
            lines[-1] += (space if lines[-1] else "") + piece
    indent = " " * display_width(prefix)
    return [(indent if place else prefix) + line for place, line in enumerate(lines)]


def _pieces(text: str, room: int) -> list[tuple[str, str]]:
    """What a line is filled with: the space before it, and a word, or a wide character with its punctuation."""
    found: list[tuple[str, str]] = []
    for space, word in re.findall(r"(\s*)(\S+)", text):
        current = ""
        for char in word:
            may_break = current and (_is_wide(char) or _is_wide(current[-1]))
            stuck = current and (char in NOT_FIRST or current[-1] in NOT_LAST)
            if (may_break and not stuck) or display_width(current + char) > room:
                found.append((space and " ", current))
                current, space = "", ""
            current += char
        found.append((space and " ", current))
    return found
