"""The environment check as the user sees it: one line a finding, then the commands that fit this machine."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gradsync import hosts as several
from gradsync import variants
from gradsync.agreement import first_difference
from gradsync.command_lines import shown, spelled, without
from gradsync.config import TrainConfig
from gradsync.data import smallest_share
from gradsync.distributed import Launch
from gradsync.errors import UsageError
from gradsync.estimate import in_words, seconds_of_methods
from gradsync.hosts import Hosts
from gradsync.main import Prepared
from gradsync.measure import Measured
from gradsync.meeting import Meeting
from gradsync.preflight import Request, Script, run_ranks
from gradsync.study import Planned, Scaling

DEFAULT_RANKS = 4  # where there are no GPUs to count
PACKAGES = ("torch", "torchvision", "numpy", "matplotlib", "tqdm", "pydantic", "jinja2")
# Of the comparison, not of a training script: with a value, and without one.
OWN_FLAGS = ("--nproc", "--methods", "--repeats", "--scaling", "--plan", *several.FLAGS)
OWN_SWITCHES = ("--weak",)
RANKS_SECONDS = 180.0  # more than the ranks' own time limits, for those that hang where no limit reaches

Line = tuple[str, str, str]  # (ok, warn, fail or skip; what; detail)


class Survey:
    """What was asked for, checked, and what this machine has for it. Raises UsageError for bad input.

    Every method gets the same global batch: ``--global-batch-size``, or else ``--batch-size`` x ranks, which in a
    study are the most that it asks for; only ``--weak`` gives every replica the same batch instead. The threads of
    each rank are decided once, for the most ranks: a single device with more of them would be no reference.
    """

    def __init__(self, config: TrainConfig, nproc: int | None, scripts: Sequence[Script], repeats: int,
                 import_seconds: float, scaling: Scaling | None = None, single: Script | None = None,
                 hosts: Hosts | None = None) -> None:
        self.gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.hosts = hosts
        # One GPU makes no comparison, so the ranks share it, as they share a CPU.
        self.nproc = nproc or (self.gpus if self.gpus > 1 else DEFAULT_RANKS)
        if hosts:
            self.nproc = nproc or max(1, self.gpus)
        if scaling:
            self.nproc = scaling.ranks[-1]
        launch = Launch.of_host(self.nproc, hosts)
        self.global_batch: int | None = config.global_batch_size or config.batch_size * launch.world_size
        if scaling and scaling.weak:
            self.global_batch = None
        self.config = replace(config, global_batch_size=self.global_batch)
        self.scripts, self.repeats = tuple(scripts), repeats
        self.cores = len(os.sched_getaffinity(0))
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self.threads = int(asked) if asked.isdigit() and int(asked) else max(1, self.cores // self.nproc)
        self.import_seconds = import_seconds
        self.prepared: list[Prepared] = []
        start = time.monotonic()
        for script in self.scripts:
            data = self.prepared[0].data if self.prepared else None
            self.prepared.append(script.prepare(launch, self.config, data))
        self.prepare_seconds = time.monotonic() - start
        self.scaling = scaling
        self.skipped: list[Line] = []
        self.runs = [Planned.of(self.nproc, script, prepared)
                     for script, prepared in zip(self.scripts, self.prepared, strict=True)]
        if scaling and single:
            self.runs = list(self.study_runs(scaling, single))

    def study_runs(self, scaling: Scaling, single: Script) -> Iterator[Planned]:
        """The single device, then each method at each number of ranks; notes where those are too few."""
        data = self.prepared[0].data
        yield Planned.of(0, single, single.prepare(Launch(), self.config, data), "ranks_1")
        for ranks in scaling.ranks:
            launch = Launch(0, ranks, 0, ranks, by_torchrun=True)
            for script, widest in zip(self.scripts, self.prepared, strict=True):
                if ranks > widest.num_servers:
                    yield Planned.of(ranks, script, script.prepare(launch, self.config, data), f"ranks_{ranks}")
                else:
                    reason = f"not at {ranks} rank(s): {widest.num_servers} would serve and none compute"
                    self.skipped.append(("skip", widest.name, reason))

    def plan(self, flags: Sequence[str]) -> str:
        """What run_all_experiments.sh reads, in its own language: bash variables, every value quoted.

        ``commands`` holds a script and its flags for each run, quoted once more to be one word; ``ranks`` are 0 where
        torchrun is not to start it, and ``folders``, below the output directory, are empty where it needs none.
        ``hosts`` are launch/torchrun.py's flags for several hosts, of which this is number ``host``.
        """
        commands = (shlex.join([run.file, *self.training_flags(flags, run)]) for run in self.runs)
        values: dict[str, str | Iterable[str]] = {
            "threads": str(self.threads), "repeats": str(self.repeats), "resume": str(int(self.config.resume)),
            "seed": str(self.config.seed), "output_dir": self.config.output_dir,
            "methods": [run.name for run in self.runs], "ranks": [str(run.ranks) for run in self.runs],
            "folders": [run.folder for run in self.runs], "commands": commands,
            "hosts": [*self.hosts.flags(), "--timeout", f"{self.hosts.patience:g}"] if self.hosts else [],
            "host": str(self.hosts.index if self.hosts else 0),
        }
        return "".join(
            f"{name}={shlex.quote(value)}\n" if isinstance(value, str) else f"{name}=({shlex.join(value)})\n"
            for name, value in values.items())

    def training_flags(self, flags: Sequence[str], prepared: Prepared | Planned) -> list[str]:
        """The user's flags as one training script gets them: those it knows, its variant, the one global batch."""
        ours = variants.METHODS.get(prepared.method.name, ())
        others = [spelled(flag) for known in variants.METHODS.values() for flag in known if flag not in ours]
        chosen = variants.settings(prepared.method.name, prepared.config)
        asked = variants.settings(prepared.method.name, self.config)
        differing = [(spelled(flag), str(value)) for flag, value in chosen.items() if value != asked[flag]]
        kept = without((*OWN_FLAGS, *others, "--global-batch-size"), flags)
        batch = [] if self.global_batch is None else ["--global-batch-size", str(self.global_batch)]
        return [*(word for word in kept if word not in OWN_SWITCHES), *(word for pair in differing for word in pair),
                *batch]

    def must_agree(self) -> dict[str, Any]:
        """All that must be equal on every host, or ranks that do not fit each other would be started."""
        return {
            "torch": torch.__version__, "ranks per host (--nproc)": self.nproc,
            "threads per rank (OMP_NUM_THREADS)": self.threads, "--methods": [run.name for run in self.runs],
            "--repeats": self.repeats, "backend": [prepared.backend for prepared in self.prepared],
            "ranks for NCCL": self.nccl_ranks, **self.config.job_flags(),
        }

    @property
    def nccl_ranks(self) -> int:
        """How many ranks of this host can try NCCL, 0 where that would be a single one or not all of several hosts."""
        able = min(self.nproc, self.gpus) if torch.distributed.is_nccl_available() else 0
        fewest = self.nproc if self.hosts else 2
        return able if able >= fewest else 0

    def report(self, flags: Sequence[str]) -> int:
        """Print all findings as they come; returns the exit code. Raises UsageError, RunError as ``Meeting`` does."""
        if self.hosts is None:
            return self.conclude(flags, self.show(self.findings()))
        with Meeting(self.hosts, "the check") as meeting:
            if difference := first_difference(meeting.exchange("agreement", self.must_agree()), "host"):
                raise UsageError(difference)
            failures = self.show(self.findings(meeting))
            verdicts = meeting.exchange("verdict", failures)
        others = [f"host {host}: {'; '.join(found)}" for host, found in enumerate(verdicts)
                  if found and host != self.hosts.index]
        return self.conclude(flags, failures or others)

    def show(self, findings: Iterable[Line]) -> list[str]:
        """Print them; returns the failures."""
        failures = []
        for status, what, detail in findings:
            print(f"{f'[{status}]':<7}{what + ':':<11} {detail}", flush=True)
            if status == "fail":
                failures.append(f"{what}: {detail}")
        return failures

    def conclude(self, flags: Sequence[str], failures: list[str]) -> int:
        if failures:
            print(f"error: {'; '.join(failures)}", file=sys.stderr)
            return 1
        print("\nCommands that fit this machine:")
        for command in self.commands(flags):
            print(f"  {command}")
        return 0

    def findings(self, meeting: Meeting | None = None) -> Iterator[Line]:
        yield "ok", "Python", f"{platform.python_version()} ({sys.executable})"
        yield "ok", "packages", ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
        yield self.gpu_line()
        yield self.cpu_line()
        if self.hosts and meeting:
            yield "ok", "hosts", (f"{self.hosts.count}, of which this is {self.hosts.index}; they agree, and meet at "
                                  f"{meeting.address[0]}, port {meeting.address[1]}")
        yield from self.recipe_lines()
        yield from self.study_lines()
        yield self.disk_line()
        yield from self.rank_lines(meeting)

    def gpu_line(self) -> Line:
        if not self.gpus:
            return "ok", "GPU", "none found; the ranks compute on the CPU"
        names = {torch.cuda.get_device_name(index) for index in range(self.gpus)}
        memory = min(torch.cuda.get_device_properties(index).total_memory for index in range(self.gpus))
        found = f"{self.gpus} x {' / '.join(sorted(names))}, {memory / 2**30:.0f} GiB each"
        if self.nproc > self.gpus:
            return "warn", "GPU", f"{found}; {self.nproc} ranks share them, so methods slow each other down"
        return "ok", "GPU", found

    def cpu_line(self) -> Line:
        found = f"{self.cores} core(s), {self.nproc} rank(s) with {self.threads} thread(s) each"
        if self.nproc * self.threads <= self.cores:
            return "ok", "CPU", found
        return "warn", "CPU", f"{found}: they take turns on the cores, so judge times with care"

    def recipe_lines(self) -> Iterator[Line]:
        first = self.prepared[0]
        data, model = first.data, first.results.model
        assert model is not None
        shape = " x ".join(map(str, data.info.image_shape))
        sizes = f"{data.info.train_samples:,} training and {data.info.val_samples:,} validation images"
        status = "ok" if data.info.accuracy_is_meaningful is not False else "warn"
        note = f" ({data.note})" if data.note else ""
        yield status, "data set", f"{data.info.name}, {sizes}, {data.info.num_classes} classes, {shape}{note}"
        yield "ok", "model", (f"{model.name}, {model.parameters:,} parameters, "
                              f"{model.gradient_bytes / 1e6:.2f} MB of gradients in {model.tensors} tensors")
        shares = [smallest_share(first.results.samples_per_epoch, p.global_batch, p.results.num_replicas)
                  for p in self.prepared]
        batch = (f"batch {self.config.batch_size} for each replica" if self.global_batch is None else
                 f"global batch {self.global_batch} for each method")
        recipe = (f"{batch}, {len(first.plan.epoch_lengths)} epoch(s) of "
                  f"{first.plan.epoch_lengths[0]} steps, learning rate {first.plan.learning_rate:g}")
        if data.info.train_samples < first.global_batch:
            yield "warn", "recipe", f"{recipe}: an epoch is one short step, --global-batch-size exceeds the data set"
        else:
            yield "ok", "recipe", recipe + (", some shares of one sample" if min(shares) == 1 else "")

    def study_lines(self) -> Iterator[Line]:
        if self.scaling is None:
            return
        ranks = ", ".join(map(str, self.scaling.ranks))
        kept = "one batch per replica" if self.scaling.weak else "one global batch"
        rates = dict.fromkeys(f"{run.plan.learning_rate:g}" for run in self.runs)
        yield "ok", "study", (f"{'weak' if self.scaling.weak else 'strong'} scaling ({kept}): the single device, and "
                              f"each method at {ranks} ranks, {self.threads} thread(s) each everywhere; learning rate "
                              f"{', '.join(rates)}")
        yield from self.skipped

    def disk_line(self) -> Line:
        """Room for the best model of each method, twice while one is replaced, and 50 MB for all the rest."""
        weights = sum(tensor.nbytes for tensor in self.prepared[0].model.state_dict().values())
        needed = 2 * weights * len(self.runs) * self.repeats + 50_000_000
        directory = Path(self.config.output_dir)
        free = shutil.disk_usage(directory).free
        detail = f"{free / 1e9:.1f} GB free in {directory.resolve()}, about {needed / 1e9:.2f} GB needed"
        return ("ok" if free > needed else "fail"), "disk", detail

    def rank_lines(self, meeting: Meeting | None) -> Iterator[Line]:
        """The findings of real ranks: communication, and the time that training will take."""
        request = Request(self.config, self.scripts, self.nproc, self.threads, self.nccl_ranks, self.hosts,
                          meeting and meeting.address)
        if not self.nccl_ranks:
            yield "skip", "NCCL", self.why_no_nccl()
        measured: dict[str, Measured] = {}
        for name, outcome in run_ranks(request, RANKS_SECONDS + 4 * self.prepare_seconds):
            if name == "failed":
                yield "fail", "ranks", outcome
                return
            if isinstance(outcome, Measured):
                measured[name] = outcome
            else:
                ranks = (self.nccl_ranks if name == "nccl" else request.num_processes) * request.num_hosts
                what = "NCCL" if name == "nccl" else name
                yield "ok", what, f"all-reduce of 1 MiB over {ranks} ranks verified, {outcome * 1000:.1f} ms"
        yield "ok", "time", self.time_needed(measured)

    def why_no_nccl(self) -> str:
        if not torch.distributed.is_nccl_available():
            return "not tried: this build of torch has none"
        if not self.gpus:
            return "not tried: it needs a GPU for each rank, and there is none"
        return f"not tried: it needs two ranks with a GPU each; found {self.gpus} GPU(s), {self.nproc} rank(s)"

    def time_needed(self, measured: dict[str, Measured]) -> str:
        seconds = seconds_of_methods(self.runs, measured, self.prepared[0].data, self.import_seconds, self.cores)
        each = ", ".join(f"{name} {in_words(value)}" for name, value in seconds.items())
        count = f"{len(seconds)} method{'s'[: len(seconds) > 1]}"
        if self.scaling:
            count += f" in {len(self.runs)} runs"
        if self.repeats > 1:
            count += f", {self.repeats} times"
        steps = min(one.steps for one in measured.values())
        basis = f"an estimate from {steps} measured step(s) of each"
        scaled = [one for one in measured.values() if one.samples < one.full_share]
        if scaled:
            basis += f", with {scaled[0].samples} of {scaled[0].full_share} samples per replica"
        return f"about {in_words(self.repeats * sum(seconds.values()))} for {count} ({each}); {basis}"

    def commands(self, flags: Sequence[str]) -> Iterator[str]:
        """The one-shot script, then each training script as the one-shot script runs it, with the user's flags."""
        home = Path(__file__).resolve().parent.parent
        yield shlex.join([shown(home / "run_all_experiments.sh"), *without(("--plan",), flags)])
        torchrun = Path(sys.executable).parent / "torchrun"
        launcher = "torchrun" if shutil.which("torchrun") == str(torchrun) else shown(torchrun).removeprefix("./")
        for prepared, script in zip(self.prepared, self.scripts, strict=True):
            words = self.training_flags(flags, prepared)
            chosen = any(word.split("=")[0] == "--backend" for word in words)
            backend = [] if chosen else ["--backend", prepared.backend]
            file = shown(home / script.file).removeprefix("./")
            where = self.hosts.flags() if self.hosts else []
            yield shlex.join([launcher, *where, f"--nproc_per_node={self.nproc}", file, *words, *backend])
