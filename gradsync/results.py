"""The results file of one run: its schema, how it is written, how it is read.

Seconds and bytes throughout; accuracies in percent; throughput in images per second. ``None`` (``null``
on disk) means *not known*, never zero. The keys that users of such scripts already parse (``method`` ...
``summary``) keep their names and places, so that a file which holds only those is read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from gradsync.errors import UsageError
from gradsync.files import write_bytes_atomically
from gradsync.probed import ComputeProfile, Links
from gradsync.section import Count, Duration, Seconds, Section

SCHEMA_VERSION = 1
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
MAX_BYTES = 512 * 1024 * 1024
MAX_DEPTH = 32  # of nested objects and lists; ours has 5
MAX_INTEGER = 2**63 - 1  # larger ones would overflow where they become floating-point numbers
# Names under which scripts of this kind keep the per-step losses inside an epoch instead of at the top.
PER_EPOCH_LOSS_KEYS = ("all_losses", "batch_losses", "step_losses", "losses")


class ServerEpoch(Section):
    """A parameter server's side of one epoch, mean seconds per update: per step if synchronous, else per push."""

    wait: Seconds  # until a worker's push begins: the workers are computing
    send_parameters: Seconds
    receive_gradients: Seconds
    update: Seconds
    updates: Count  # optimizer steps
    bytes_sent: Count  # over the epoch
    bytes_received: Count
    messages: Count
    pushes_per_worker: list[Count] | None = None  # asynchronous, as the next
    staleness: dict[str, Count] | None = None  # pushes by how many updates came between their worker's pull and them


class EpochResults(Section):
    """One epoch. ``train_time`` is the wall time of its training part, on the slowest replica."""

    epoch: Count
    train_loss: float | None = None
    train_accuracy: float | None = None
    train_time: Seconds | None = None
    train_throughput: float | None = None  # samples / train_time, img/s over all replicas
    avg_batch_time: Seconds | None = None  # train_time / steps
    avg_comm_time: Seconds | None = None  # per step, where communication is a phase of its own
    avg_comm_time_pull: Seconds | None = None
    avg_comm_time_push: Seconds | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    steps: Count | None = None
    samples: Count | None = None  # training samples consumed by all replicas
    val_samples: Count | None = None  # validation samples evaluated, each counted once
    learning_rate: float | None = None  # at the epoch's last step
    phases: dict[str, Seconds] | None = None  # seconds over the epoch, mean over replicas
    phases_per_replica: list[dict[str, Seconds]] | None = None
    step_times: list[Seconds] | None = None  # of replica 0
    fingerprints: list[str] | None = None  # of the parameters, one a replica
    parameter_sketch: list[float] | None = None  # of replica 0; distances of sketches estimate those of parameters
    server: ServerEpoch | None = None  # the first one, whose shard is as large as any
    servers: list[ServerEpoch] | None = None  # where there are several


class Summary(Section):
    avg_train_throughput: float | None = None
    avg_train_time_per_epoch: Seconds | None = None
    best_val_accuracy: float | None = None
    final_train_accuracy: float | None = None


class DatasetInfo(Section):
    name: str
    train_samples: Count
    val_samples: Count
    num_classes: Count
    image_shape: list[Count]  # channels, height, width
    accuracy_is_meaningful: bool = True
    train_transforms: str = ""
    val_transforms: str = ""


class ModelInfo(Section):
    name: str
    parameters: Count
    tensors: Count  # parameter tensors that take a gradient
    gradient_bytes: Count  # of one full set of gradients
    batch_norm: bool | None = None  # then a step depends on how its global batch is shared out


class Environment(Section):
    python: str
    torch: str
    torchvision: str
    device: str
    devices: list[str]  # one a rank
    cpu_cores: Count
    threads_per_rank: Count
    num_hosts: Count
    ranks_per_host: Count
    backend: str
    transport: str


class Probe(Section):
    """Exposed communication: the same step with and without synchronisation, in turn, discarded afterwards.

    Lists hold one number a round, the mean over replicas.
    """

    rounds: Count
    step_times: list[Seconds]
    local_step_times: list[Seconds]
    exposed_communication: float | None  # median of the paired differences; may be slightly negative
    exposed_communication_iqr: Seconds | None
    local_step_per_replica: list[Seconds] | None = None  # medians: a replica that is slow by itself shows
    # With --probe-links, where the method can: the step's communication by itself, on the slowest replica.
    exchange_times: list[Duration] | None = None


class Communication(Section):
    """Counted where it is sent. A replica's bytes are what it hands to the communication calls."""

    replica_bytes_per_step: float | None
    replica_messages_per_step: float | None
    server_bytes_per_step: float | None = None
    server_messages_per_step: float | None = None


