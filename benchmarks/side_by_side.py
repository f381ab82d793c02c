"""Figures of rows that were measured in turn, and the table that shows them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

STEP_REFERENCES = ("stock_ddp", "baseline_ddp")
EXCHANGE_REFERENCES = ("raw_p2p", "raw_all_reduce")


@dataclass(frozen=True)
class Measurement:
    """One model at one number of ranks. ``exchange`` and ``step``: seconds by row, a figure a round."""

    model: str
    ranks: int
    hosts: int
    batch_size: int
    image_size: int
    gradient_bytes: int
    threads: int
    torch: str
    exchange: dict[str, list[float]]
    step: dict[str, list[float]]


def ratios(figures: dict[str, list[float]], row: str, reference: str) -> list[float]:
    """Of each round: ``row``'s time over ``reference``'s in the same round."""
    return [own / other for own, other in zip(figures[row], figures[reference], strict=True)]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def table(measurement: Measurement) -> str:
    """Text; a dash where a row has no such figure."""
    rows = list(dict.fromkeys([*measurement.step, *measurement.exchange]))
    rounds = len(next(iter([*measurement.step.values(), *measurement.exchange.values()])))
    width = max(map(len, rows))
    lines = [
        f"{measurement.model}, {measurement.gradient_bytes / 1e6:.1f} MB of gradients, {measurement.ranks} ranks on "
        f"{measurement.hosts} host(s), {measurement.batch_size} images of {measurement.image_size}x"
        f"{measurement.image_size} per replica, {measurement.threads} thread(s) per rank, torch {measurement.torch}",
        f"medians (quartiles) of n = {rounds} rounds; ratios are medians of the rounds' own",
        "",
        f"{'':{width}}  {'exchange alone, ms':>24}  {'x raw p2p':>9}  {'x raw a-r':>9}  {'full step, ms':>24}  "
        f"{'x stock DDP':>18}  {'x our DDP':>18}",
    ]
    for row in rows:
        cells = [_time(measurement.exchange, row), *(_ratio(measurement.exchange, row, other, 9)
                                                     for other in EXCHANGE_REFERENCES),
                 _time(measurement.step, row), *(_ratio(measurement.step, row, other, 18, spread=True)
                                                 for other in STEP_REFERENCES)]
        lines.append(f"{row:{width}}  " + "  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _time(figures: dict[str, list[float]], row: str) -> str:
    if row not in figures:
        return f"{'-':>24}"
    low, median, high = (1000 * value for value in quartiles(figures[row]))
    return f"{f'{median:.1f} ({low:.1f} - {high:.1f})':>24}"


def _ratio(figures: dict[str, list[float]], row: str, reference: str, width: int, spread: bool = False) -> str:
    if row not in figures or reference not in figures:
        return f"{'-':>{width}}"
    low, median, high = quartiles(ratios(figures, row, reference))
    return f"{f'{median:.2f} ({low:.2f} - {high:.2f})' if spread else f'{median:.2f}':>{width}}"
