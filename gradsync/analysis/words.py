"""How figures and text are put into words on screen: units, digits, and text that is safe to print."""

from __future__ import annotations

import math
import textwrap

NOT_KNOWN = "not known"


def printable(text: object) -> str:
    r"""One line of visible characters: control, format and newline characters become ``\xNN`` escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(text)
    )


def number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant digits and thousands separators: 1234567 -> 1,234,567 and 0.0123456 -> 0.01235."""
    if value is None:
        return NOT_KNOWN
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 <= exponent < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def milliseconds(seconds: float | None) -> str:
    """A duration in ms without its unit; on screen only, files hold seconds."""
    return NOT_KNOWN if seconds is None else number(seconds * 1e3, 3)


def percent(fraction: float | None) -> str:
    """A share between 0 and 1 as per cent with one decimal."""
    return NOT_KNOWN if fraction is None else f"{fraction:.1%}"


def accuracy(value: float | None, meaningful: bool) -> str:
    """An accuracy that is already in per cent, unless the data set makes it meaningless."""
    if not meaningful:
        return "n/a (synthetic)"
    return NOT_KNOWN if value is None else f"{value:.2f}"


def count(value: float | None) -> str:
    """A whole number, or a mean of whole numbers."""
    return NOT_KNOWN if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters, cut in the middle: variants of a method differ at the end of their names."""
    tail = (width - 2) // 2
    return text if len(text) <= width else f"{text[: width - 2 - tail]}..{text[-tail:]}"


def joined(words: list[str]) -> str:
    """``a, b and c``"""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else "none"


def wrapped(text: object, width: int = 96, prefix: str = "") -> list[str]:
    """Printable lines of at most ``width`` characters; the first starts with ``prefix``, the others align to it."""
    return textwrap.wrap(
        printable(text), width, initial_indent=prefix, subsequent_indent=" " * len(prefix), break_on_hyphens=False
    ) or [prefix]