class Resumption(Section):
    """Where a run was taken up from a checkpoint: after so many steps of that epoch."""

    epoch: Count
    step: Count
    changed: list[str] = Field(default_factory=list)  # what of the environment had become another one, in words


class CheckpointWriting(Section):
    """What the run's checkpoints took, all of it outside the epochs' clocks."""

    written: Count
    seconds: Seconds  # in total
    bytes: Count  # of the last one, over all ranks


class RunResults(Section):
    """Everything one run leaves behind; also a failed one, with ``status`` and ``error``."""

    schema_version: int | None = None
    status: Literal["complete", "failed"] | None = None
    error: str | None = None
    method: str
    title: str | None = None
    method_family: str | None = None  # the method of which this is a variant: all_reduce, ps ...
    variant: str | None = None  # what sets it apart from the method's plain form
    settings: dict[str, Any] | None = None  # the flags of the method alone
    synchronous: bool | None = None  # every update uses the gradients of all replicas at the same parameters
    staleness: dict[str, Count] | None = None  # asynchronous: that of the first server, over all epochs
    world_size: Count | None = None
    num_workers: Count | None = None  # worker ranks of a parameter server
    num_servers: Count | None = None
    num_replicas: Count | None = None
    batch_size: Count | None = None  # per replica
    global_batch_size: Count | None = None
    start_time: str | None = None
    end_time: str | None = None
    steps_per_epoch: Count | None = None
    samples_per_epoch: Count | None = None
    epochs: list[EpochResults] = Field(default_factory=list)
    all_losses: list[float] = Field(default_factory=list)
    best_accuracy: float | None = None
    summary: Summary | None = None
    recipe: dict[str, Any] | None = None
    dataset: DatasetInfo | None = None
    model: ModelInfo | None = None
    environment: Environment | None = None
    probe: Probe | None = None
    links: Links | None = None
    compute_profile: ComputeProfile | None = None  # with --probe-links: what the cost model starts from
    communication: Communication | None = None
    initial_fingerprints: list[str] | None = None  # one a replica, before step 1
    parameter_sketch: list[float] | None = None  # of replica 0, before step 1
    checkpoints: CheckpointWriting | None = None
    resumed_at: list[Resumption] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _name_by_string(cls, data: Any) -> Any:
        """Older files name their model and data set where ours describe them."""
        if not isinstance(data, dict):
            return data
        named = {key for key in ("model", "dataset") if isinstance(data.get(key), str)}
        kept = {key: value for key, value in data.items() if key not in named}
        return {**{f"{key}_name": data[key] for key in named}, **kept}

    @model_validator(mode="before")
    @classmethod
    def _hoist_per_epoch_losses(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("all_losses") or not isinstance(data.get("epochs"), list):
            return data
        losses: list[Any] = []
        for epoch in data["epochs"]:
            if isinstance(epoch, dict):
                losses += next((epoch[key] for key in PER_EPOCH_LOSS_KEYS if isinstance(epoch.get(key), list)), [])
        return {**data, "all_losses": losses}


def summarise(epochs: list[EpochResults]) -> Summary:
    """The ``summary`` of a run: means over its epochs, which are all of one length."""
    if not epochs:
        return Summary()
    return Summary(
        avg_train_throughput=_mean([e.train_throughput for e in epochs]),
        avg_train_time_per_epoch=_mean([e.train_time for e in epochs]),
        best_val_accuracy=max((e.val_accuracy for e in epochs if e.val_accuracy is not None), default=None),
        final_train_accuracy=epochs[-1].train_accuracy,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def write_results(path: Path, results: RunResults) -> None:
    """Write ``results`` as JSON. Raises ValueError where a figure is not finite, OSError if it cannot be written."""
    write_bytes_atomically(path, encode_json(results))


def encode_json(section: BaseModel) -> bytes:
    """``section`` as indented JSON. Raises ValueError where a figure is not finite."""
    text = json.dumps(section.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def read_results(path: Path) -> RunResults:
    """Read ours or an older file; raises UsageError that names the file and the line or key."""
    try:
        if not path.is_file():
            raise UsageError(f"{path}: not a file" if path.exists() else f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MiB: not a results file")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno}: not JSON ({error.msg}); is the file truncated?") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply: not a results file") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path}: not JSON ({type(error).__name__})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: holds a {type(data).__name__}, expected an object with 'method' and 'epochs'")
    for key, fault in _faults(data):
        raise UsageError(f"{path}: key {key} is {fault}")
    try:
        return RunResults.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise UsageError(f"{path}: key {key}: {first['msg']}") from error


def _faults(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of what no results file holds anywhere, also under keys that the schema does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, "not a finite number"
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield key, "too large a number"
    elif isinstance(value, (dict, list)) and depth == MAX_DEPTH:
        yield key, "nested too deeply"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _faults(item, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _faults(item, f"{key}.{index}", depth + 1)
