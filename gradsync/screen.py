"""What one rank shows on the screen: header, progress bar, the lines of each epoch."""

from __future__ import annotations

import io
import os
import sys
import time

import torch
from tqdm import tqdm

from gradsync.config import Plan
from gradsync.distributed import ReplicaContext
from gradsync.method import Tally
from gradsync.probed import Links
from gradsync.results import EpochResults, RunResults

REFRESH_SECONDS = 0.25


def say(line: str) -> None:
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()  # ranks share the screen, and a pipe would hold the lines back


def show_header(results: RunResults, ctx: ReplicaContext, plan: Plan, note: str) -> None:
    """Who does what, on which data and model, with which recipe."""
    servers, replicas = _ranks(range(ctx.num_servers)), _ranks(ctx.replica_ranks)
    roles = f"PS: {servers}, Workers: {replicas}" if ctx.num_servers else f"Replicas: {replicas}"
    data, model, env = results.dataset, results.model, results.environment
    assert data is not None
    assert model is not None
    assert env is not None
    say(f"Starting {results.title} Training")
    say(f"World Size: {ctx.world_size}, {roles}")
    say(f"Data: {data.name}, {data.train_samples:,} training and {data.val_samples:,} validation images, "
        f"{data.num_classes} classes" + (f" ({note})" if note else ""))
    say(f"Model: {model.name}, {model.parameters:,} parameters, {model.gradient_bytes / 1e6:.2f} MB of gradients "
        f"in {model.tensors} tensors")
    say(f"Recipe: global batch {results.global_batch_size}, {plan.total_steps} steps in {len(plan.epoch_lengths)} "
        f"epoch(s), learning rate {plan.learning_rate:g} ({plan.schedule})")
    say(f"Device: {env.device}, backend {env.backend}, {env.threads_per_rank} CPU thread(s) per rank")


def show_links(links: Links | None) -> None:
    if links is None:
        say("Note: --probe-links: one rank has no links, so nothing is probed")
        return
    pair = min(links.pairs, key=lambda pair: pair.one_way[-1].algbw)
    reduced = links.all_reduce[-1]
    say(f"Links (probed in {links.seconds:.1f}s): {links.bandwidth / 1e6:,.1f} MB/s; slowest pair: rank "
        f"{pair.ranks[0]} and rank {pair.ranks[1]}, {pair.one_way[-1].algbw / 1e6:,.1f} MB/s, both ways at once "
        f"{pair.both_ways.algbw / 1e6:,.1f} MB/s, latency {pair.latency * 1e6:,.0f} us; all-reduce of "
        f"{reduced.bytes / 2**20:g} MiB: algbw {reduced.algbw / 1e6:,.1f}, busbw {reduced.busbw / 1e6:,.1f} MB/s")


def show_probe(results: RunResults) -> None:
    probe = results.probe
    if probe is None or probe.exposed_communication is None:
        return
    say(f"Exposed communication (probe): {_ms(probe.exposed_communication)} per step "
        f"(IQR {_ms(probe.exposed_communication_iqr)}, {probe.rounds} rounds)")


def show_epoch(e: EpochResults) -> None:
    """The lines of a finished epoch; milliseconds only here, never on disk."""
    number = f"[Epoch {e.epoch}]"
    say(f"{number} Train Loss: {e.train_loss:.4f}, Accuracy: {e.train_accuracy:.2f}%")
    say(f"{number} Train Time: {e.train_time:.2f}s, Throughput: {e.train_throughput:.2f} img/s")
    say(f"{number} Avg Batch Time: {_ms(e.avg_batch_time)}")
    if e.avg_comm_time_pull is not None:
        say(f"{number} Avg Comm Time (Pull): {_ms(e.avg_comm_time_pull)}, (Push): {_ms(e.avg_comm_time_push)}")
    elif e.avg_comm_time is not None:
        say(f"{number} Avg Comm Time (All-Reduce): {_ms(e.avg_comm_time)}")
    say(f"{number} Val Loss: {e.val_loss:.4f}, Accuracy: {e.val_accuracy:.2f}%")
    if e.server is not None:
        say(f"[PS] Epoch [{e.epoch}] Completed in {e.train_time:.2f}s")
        say(f"[PS] Avg Comm Time (Send Params): {_ms(e.server.send_parameters)}, "
            f"(Recv Grads): {_ms(e.server.receive_gradients)}")
        say(f"[PS] Avg Update Time: {_ms(e.server.update)}, Wait for Workers: {_ms(e.server.wait)}")


def _ranks(ranks: range) -> str:
    return f"Rank {ranks[0]}" + (f"-{ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1000:.2f}ms"


class Progress:
    """The progress bar of one epoch, with this replica's running loss and accuracy and the job's img/s.

    It is refreshed a few times a second at most, and never makes the host wait for a GPU: the running sums
    are copied in the background and shown once they have arrived.
    """

    def __init__(self, ctx: ReplicaContext, tally: Tally) -> None:
        role = f"[Worker-{ctx.rank}]" if ctx.num_servers else f"[Rank-{ctx.rank}]"
        self._tally = tally
        self._text = [""]
        # A log file, or a terminal that has no size, gets one line at the end instead of a bar drawn over itself.
        self._live = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
        self._bar = tqdm(
            total=len(tally.losses), initial=tally.steps, desc=f"{role} Train Phase", ascii=" #",
            disable=not ctx.is_recorder,
            bar_format="{desc}: {percentage:3.0f}%|{bar:24}| {postfix[0]}", postfix=self._text,
            mininterval=REFRESH_SECONDS, file=sys.stderr if self._live else io.StringIO(),
        )
        self._on_gpu = ctx.device.type == "cuda"
        self._copy = torch.zeros(2, dtype=torch.float64, pin_memory=self._on_gpu)  # mean loss, correct
        self._arrival: torch.cuda.Event | None = None
        self._samples_at_copy = 0
        self.start(0.0)

    def start(self, seconds: float) -> None:
        """The clock starts, after ``seconds`` in earlier parts of the epoch."""
        self._last = time.perf_counter()
        self._start = self._last - seconds

    def update(self) -> None:
        if self._bar.disable:
            return
        self._bar.update()
        now = time.perf_counter()
        if now - self._last >= REFRESH_SECONDS:
            self._last = now
            if self._arrival is None or self._arrival.query():
                self._show()
                self._start_copy()

    def close(self) -> None:
        """Show the final figures. Call when the clock has stopped: on a GPU this waits for the device."""
        if not self._bar.disable:
            self._start_copy()
            if self._arrival is not None:
                self._arrival.synchronize()
            self._show()
            if not self._live:
                say(str(self._bar))
        self._bar.close()

    def _start_copy(self) -> None:
        self._samples_at_copy = self._tally.local_samples
        mean = self._tally.losses[: max(1, self._tally.steps)].mean()
        self._copy.copy_(torch.stack([mean, self._tally.correct.double()]), non_blocking=True)
        if self._on_gpu:
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    def _show(self) -> None:
        if not self._samples_at_copy:
            return
        loss, correct = self._copy.tolist()
        rate = self._tally.global_samples / (time.perf_counter() - self._start)
        accuracy = 100 * correct / self._samples_at_copy
        self._text[0] = f"loss={loss:.4f}, acc={accuracy:.2f}%, throughput={rate:.1f} img/s"
