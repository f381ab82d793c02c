"""What the cost model says in words, no more than its error allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from gradsync.analysis.cost_model import Link
from gradsync.analysis.message import Text, enumerated, msg
from gradsync.analysis.projection import Subject, projected_step
from gradsync.analysis.words import milliseconds

COUNTS = tuple(sorted({*(2**power for power in range(1, 13)), *(3 * 2**power for power in range(11))}))
DDP = "baseline_ddp"
COMPRESSED = ("baseline_ddp_fp16", "all_reduce_overlapped_powersgd")
SERVER = "ps_pipelined"
BANDWIDTH, LATENCY = msg("the link's bandwidth"), msg("the latency of messages")
ADDING, COMPUTING = msg("adding up received gradients"), msg("computing")


def answers(subject: Subject, name: str, link: Link, replicas: int, told_apart: float) -> list[Text]:
    """Sentences on ``link``, called ``name``. ``told_apart``: the relative difference from which two predictions do."""
    said = [bottleneck(subject, name, link, count) for count in dict.fromkeys((replicas, 64))]
    said += [pays(subject, row, name, link, told_apart) for row in COMPRESSED]
    return [*said, loses(subject, name, link, told_apart)]


def bottleneck(subject: Subject, name: str, link: Link, replicas: int) -> Text:
    """What would shorten a step of DDP most if it took no time."""
    step = projected_step(subject, DDP, link, replicas)
    gains = what_ifs(subject, DDP, link, replicas)
    largest = max(gains, key=lambda what: gains[what])
    return msg("{link}, {count} replicas: a step of {row} takes {step} ms; your bottleneck is {what}: without it, the "
               "step would be {gain} shorter ({others}).", link=name, count=replicas, row=DDP,
               step=milliseconds(step), what=largest, gain=f"{gains[largest]:.0%}",
               others=enumerated(msg("{what}: {gain}", what=what, gain=f"{gain:.0%}")
                                 for what, gain in gains.items() if what is not largest))


def what_ifs(subject: Subject, row: str, link: Link, replicas: int) -> dict[Text, float]:
    """By how much, as a share, a step would be shorter if one thing took no time."""
    step = projected_step(subject, row, link, replicas)
    idle = subject.profile.model_copy(update={
        "forward": 0.0, "update": 0.0, "compression": dict.fromkeys(subject.profile.compression, 0.0),
        "gradients": [group.model_copy(update={"ready": 0.0}) for group in subject.profile.gradients]})
    instant = replace(subject, costs=replace(subject.costs, latency=0.0, message=0.0))
    others = {
        BANDWIDTH: projected_step(subject, row, replace(link, bandwidth=math.inf), replicas),
        LATENCY: projected_step(instant, row, replace(link, latency=0.0), replicas),
        ADDING: projected_step(replace(subject, costs=replace(subject.costs, reduce=0.0)), row, link, replicas),
        COMPUTING: projected_step(replace(subject, profile=idle), row, link, replicas),
    }
    return {what: 1 - without / step for what, without in others.items()}


def pays(subject: Subject, row: str, name: str, link: Link, told_apart: float) -> Text:
    """From how many hosts on ``row`` is faster than DDP."""
    where = stretches(subject, row, DDP, link, told_apart)
    if faster := [stretch for sign, stretch in where if sign > 0]:
        first, last = faster[0]
        if last == COUNTS[-1]:
            return msg("{link}: {row} would pay from {first} hosts on.", link=name, row=row, first=first)
        return msg("{link}: {row} would pay from {first} to {last} hosts.", link=name, row=row, first=first, last=last)
    if all(sign < 0 for sign, _ in where):
        return msg("{link}: {row} would not pay at any number of hosts up to {last}: it is slower.", link=name, row=row,
                   last=COUNTS[-1])
    return msg("{link}: whether {row} would pay cannot be told at any number of hosts up to {last}: nowhere is it "
               "faster by more than the model's error.", link=name, row=row, last=COUNTS[-1])


def loses(subject: Subject, name: str, link: Link, told_apart: float) -> Text:
    """From how many replicas on a parameter server falls behind DDP."""
    where = stretches(subject, SERVER, DDP, link, told_apart)
    slower = [stretch for sign, stretch in where if sign < 0]
    if not slower:
        return msg("{link}: {row} is nowhere slower than {other} by more than the model's error.", link=name,
                   row=SERVER, other=DDP)
    return msg("{link}: {row}, with one server, is slower than {other} from {first} replicas on.", link=name,
               row=SERVER, other=DDP, first=slower[0][0])


def stretches(subject: Subject, row: str, other: str, link: Link, told_apart: float
              ) -> list[tuple[int, tuple[int, int]]]:
    """First and last of consecutive numbers of replicas with one answer: 1 ``row`` is faster, -1 slower, 0 unknown."""
    signs = []
    for count in COUNTS:
        ratio = projected_step(subject, other, link, count) / projected_step(subject, row, link, count)
        signs.append((ratio > 1 + told_apart) - (ratio < 1 / (1 + told_apart)))
    return [(sign, (counts[0], counts[-1])) for sign, counts in _runs(signs)]


def _runs(signs: Sequence[int]) -> list[tuple[int, list[int]]]:
    pairs = zip(signs, COUNTS, strict=True)
    return [(sign, [count for _, count in group]) for sign, group in itertools.groupby(pairs, key=lambda pair: pair[0])]
