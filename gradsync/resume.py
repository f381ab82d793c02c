"""What ``--resume`` finds: nothing, finished results, or a checkpoint, which must be whole and of the same run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from gradsync.checkpoint import MANIFEST, FileRecord, Manifest, Saved, digest, rank_file, signed
from gradsync.distributed import Launch
from gradsync.errors import UsageError
from gradsync.results import MAX_BYTES, Environment, RunResults, read_results

# What decides how fast a run is, and how its sums are rounded.
ENVIRONMENT = ("torch", "device", "backend", "threads_per_rank", "num_hosts", "transport")
FROM_THE_BEGINNING = "leave out --resume to start from the beginning"


def find_checkpoint(folder: Path, now: RunResults, launch: Launch) -> Saved | None:
    """The checkpoint in ``folder`` as this rank needs it, or None where there is none.

    Raises UsageError if it is of another run than ``now`` describes, naming what differs, or if it is damaged,
    naming the file. The first rank of a host looks at the files of all ranks, so that one of them speaks for all.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest = _read_manifest(path)
    _refuse_another_run(f"the checkpoint in {folder}", manifest.results, now)
    if len(manifest.files) != launch.world_size:
        raise _damaged(path, f"it lists {len(manifest.files)} files for {launch.world_size} ranks")
    for rank in range(launch.world_size) if launch.local_rank == 0 else ():
        if rank != launch.rank:
            _read_whole(rank_file(folder, manifest.generation, rank), manifest.files[rank])
    own = rank_file(folder, manifest.generation, launch.rank)
    return Saved(manifest, _load(own, _read_whole(own, manifest.files[launch.rank])))


def has_finished(path: Path, now: RunResults) -> bool:
    """Whether ``path`` holds the complete results of the run that ``now`` describes.

    Raises UsageError if they are of another run: going on would replace them.
    """
    if not path.exists():
        return False
    results = read_results(path)
    if results.status != "complete":
        return False
    _refuse_another_run(str(path), results, now)
    return True


def differences(there: RunResults, now: RunResults) -> list[str]:
    """What keeps two runs from being one, in words: recipe, the method's settings, ranks, size of the data."""
    before, after = _identity(there), _identity(now)
    return [f"{key}: {_shown(before, key)} there, {_shown(after, key)} now"
            for key in {**after, **before} if before.get(key) != after.get(key)]


def changes(there: Environment | None, now: Environment) -> list[str]:
    """What a run that goes on finds changed around it. It may go on, but not bit for bit, nor at the same speed."""
    return [f"{key}: {getattr(there, key)} before, {getattr(now, key)} now" for key in ENVIRONMENT
            if there is not None and getattr(there, key) != getattr(now, key)]


def _identity(results: RunResults) -> dict[str, Any]:
    data = results.dataset
    return {
        "method": results.method, "ranks": results.world_size, "servers": results.num_servers,
        **(results.recipe or {}), **(results.settings or {}),
        "training samples": data and data.train_samples, "validation samples": data and data.val_samples,
        "classes": data and data.num_classes,
    }


def _shown(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return "not given" if value is None else str(value)


def _refuse_another_run(what: str, there: RunResults, now: RunResults) -> None:
    differing = differences(there, now)
    if differing:
        raise UsageError(f"--resume: {what} is of another run ({'; '.join(differing)}); give it the same flags, or "
                         f"{FROM_THE_BEGINNING}")


def _read_manifest(path: Path) -> Manifest:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _damaged(path, f"larger than {MAX_BYTES >> 20} MiB")
        raw = path.read_bytes()
        content = json.loads(raw)["manifest"]
        if signed(content) != raw:
            raise _damaged(path, "its checksum does not match")
        return Manifest.model_validate(content)
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except ValidationError as error:
        raise _damaged(path, f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"no manifest: {type(error).__name__}") from error


def _read_whole(path: Path, record: FileRecord) -> bytes:
    try:
        if path.stat().st_size != record.bytes:
            raise _damaged(path, f"{path.stat().st_size} bytes instead of {record.bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    if digest(data) != record.digest:
        raise _damaged(path, "its checksum does not match")
    return data


def _load(path: Path, data: bytes) -> dict[str, Any]:
    """Never runs code of the file."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its zip and pickle readers raise
        raise _damaged(path, f"it cannot be loaded safely ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"module", "trainer", "random", "rest"} <= state.keys():
        raise _damaged(path, "not the state of a run")
    return state


def _damaged(path: Path, how: str) -> UsageError:
    return UsageError(f"--resume: {path}: damaged, so this checkpoint cannot be used ({how}); {FROM_THE_BEGINNING}")
