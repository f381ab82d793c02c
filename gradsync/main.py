"""From flags to results file: the part of a training script's ``main`` that does not depend on the method."""

from __future__ import annotations

import io
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from gradsync.agreement import check_agreement, describe_data, describe_structure
from gradsync.config import Plan, TrainConfig, parse_config
from gradsync.data import ReplicaData, smallest_share
from gradsync.datasets import ImageData, choose_dataset, open_dataset
from gradsync.distributed import Launch, ReplicaContext, choose_backend, own_store, process_group, read_launch
from gradsync.errors import UsageError
from gradsync.failure import failure_line, is_echo, is_foreseen
from gradsync.files import below, remove_stale_temporaries, write_together
from gradsync.method import Method
from gradsync.models import GROUPNORM_CNN, build_model, check_normalisation, choose_model, describe_model
from gradsync.position import here
from gradsync.process import end_with_parent
from gradsync.results import SCHEMA_VERSION, TIME_FORMAT, Environment, RunResults, encode_results, write_results
from gradsync.screen import say, show_header
from gradsync.training import Server, serve, train
from gradsync.watchdog import Watchdog

FIRST_WORD_SECONDS = 20.0


def run_script(choose_method: Callable[[Launch], type[Method]], server: type[Server] | None = None,
               description: str | None = None, argv: list[str] | None = None) -> int:
    """Run one training script; returns its exit code: 0 done, 2 refused input, 1 failed."""
    launch = read_launch()
    if launch.by_agent:
        end_with_parent()
    try:
        prepared = Prepared(choose_method(launch), server, launch, parse_config(argv, description))
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
        self.method, self.server, self.launch, self.config = method, server, launch, config
        num_replicas = launch.world_size - method.num_servers
        if num_replicas < 1:
            raise UsageError(f"{method.title} needs {method.num_servers + 1} ranks or more (a server and workers), "
                             f"got {launch.world_size}: start it with torchrun --nproc_per_node=2 or more")
        self.backend, self.device = choose_backend(config.backend, launch)
        self.global_batch = config.global_batch(num_replicas)
        name = choose_model(config, choose_dataset(config)[0])
        self.data = data or open_dataset(config, grey=name == GROUPNORM_CNN)
        info = self.data.info
        if info.train_samples < num_replicas:
            raise UsageError(f"--data-dir: {info.train_samples} training samples for {num_replicas} replicas, so one "
                             "would never get a sample; use fewer ranks")
        if info.val_samples == 0:
            raise UsageError("--data-dir: the validation set is empty")
        # Every rank starts from weights of its own; what makes them equal is the method's initial
        # synchronisation, and leaving that out is seen at once. Rank 0's are those of every method.
        self.model = build_model(name, info, config, seed=config.seed + launch.rank)
        self.plan = Plan.of(config, info.train_samples, self.global_batch)
        per_epoch = min(info.train_samples, self.plan.epoch_lengths[0] * self.global_batch)
        if smallest_share(per_epoch, self.global_batch, num_replicas) == 1:
            check_normalisation(self.model, info)
        self.output_dir = Path(config.output_dir)
        check_writable(self.output_dir)
        self.results = self.results_so_far(name, per_epoch)
        self.watchdog = Watchdog(method.name, launch, method.num_servers, config.timeout, self.record_failure)

    def results_so_far(self, model: str, samples_per_epoch: int) -> RunResults:
        """What is known before training. ``complete`` is what the file will say if nothing goes wrong."""
        num_replicas = self.launch.world_size - self.method.num_servers
        return RunResults(
            schema_version=SCHEMA_VERSION, status="complete", method=self.method.name, title=self.method.title,
            synchronous=True, world_size=self.launch.world_size, num_replicas=num_replicas,
            num_servers=self.method.num_servers, num_workers=num_replicas if self.method.num_servers else None,
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

    def must_agree(self) -> dict[str, Any]:
        """All that must be equal on every rank: what it was told, and what it found on its host."""
        return {
            "method": self.method.name, "backend": self.backend, **self.recipe(self.results.model.name),
            **describe_data(self.data), "model's tensors": describe_structure(self.model),
        }

    def run(self) -> None:
        """Train and, on the recorder, write the results and the best model."""
        config = self.config
        self.results.start_time = datetime.now().strftime(TIME_FORMAT)
        with process_group(self.launch, self.backend, self.device, self.method.num_servers, config.timeout) as ctx:
            self.watchdog.start(own_store(self.launch))
            check_agreement(ctx, self.must_agree())
            self.results.environment = describe_environment(ctx)
            if ctx.is_recorder:
                show_header(self.results, ctx, self.plan, self.data.note)
                self.note_short_batch()
            module = place(self.model, config, ctx)
            if ctx.is_server:
                assert self.server is not None
                serve(self.server(module, config, ctx, self.plan), self.plan)
            else:
                data = replica_data(self.data, config, ctx, self.global_batch, next(module.parameters()).dtype)
                method = self.method(module, config, ctx, self.plan)
                best = train(method, data, self.plan, self.results)
                if ctx.is_recorder:
                    here.enter("writing the results")
                    self.write(best)
            here.enter("leaving")
        self.watchdog.stop()

    def note_short_batch(self) -> None:
        samples = self.data.info.train_samples
        if samples < self.global_batch:
            say(f"Note: {samples} training samples are fewer than one global batch of {self.global_batch}: "
                "each epoch is one short step")

    def write(self, best: dict[str, torch.Tensor]) -> None:
        """Replace an earlier run's results and best model, now that this one has succeeded."""
        self.results.end_time = datetime.now().strftime(TIME_FORMAT)
        buffer = io.BytesIO()
        torch.save(best, buffer)
        write_together({self.model_path: buffer.getvalue(), self.path: encode_results(self.results)})
        self.failed_path.unlink(missing_ok=True)
        say(f"Best validation accuracy: {self.results.best_accuracy:.2f}%")
        say(f"Results: {self.path}, best model: {self.model_path}")

    @property
    def path(self) -> Path:
        return below(self.output_dir, f"results_{self.method.name}.json")

    @property
    def failed_path(self) -> Path:
        return below(self.output_dir, f"results_{self.method.name}.failed.json")

    @property
    def model_path(self) -> Path:
        return below(self.output_dir, "saved_models", f"{self.method.name}_best.pth")

    def report_failure(self, error: Exception) -> int:
        """One line, from the rank that knows the cause; a trace for what we did not foresee. Returns the exit code."""
        if not is_foreseen(error):
            traceback.print_exc()
        line = failure_line(error, self.method.name, self.launch.rank)
        return self.watchdog.report(line, echo=is_echo(error))

    def record_failure(self, line: str) -> None:
        """A results file that says failed. The failure itself is the news, so one in writing it is not reported."""
        if here.stage == "leaving":  # the results are complete, and written
            return
        self.results.status, self.results.error = "failed", line
        self.results.end_time = datetime.now().strftime(TIME_FORMAT)
        with suppress(OSError, ValueError):
            write_results(self.failed_path, self.results)


def check_writable(directory: Path) -> None:
    """Create the output directory. Raises UsageError where that, or writing into it, is not possible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for folder in (directory, below(directory, "saved_models", "file").parent):
            remove_stale_temporaries(folder)
    except OSError as error:
        raise UsageError(f"--output-dir {directory}: {error.strerror}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"--output-dir {directory}: not writable")


def place(model: nn.Module, config: TrainConfig, ctx: ReplicaContext) -> nn.Module:
    """The model on this rank's device, in the memory format and compiled as the flags say."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(ctx.device, memory_format=layout)
    if config.compile and not ctx.is_server:
        model.compile()
    return model


def replica_data(data: ImageData, config: TrainConfig, ctx: ReplicaContext, global_batch: int,
                 dtype: torch.dtype) -> ReplicaData:
    return ReplicaData(data, ctx, global_batch, config.seed, config.workers, dtype, config.channels_last)


def describe_environment(ctx: ReplicaContext) -> Environment:
    """Versions, devices and transport of the whole job."""
    gpu = ctx.device.type == "cuda"
    name = torch.cuda.get_device_name(ctx.device) if gpu else f"CPU {platform.machine()}"
    records = ctx.gather_records({"host": socket.gethostname(), "device": f"{ctx.device} ({name})"})
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "chosen by gloo")
    return Environment(
        python=platform.python_version(), torch=torch.__version__, torchvision=torchvision.__version__,
        device=name, devices=[record["device"] for record in records],
        cpu_cores=len(os.sched_getaffinity(0)), threads_per_rank=torch.get_num_threads(),
        num_hosts=len({record["host"] for record in records}), ranks_per_host=ctx.launch.local_world_size,
        backend=ctx.backend, transport="nccl" if ctx.backend == "nccl" else f"gloo over TCP ({interface})",
    )
