"""From flags to results file: the part of a training script's ``main`` that does not depend on the method."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gradsync import variants
from gradsync.agreement import check_agreement, describe_data, describe_structure
from gradsync.checkpoint import MANIFEST, Checkpoints, Saved
from gradsync.config import Plan, TrainConfig, parse_config
from gradsync.data import smallest_share
from gradsync.datasets import ImageData, choose_dataset, open_dataset
from gradsync.distributed import Launch, ReplicaContext, choose_backend, own_store, process_group, read_launch
from gradsync.errors import UsageError
from gradsync.failure import failure_line, is_echo, is_foreseen
from gradsync.link_probe import probe_links
from gradsync.method import Method
from gradsync.models import GROUPNORM_CNN, build_model, check_normalisation, choose_model, describe_model
from gradsync.outputs import Outputs
from gradsync.placement import describe_environment, place, replica_data
from gradsync.position import here
from gradsync.process import end_with_parent
from gradsync.results import SCHEMA_VERSION, TIME_FORMAT, Resumption, RunResults
from gradsync.resume import changes, find_checkpoint, has_finished
from gradsync.screen import say, show_header, show_links
from gradsync.training import Server, serve, train
from gradsync.watchdog import Watchdog

FIRST_WORD_SECONDS = 20.0


def run_script(choose_method: Callable[[Launch], type[Method]], server: type[Server] | None = None,
               description: str | None = None, argv: list[str] | None = None) -> int:
    """Run one training script; returns its exit code: 0 done, 2 refused input, 1 failed."""
    launch = read_launch()
    if launch.by_agent:
        end_with_parent()

    def prepare() -> Prepared:
        method = choose_method(launch)
        config = parse_config(argv, description, variants.METHODS.get(method.name, ()))
        return Prepared(method, server, launch, config)

    return exit_code(launch, prepare)


class Job(Protocol):
    """Something whose input has been checked, so that what happens from here on is a failure."""

    def run(self) -> None: ...

    def report_failure(self, error: Exception) -> int: ...


def exit_code(launch: Launch, prepare: Callable[[], Job]) -> int:
    """Prepare a job and run it: 0, or one line on stderr and 2 (refused) or 1 (failed)."""
    try:
        prepared = prepare()
    except UsageError as error:
        if launch.local_rank != 0:
            leave_the_word_to_another()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    try:
        prepared.run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception as error:  # whatever it is, the results file and the one line must say so
        return end_process(prepared.report_failure(error))
    return 0


def end_process(status: int) -> int:
    """After a failure, an orderly end may hang or abort in the communication libraries, whose peers are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave_the_word_to_another() -> None:
    """Wait to be ended: every rank has found the same, and one line is enough.

    torchrun ends all ranks as soon as the first has left, so the one that speaks must be the first. Only where
    that does not happen does this return, and the caller speaks for itself.
    """
    time.sleep(FIRST_WORD_SECONDS)


