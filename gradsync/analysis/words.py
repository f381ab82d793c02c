"""How figures are put into words on screen: units and digits."""

from __future__ import annotations

import math

from gradsync.analysis.message import Text, msg

NOT_KNOWN = msg("not known")


def number(value: float | None, digits: int = 4) -> Text:
    """``digits`` significant digits and thousands separators: 1234567 -> 1,234,567 and 0.0123456 -> 0.01235."""
    if value is None:
        return NOT_KNOWN
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -5 <= exponent < 15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def milliseconds(seconds: float | None) -> Text:
    """A duration in ms without its unit; on screen only, files hold seconds."""
    return NOT_KNOWN if seconds is None else number(seconds * 1e3, 3)


def percent(fraction: float | None) -> Text:
    """A share between 0 and 1 as per cent with one decimal."""
    return NOT_KNOWN if fraction is None else f"{fraction:.1%}"


def accuracy(value: float | None, meaningful: bool) -> Text:
    """An accuracy that is already in per cent, unless the data set makes it meaningless."""
    if not meaningful:
        return msg("n/a (synthetic)")
    return NOT_KNOWN if value is None else f"{value:.2f}"


def count(value: float | None) -> Text:
    """A whole number, or a mean of whole numbers."""
    return NOT_KNOWN if value is None else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
