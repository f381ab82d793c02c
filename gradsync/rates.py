"""Rates of links, as tc and network people write them."""

from __future__ import annotations

import re

from gradsync.errors import UsageError

UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bits_per_second(rate: str, flag: str = "--rate") -> float:
    """``1gbit``, ``100mbit``, ``2.5gbit``. Raises UsageError, which names ``flag``, for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmg]bit)", rate.lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{flag} {rate}: give a number and kbit, mbit or gbit, as in 1gbit")
    return float(match[1]) * UNITS[match[2]]
