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
from typing import Any, Protocol

import torch
import torchvision
from torch import nn

from gradsync import variants
from gradsync.checkpoint import MANIFEST, Checkpoints, Saved
from gradsync.config import Plan, TrainConfig, parse_config
from gradsync.data import ReplicaData, smallest_share
from gradsync.datasets import ImageData, choose_dataset, open_dataset
from gradsync.distributed import Launch, ReplicaContext, choose_backend, process_group, read_launch
from gradsync.errors import JobError, RunError, UsageError
from gradsync.files import remove_stale_temporaries, write_bytes_atomically
from gradsync.method import Method
from gradsync.models import GROUPNORM_CNN, build_model, check_normalisation, choose_model, describe_model
from gradsync.profiling import trace_path
from gradsync.results import SCHEMA_VERSION, TIME_FORMAT, Environment, Resumption, RunResults, write_results
from gradsync.resume import changes, find_checkpoint, has_finished
from gradsync.screen import say, show_header
from gradsync.training import Server, serve, train

FIRST_WORD_SECONDS = 20.0


def run_script(choose_method: Callable[[Launch], type[Method]], server: type[Server] | None = None,
               description: str | None = None, argv: list[str] | None = None) -> int:
    """Run one training script; returns its exit code: 0 done, 2 refused input, 1 failed."""
    launch = read_launch()

    def prepare() -> Prepared:
        method = choose_method(launch)
        config = parse_config(argv, description, variants.METHODS.get(method.name, ()))
        return Prepared(method, server, launch, config)

    return exit_code(launch, prepare)


class Job(Protocol):
    """Something whose input has been checked, so that what happens from here on is a failure."""

    def run(self) -> None: ...

    def report_failure(self, error: Exception) -> None: ...


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
    except Exception as error:  # whatever it is, the results file and the one line must say so
        prepared.report_failure(error)
        return 1
    return 0


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
        self.output_dir = Path(config.output_dir)
        check_writable(self.output_dir)
        self.results = self.results_so_far(name, per_epoch)
        self.saved = self.take_up() if config.resume else None
        self.has_finished = config.resume and not self.saved and has_finished(self.path, self.results)

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
        saved = find_checkpoint(self.checkpoint_folder, self.results, self.launch)
        if saved:
            self.results = saved.manifest.results
            self.results.resumed_at.append(Resumption(epoch=saved.position.epoch, step=saved.position.step))
        return saved

    def run(self) -> None:
        """Train and, on the recorder, write the results and the best model; nothing to do if they are there."""
        config = self.config
        if self.has_finished:
            if self.launch.rank == self.num_servers:
                say(f"Already finished: {self.path}")
            return
        self.results.start_time = self.results.start_time or datetime.now().strftime(TIME_FORMAT)
        with process_group(self.launch, self.backend, self.device, self.num_servers, config.timeout) as ctx:
            environment = describe_environment(ctx)
            if self.saved:
                self.results.resumed_at[-1].changed = changes(self.results.environment, environment)
            self.results.environment = environment
            checkpoints = Checkpoints(ctx, self.plan, self.checkpoint_folder, config.checkpoint_every, self.saved)
            checkpoints.agree()
            if ctx.is_recorder:
                show_header(self.results, ctx, self.plan, self.data.note)
                self.note_short_batch()
                self.note_checkpoint()
            module = place(self.model, config, ctx)
            trace = trace_path(self.output_dir, self.name, ctx) if config.profile else None
            if ctx.is_server:
                assert self.server is not None
                serve(self.server(module, config, ctx, self.plan), self.plan, checkpoints, trace)
                return
            data = replica_data(self.data, config, ctx, self.global_batch, next(module.parameters()).dtype)
            method = self.method(module, config, ctx, self.plan)
            best = train(method, data, self.plan, self.results, checkpoints, trace)
            if ctx.is_recorder:
                self.write(best)
                checkpoints.remove()
                if trace:
                    say(f"Traces: {trace.parent}/{self.name}_rank*.json")

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
            say(f"Resuming from the checkpoint in {self.checkpoint_folder}: {left}")
            for change in self.results.resumed_at[-1].changed:
                say(f"Note: another environment than the checkpoint's: {change}")
        elif self.config.resume:
            say(f"Note: no checkpoint in {self.checkpoint_folder}: starting from the beginning")
        elif (self.checkpoint_folder / MANIFEST).exists():
            say(f"Note: {self.checkpoint_folder} holds the checkpoint of a run that did not finish; this one starts "
                "from the beginning and will replace it. --resume would go on from there")

    def write(self, best: dict[str, torch.Tensor]) -> None:
        """Replace an earlier run's results and best model, now that this one has succeeded."""
        self.results.end_time = datetime.now().strftime(TIME_FORMAT)
        buffer = io.BytesIO()
        torch.save(best, buffer)
        model_path = self.output_dir / "saved_models" / f"{self.name}_best.pth"
        try:
            write_bytes_atomically(model_path, buffer.getbuffer())
            write_results(self.path, self.results)
        except OSError as error:
            raise RunError(f"{error.filename}: cannot be written ({error.strerror}); what was there is as it was, and "
                           "--resume writes it again without training") from error
        self.failed_path.unlink(missing_ok=True)
        say(f"Best validation accuracy: {self.results.best_accuracy:.2f}%")
        say(f"Results: {self.path}, best model: {model_path}")

    @property
    def checkpoint_folder(self) -> Path:
        return self.output_dir / "checkpoints" / self.name

    @property
    def path(self) -> Path:
        return self.output_dir / f"results_{self.name}.json"

    @property
    def failed_path(self) -> Path:
        return self.output_dir / f"results_{self.name}.failed.json"

    def report_failure(self, error: Exception) -> None:
        """One line that names the rank; a trace for what we did not foresee; a results file that says failed."""
        recorder = self.launch.rank == self.num_servers
        if isinstance(error, JobError) and not recorder:
            leave_the_word_to_another()
        if isinstance(error, RunError):
            # A data-loading process wraps the error in its own trace; the last line is the error itself.
            cause = str(error).strip().splitlines()[-1].removeprefix("gradsync.errors.RunError: ")
        else:
            traceback.print_exc()
            cause = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        message = f"{self.name}, rank {self.launch.rank}: {cause}"
        if recorder:
            self.results.status, self.results.error = "failed", message
            self.results.end_time = datetime.now().strftime(TIME_FORMAT)
            with suppress(OSError, ValueError):  # the failure itself is the news, and it is on the screen
                write_results(self.failed_path, self.results)
        print(f"error: {message}", file=sys.stderr, flush=True)


def check_writable(directory: Path) -> None:
    """Create the output directory. Raises UsageError where that, or writing into it, is not possible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for folder in (directory, directory / "saved_models"):
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
