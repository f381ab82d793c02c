"""What ``--probe-links`` leaves in a results file: the job's links, and how long the model computes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from gradsync.section import Bandwidth, Count, Duration, Seconds, Section


class LinkSample(Section):
    """One operation at one message size: median and quartiles of its repeats, each that of the slowest rank.

    algbw and busbw are those of nccl-tests; see ``gradsync/bandwidth.py``.
    """

    bytes: Annotated[int, Field(gt=0)]
    repeats: Annotated[int, Field(gt=0)]
    seconds: Duration
    low: Duration
    high: Duration
    algbw: Bandwidth
    busbw: Bandwidth


class LinkPair(Section):
    """Two ranks, while the others are quiet."""

    ranks: Annotated[list[Count], Field(min_length=2, max_length=2)]
    same_host: bool
    latency: Duration  # half a round trip of the smallest message
    one_way: Annotated[list[LinkSample], Field(min_length=1, max_length=64)]  # half a round trip, the message returned
    both_ways: LinkSample  # the largest of these messages in each direction, both at once


class Links(Section):
    """What ``--probe-links`` measured before training, over the job's own groups, between ranks on its own devices."""

    hosts: Annotated[list[Count], Field(min_length=2)]  # of each rank: the number of its host
    memory: str  # where the messages of a pair lie: cpu or cuda; those of an all-reduce lie on the rank's device
    all_reduce: Annotated[list[LinkSample], Field(min_length=1, max_length=64)]  # over all ranks
    pairs: Annotated[list[LinkPair], Field(min_length=1, max_length=64)]  # rank 0 and others; all, unless they are many
    shift: LinkSample | None  # every rank to its counterpart on the next host, all at once, so that hosts share a link
    latency: Duration  # of the slowest pair
    bandwidth: Bandwidth  # of a host's link in one direction; on one host, of a rank's
    seconds: Seconds  # that the probe took

    @model_validator(mode="after")
    def _pairs_are_ranks(self) -> Links:
        if any(rank >= len(self.hosts) for pair in self.pairs for rank in pair.ranks):
            raise ValueError(f"a pair names a rank beyond the {len(self.hosts)} of the job")
        return self


class GradientGroup(Section):
    """Gradients that backward computes one after the other; counted as messages, the tensors are one each."""

    tensors: Count
    bytes: Count
    factor_bytes: Count  # what PowerSGD would send of them, at the rank of the run: factors of matrices ...
    dense_bytes: Count  # ... and what it leaves as it is
    ready: Seconds  # when the last of them is there, since backward began


class ComputeProfile(Section):
    """One step without synchronisation, begun by all replicas at once: medians over the rounds of the slowest."""

    rounds: Count
    forward: Seconds
    gradients: list[GradientGroup]  # in the order in which backward computes them
    update: Seconds
    compression: dict[str, Seconds]  # by --compress: what it computes in a step, were nothing sent

    @property
    def backward(self) -> float:
        return self.gradients[-1].ready

    @property
    def step(self) -> float:
        """Seconds of the whole step without synchronisation."""
        return self.forward + self.backward + self.update
