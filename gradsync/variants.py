"""The variants of each method: which flags choose them, what a variant is called, which choices go together.

A method's plain form has the method's own name (``all_reduce``); a variant's name adds what differs from it
(``all_reduce_overlapped_fp16``). The names stand in results files and in ``--methods``, so they are written and
read here. Nothing here imports torch: bad input is refused before that takes its seconds.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from gradsync.config import METHOD_CHOICES, TrainConfig
from gradsync.errors import UsageError

# The methods that a comparison runs, and the flags of each beside those that all share.
METHODS: dict[str, tuple[str, ...]] = {
    "baseline_ddp": ("bucket_mb", "compress", "powersgd_rank"),
    "all_reduce": ("variant", "bucket_mb", "compress", "powersgd_rank"),
    "ps": ("transfer", "chunk_mb", "num_servers", "mode", "staleness"),
}
# What a flag adds to a variant's name where its value is not the default. Sizes that only tune are left out.
_NAME_PARTS = {"variant": "{}", "compress": "{}", "transfer": "{}", "num_servers": "{}servers", "mode": "{}",
               "staleness": "staleness{}"}
_LEAST = {"num_servers": 1, "staleness": 0}
_DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}


def settings(method: str, config: TrainConfig) -> dict[str, Any]:
    """The flags of ``method`` alone, as they were given."""
    return {flag: getattr(config, flag) for flag in METHODS.get(method, ())}


def check(method: str, config: TrainConfig) -> None:
    """Raises UsageError where flags of ``method`` contradict each other."""
    chosen = settings(method, config)
    if chosen.get("staleness") != _DEFAULTS["staleness"] and chosen.get("mode") in ("sync", "async"):
        raise UsageError(f"--staleness {config.staleness}: bounds nothing in --mode {config.mode}; add --mode ssp")
    if method == "baseline_ddp" and config.compress == "powersgd":
        if config.channels_last:
            raise UsageError("--channels-last: torch's PowerSGD hook takes no gradients in this format; leave it out, "
                             "or use all_reduce_train.py --variant overlapped")
        if config.amp == "fp16":
            raise UsageError("--amp fp16: torch's PowerSGD hook would keep the infinities of a skipped step in its "
                             "residuals for good; use --amp bf16, or all_reduce_train.py --variant overlapped")


def num_servers(method: str, config: TrainConfig) -> int:
    """Ranks that serve and compute no gradients: they are the first ones."""
    return config.num_servers if "num_servers" in settings(method, config) else 0


def variant_parts(method: str, config: TrainConfig) -> list[str]:
    """What sets this variant apart from the method's plain form, a word each; empty for the plain form."""
    chosen = settings(method, config)
    return [part.format(chosen[flag]) for flag, part in _NAME_PARTS.items()
            if flag in chosen and chosen[flag] != _DEFAULTS[flag]]


def variant_name(method: str, config: TrainConfig) -> str:
    """As in results_<name>.json: ``all_reduce``, ``ps_pipelined_2servers`` ..."""
    return "_".join([method, *variant_parts(method, config)])


def parse_variant_name(name: str) -> tuple[str, dict[str, Any]]:
    """The method and the settings that ``name`` stands for. Raises ValueError if it stands for none."""
    method = next((known for known in METHODS if name == known or name.startswith(f"{known}_")), None)
    if method is None:
        raise ValueError(name)
    chosen: dict[str, Any] = {}
    for word in name.removeprefix(method).split("_")[1:]:
        flag, value = _read_part(method, word)
        if flag in chosen:
            raise ValueError(name)
        chosen[flag] = value
    return method, chosen


def _read_part(method: str, word: str) -> tuple[str, Any]:
    for flag in METHODS[method]:
        part = _NAME_PARTS.get(flag)
        if part is None:
            continue
        if flag in METHOD_CHOICES:
            if word in METHOD_CHOICES[flag]:
                return flag, word
        elif (match := re.fullmatch(part.format("([0-9]{1,4})"), word)) and int(match[1]) >= _LEAST[flag]:
            return flag, int(match[1])
    raise ValueError(word)
