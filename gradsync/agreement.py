"""Before step 1: were all ranks told the same, and did they find the same on their hosts?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from gradsync.config import TrainConfig
from gradsync.datasets import FileImages, ImageData
from gradsync.distributed import ReplicaContext
from gradsync.errors import JobError

FLAGS = {field.name for field in fields(TrainConfig)}


def check_agreement(ctx: ReplicaContext, facts: Mapping[str, Any]) -> None:
    """Raises JobError that names the rank and the key where a rank's ``facts`` differ from rank 0's."""
    difference = first_difference(ctx.gather_records(dict(facts)))
    if difference:
        raise JobError(difference)


def first_difference(facts_of_all: Sequence[Mapping[str, Any]], what: str = "rank") -> str:
    """The first key in which a rank, or a host, differs from number 0, in words; empty where all agree."""
    first = facts_of_all[0]
    for number, facts in enumerate(facts_of_all):
        for key in [*first, *(key for key in facts if key not in first)]:
            ours, theirs = facts.get(key), first.get(key)
            if ours != theirs:
                name = f"--{key.replace('_', '-')}" if key in FLAGS else key
                return (f"{what} {number}: {name} is {_shown(ours)}, {what} 0 has {_shown(theirs)}; "
                        f"start every {what} with the same flags and data")
    return ""


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe_data(data: ImageData) -> dict[str, Any]:
    """What makes a label mean the same on all hosts: the classes in their order, and which sample is which."""
    described: dict[str, Any] = {"training samples": len(data.train), "validation samples": len(data.val)}
    for name, split in (("training files", data.train), ("validation files", data.val)):
        if isinstance(split, FileImages) and hasattr(split.source, "samples"):
            root = Path(split.source.root)
            described["classes"] = list(split.source.classes)
            described[name] = _digest([[str(Path(path).relative_to(root)), label]
                                       for path, label in split.source.samples])
    return described


def describe_structure(model: nn.Module) -> str:
    """Equal for two models if their tensors have the same names and shapes."""
    return _digest([[name, list(tensor.shape)] for name, tensor in model.state_dict().items()])


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
