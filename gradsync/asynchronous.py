"""A parameter server that applies every push at once: asynchronous SGD, with or without a bound on staleness.

The recipe is kept as equal as an asynchronous method allows. A push is applied at the schedule's rate x n_r / n (its
samples over those of the whole global batch), and the schedule moves on by one step for every W pushes of W workers,
so a round of pushes moves the parameters about as far as one synchronous update of the same global batch. Momentum
decays once per push: its memory spans 1 / (1 - momentum) pushes instead of as many rounds, and the sum of what one
gradient contributes, rate / (1 - momentum), stays what it is. Weight decay is part of each push's gradient. A push
without samples changes nothing.

Staleness of a push: updates that the server has applied between this worker's last pull and this push. With W workers
at the same speed it is W - 1. Stale synchronous parallel (Ho et al. 2013, "More effective distributed ML via a stale
synchronous parallel parameter server") bounds how far workers drift apart: whoever has pushed c steps gets
parameters for the next one only when every worker has pushed at least c - K. With K = 0 nobody starts step t + 1
before all have pushed step t, and yet each push is an update of its own.

With several servers each decides for its own shard, in the order in which requests reach it.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from typing import Any

import torch
from torch import nn

from gradsync.config import Plan, TrainConfig
from gradsync.distributed import ReplicaContext
from gradsync.errors import PeerLost
from gradsync.link import END_EPOCH, PULL, PUSH, SETTLED_PULL, Request
from gradsync.shard_server import ShardServer


class AsynchronousServer(ShardServer):
    """Answers requests in the order of their arrival.

    One thread a worker listens for its requests, so that each receive names its source; one thread, this one, answers
    them, so that nothing needs a lock and NCCL is never called from two threads.
    """

    def __init__(self, module: nn.Module, config: TrainConfig, ctx: ReplicaContext, plan: Plan) -> None:
        super().__init__(module, config, ctx, plan)
        self.received = self.gradient_buffer()
        self.lead = config.staleness if config.mode == "ssp" else math.inf

    def answer_until_epoch_ends(self) -> None:
        """An epoch begins with all workers at the same parameters, which their last settled pull gave them."""
        workers = self.ctx.replica_ranks
        self.inbox: queue.SimpleQueue[tuple[int, Request | PeerLost]] = queue.SimpleQueue()
        self.pushes = dict.fromkeys(workers, 0)
        self.pulled_at = dict.fromkeys(workers, 0)  # updates at a worker's last pull
        self.staleness: Counter[int] = Counter()
        self.waiting: list[int] = []
        self.settling: list[int] = []
        for worker in workers:
            threading.Thread(target=self.listen, args=(worker,), daemon=True).start()
        ended = 0
        while ended < len(workers):
            with self.clock.phase("wait"):
                worker, request = self.inbox.get()
            if isinstance(request, PeerLost):
                raise request
            ended += request.command == END_EPOCH
            self.answer(worker, request)

    def listen(self, worker: int) -> None:
        """Hand on what ``worker`` says until it ends its epoch, or is lost."""
        command = PULL
        while command != END_EPOCH:
            try:
                request = self.link.receive_request(worker)
            except PeerLost as error:
                self.inbox.put((worker, error))
                return
            self.inbox.put((worker, request))
            command = request.command

    def answer(self, worker: int, request: Request) -> None:
        if request.command == PUSH:
            self.apply(worker, request)
        elif request.command == PULL:
            self.waiting.append(worker)
        elif request.command == SETTLED_PULL:
            self.settling.append(worker)
        self.release()

    def release(self) -> None:
        """Send parameters to those who may have them: not too far ahead; settled ones when all workers ask for them."""
        slowest = min(self.pushes.values())
        ready = [worker for worker in self.waiting if self.pushes[worker] - slowest <= self.lead]
        self.waiting = [worker for worker in self.waiting if worker not in ready]
        if len(self.settling) == self.ctx.num_replicas:
            ready, self.settling = self.settling, []
        for worker in ready:
            with self.clock.phase("send_parameters"):
                self.send_parameters(worker)
            self.pulled_at[worker] = self.updates

    @torch.no_grad()
    def apply(self, worker: int, request: Request) -> None:
        """One push, one update; each piece is updated when it has arrived."""
        arrivals = self.link.receive(self.received, self.pieces, worker)
        for piece in self.pieces:
            with self.clock.phase("receive_gradients"):
                number = next(arrivals)
            with self.clock.phase("update"):
                if request.samples and not request.overflow:
                    self.optimizer.update(number, self.received.tensor[piece], factor=request.weight)
        self.staleness[self.updates - self.pulled_at[worker]] += 1
        self.pushes[worker] += 1
        self.count_update(request.overflow)

    def asynchrony(self) -> dict[str, Any]:
        return {"pushes_per_worker": list(self.pushes.values()),
                "staleness": {str(updates): pushes for updates, pushes in sorted(self.staleness.items())}}