class Prepared:
    """A run whose input has been checked: everything that can be refused is refused before any group exists.

    Raises UsageError that names the flag or file. ``data`` saves opening the data set once more.
    """

    def __init__(self, method: type[Method], server: type[Server] | None, launch: Launch,
                 config: TrainConfig, data: ImageData | None = None) -> None:
        self.launch, self.config = launch, config
        self.method, self.server = method.for_config(config), server and server.for_config(config)
        variants.check(method.name, config)
        self.name = variants.variant_name(method.name, config)
        self.num_servers = variants.num_servers(method.name, config)
        num_replicas = launch.world_size - self.num_servers
        if num_replicas < 1:
            raise UsageError(
                f"{method.title} with --num-servers {self.num_servers} needs {self.num_servers + 1} ranks or more, "
                f"since servers are no workers; got {launch.world_size}: start it with "
                f"torchrun --nproc_per_node={self.num_servers + 1} or more")
        self.backend, self.device = self.choose_backend()
        self.global_batch = config.global_batch(num_replicas)
        name = self.choose_model()
        self.data = data or open_dataset(config, grey=name == GROUPNORM_CNN)
        info = self.data.info
        if info.train_samples < num_replicas:
            raise UsageError(f"--data-dir: {info.train_samples} training samples for {num_replicas} replicas, so one "
                             "would never get a sample; use fewer ranks")
        if info.val_samples == 0:
            raise UsageError("--data-dir: the validation set is empty")
        # Every rank starts from weights of its own; what makes them equal is the method's initial
        # synchronisation, and leaving that out is seen at once. Rank 0's are those of every method.
        self.model = self.build_model(name)
        self.plan = Plan.of(config, info.train_samples, self.global_batch, num_replicas)
        per_epoch = min(info.train_samples, self.plan.epoch_lengths[0] * self.global_batch)
        if smallest_share(per_epoch, self.global_batch, num_replicas) == 1:
            check_normalisation(self.model, info)
        self.outputs = Outputs(Path(config.output_dir), self.name)
        self.results = self.results_so_far(name, per_epoch)
        self.saved = self.take_up() if config.resume else None
        self.has_finished = config.resume and not self.saved and has_finished(self.outputs.results, self.results)
        self.watchdog = Watchdog(self.name, launch, self.num_servers, config.timeout, self.record_failure)

    def choose_backend(self) -> tuple[str, torch.device]:
        return choose_backend(self.config.backend, self.launch)

    def choose_model(self) -> str:
        return choose_model(self.config, choose_dataset(self.config)[0])

    def build_model(self, name: str) -> nn.Module:
        return build_model(name, self.data.info, self.config, seed=self.config.seed + self.launch.rank)

    def results_so_far(self, model: str, samples_per_epoch: int) -> RunResults:
        """What is known before training. ``complete`` is what the file will say if nothing goes wrong."""
        num_replicas, method = self.launch.world_size - self.num_servers, self.method
        parts = ", ".join(variants.variant_parts(method.name, self.config))
        return RunResults(
            schema_version=SCHEMA_VERSION, status="complete", method=self.name,
            title=f"{method.title} ({parts})" if parts else method.title,
            method_family=method.name, variant=parts or None, settings=variants.settings(method.name, self.config),
            synchronous=self.config.mode == "sync", world_size=self.launch.world_size, num_replicas=num_replicas,
            num_servers=self.num_servers, num_workers=num_replicas if self.num_servers else None,
            batch_size=-(-self.global_batch // num_replicas), global_batch_size=self.global_batch,
            steps_per_epoch=self.plan.epoch_lengths[0], samples_per_epoch=samples_per_epoch,
            dataset=self.data.info, model=describe_model(model, self.model), recipe=self.recipe(model),
        )

    def recipe(self, model: str) -> dict[str, Any]:
        """All that must be equal for two runs to be comparable, as it took effect."""
        info = self.data.info
        return {
            **self.config.recipe_flags(),
            "lr": self.plan.learning_rate, "global_batch_size": self.global_batch,
            "dataset": info.name, "model": model, "image_size": info.image_shape[-1],
            "optimizer": "sgd", "loss": "cross_entropy",
        }

    def take_up(self) -> Saved | None:
        """What ``--resume`` goes on from, with the results so far. Raises UsageError as ``gradsync.resume`` does."""
        saved = find_checkpoint(self.outputs.checkpoints, self.results, self.launch)
        if saved:
            self.results = saved.manifest.results
            self.results.resumed_at.append(Resumption(epoch=saved.position.epoch, step=saved.position.step))
        return saved

    def must_agree(self) -> dict[str, Any]:
        """All that must be equal on every rank: what it was told, and what it found on its host."""
        assert self.results.model is not None
        return {
            "method": self.name, **(self.results.settings or {}), "backend": self.backend,
            "probe_links": self.config.probe_links,
            **self.recipe(self.results.model.name), **describe_data(self.data),
            "model's tensors": describe_structure(self.model),
        }

    def run(self) -> None:
        """Train and, on the recorder, write the results and the best model; nothing to do if they are there."""
        config = self.config
        if self.has_finished:
            if self.launch.rank == self.num_servers:
                say(f"Already finished: {self.outputs.results}")
            return
        self.results.start_time = self.results.start_time or datetime.now().strftime(TIME_FORMAT)
        with process_group(self.launch, self.backend, self.device, self.num_servers, config.timeout) as ctx:
            self.watchdog.start(own_store(self.launch))
            check_agreement(ctx, self.must_agree())
            self.note_environment(ctx)
            checkpoints = Checkpoints(ctx, self.plan, self.outputs.checkpoints, config.checkpoint_every, self.saved)
            checkpoints.agree()
            if ctx.is_recorder:
                show_header(self.results, ctx, self.plan, self.data.note)
                self.note_short_batch()
                self.note_checkpoint()
            self.probe_links(ctx)
            module = place(self.model, config, ctx)
            trace = self.outputs.trace(ctx.rank) if config.profile else None
            if ctx.is_server:
                assert self.server is not None
                serve(self.server(module, config, ctx, self.plan), self.plan, checkpoints, trace)
            else:
                data = replica_data(self.data, config, ctx, self.global_batch, next(module.parameters()).dtype)
                method = self.method(module, config, ctx, self.plan)
                best = train(method, data, self.plan, self.results, checkpoints, trace)
                if ctx.is_recorder:
                    here.enter("writing the results")
                    self.write(best)
                    checkpoints.remove()
            here.enter("leaving")
        self.watchdog.stop()

    def note_environment(self, ctx: ReplicaContext) -> None:
        """Write down where this runs and, of a resumed run, what is not as it was."""
        environment = describe_environment(ctx)
        if self.saved:
            self.results.resumed_at[-1].changed = changes(self.results.environment, environment)
        self.results.environment = environment

    def probe_links(self, ctx: ReplicaContext) -> None:
        """As ``--probe-links`` asks; a resumed run keeps what its first part has found."""
        if not self.config.probe_links or self.results.links is not None:
            return
        if ctx.world_size > 1:
            here.enter("link probe")
            self.results.links = probe_links(ctx)
        if ctx.is_recorder:
            show_links(self.results.links)

    def note_short_batch(self) -> None:
        samples = self.data.info.train_samples
        if samples < self.global_batch:
            say(f"Note: {samples} training samples are fewer than one global batch of {self.global_batch}: "
                "each epoch is one short step")

    def note_checkpoint(self) -> None:
        if self.saved:
            reached = self.saved.position
            left = (f"next is epoch {reached.epoch}, step {reached.step + 1}"
                    if reached.epoch <= len(self.plan.epoch_lengths) else "all epochs are done")
            say(f"Resuming from the checkpoint in {self.outputs.checkpoints}: {left}")
            for change in self.results.resumed_at[-1].changed:
                say(f"Note: another environment than the checkpoint's: {change}")
        elif self.config.resume:
            say(f"Note: no checkpoint in {self.outputs.checkpoints}: starting from the beginning")
        elif (self.outputs.checkpoints / MANIFEST).exists():
            say(f"Note: {self.outputs.checkpoints} holds the checkpoint of a run that did not finish; this one starts "
                "from the beginning and will replace it. --resume would go on from there")

    def write(self, best: dict[str, torch.Tensor]) -> None:
        """Replace an earlier run's results and best model, now that this one has succeeded."""
        self.outputs.write(self.results, best)
        say(f"Best validation accuracy: {self.results.best_accuracy:.2f}%")
        say(f"Results: {self.outputs.results}, best model: {self.outputs.best_model}")
        if self.config.profile:
            say(f"Traces: {self.outputs.traces}*.json")

    def report_failure(self, error: Exception) -> int:
        """One line, from the rank that knows the cause; a trace for what we did not foresee. Returns the exit code."""
        if not is_foreseen(error):
            traceback.print_exc()
        line = failure_line(error, self.name, self.launch.rank)
        return self.watchdog.report(line, echo=is_echo(error))

    def record_failure(self, line: str) -> None:
        """A results file that says failed."""
        if here.stage != "leaving":  # then the results are complete, and written
            self.outputs.write_failure(self.results, line)
