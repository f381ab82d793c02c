"""A model and its data on this rank's device, and a description of where all ranks are."""

from __future__ import annotations

import os
import platform
import socket

import torch
import torchvision
from torch import nn

from gradsync.config import TrainConfig
from gradsync.data import ReplicaData
from gradsync.datasets import ImageData
from gradsync.distributed import ReplicaContext
from gradsync.results import Environment


def place(model: nn.Module, config: TrainConfig, ctx: ReplicaContext) -> nn.Module:
    """The model on this rank's device, in the memory format and compiled as the flags say."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(ctx.device, memory_format=layout)
    if config.compile and not ctx.is_server:
        model.compile()
    return model


def replica_data(data: ImageData, config: TrainConfig, ctx: ReplicaContext, global_batch: int,
                 dtype: torch.dtype) -> ReplicaData:
    """This replica's share of the data, in the model's type and the memory format that the flags say."""
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
