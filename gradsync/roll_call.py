"""How the ranks of several hosts tell an attempt of their job from those before it, whose traces are in the store."""

from __future__ import annotations

import hashlib
import secrets
import time

import torch.distributed as dist

from gradsync.errors import RunError

PATIENCE_SECONDS = 300.0  # for the ranks of all hosts to start, or to start again
POLL_SECONDS = 0.05


def roll_call(store: dist.Store, rank: int, world_size: int, patience: float = PATIENCE_SECONDS) -> str:
    """A name of this attempt, the same on all its ranks, and of no other one.

    Each rank signs in with a random word. Rank 0 draws up the roll of these, anew whenever it changes: it may still
    hold the word of a rank that has ended. A roll counts once all ranks have found their own words in it, and those
    that have ended cannot. Raises RunError if that does not come about within ``patience`` seconds.
    """
    word, seen, give_up = secrets.token_hex(8), "", time.monotonic() + patience
    ranks = [f"word/{other}" for other in range(world_size)]
    store.set(ranks[rank], word)
    while time.monotonic() < give_up:
        if rank == 0 and all(store.check([key]) for key in ranks):
            store.set("roll", " ".join(store.get(key).decode() for key in ranks))
        roll = store.get("roll").decode() if store.check(["roll"]) else ""
        name = hashlib.blake2b(roll.encode(), digest_size=8).hexdigest()
        if roll and roll.split()[rank] == word and name != seen:
            store.add(f"seen/{name}", 1)
            seen = name
        if seen and store.add(f"seen/{seen}", 0) == world_size:
            return seen
        time.sleep(POLL_SECONDS)
    raise RunError(f"rank {rank} has not met the ranks of all hosts within {patience:g} s; has a host not started, or "
                   "not restarted, its ranks?")
