"""Flags and paths as they stand on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def spelled(flag: str) -> str:
    """A setting's name on the command line."""
    return f"--{flag.replace('_', '-')}"


def without(names: tuple[str, ...], flags: Sequence[str]) -> list[str]:
    """The flags, save ``names`` and their values."""
    kept: list[str] = []
    rest = iter(flags)
    for flag in rest:
        if flag in names:
            next(rest, None)
        elif flag.split("=")[0] not in names:
            kept.append(flag)
    return kept


def shown(path: Path) -> str:
    """As short as the user may type it from here."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)
