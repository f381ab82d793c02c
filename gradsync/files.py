"""Files that others rely on: replaced wholly or not at all, and never written to where a link points."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePath

from gradsync.errors import UsageError

SUFFIX = ".gradsync.tmp"
_own_temporaries: set[str] = set()


def write_text_atomically(path: Path, text: str) -> None:
    """Replace ``path`` wholly or not at all."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` wholly or not at all; raises OSError, and then leaves no temporary file."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes | memoryview]) -> None:
    """Replace none of ``files`` before all of them are on the disk under temporary names.

    A link is replaced, not followed. Raises OSError with ``filename`` set, and then leaves no temporary file.
    """
    temporaries: dict[Path, str] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporaries[path] = _write_temporary(path, data)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
            _own_temporaries.discard(temporary)
        for directory in {path.parent for path in files}:
            _flush_directory(directory)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        for temporary in temporaries.values():
            _discard(temporary)


def _write_temporary(path: Path, data: bytes | memoryview) -> str:
    """Write ``data`` beside ``path``. While its writer lives, a temporary file is locked."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
    _own_temporaries.add(temporary)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(OSError):  # some network file systems know no locks
                fcntl.flock(file, fcntl.LOCK_SH)
            file.write(data)
            file.flush()
            os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp makes private files; results are for sharing
            os.fsync(descriptor)
    except BaseException:
        _discard(temporary)
        raise
    return temporary


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _flush_directory(directory: Path) -> None:
    """Make a rename last through a loss of power, too. Some file systems cannot."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(temporary: str) -> None:
    if temporary in _own_temporaries:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        _own_temporaries.discard(temporary)


def remove_own_temporaries() -> None:
    """For a process that ends in the middle of writing."""
    for temporary in tuple(_own_temporaries):
        _discard(temporary)


def remove_stale_temporaries(directory: Path) -> None:
    """Remove what writers that were killed have left. Those of a living writer are locked, and stay."""
    for leftover in directory.glob(f".*{SUFFIX}"):
        with suppress(OSError), open(leftover, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def below(directory: Path, *parts: str) -> Path:
    """``directory/parts``, for writing. Raises UsageError if a name or a link on the way leads out of ``directory``.

    ``directory`` is the user's choice and may be a link itself.
    """
    relative = PurePath(*parts)
    if relative.is_absolute() or ".." in relative.parts:
        raise UsageError(f"{relative}: leads out of the output directory {directory}")
    for number in range(1, len(relative.parts)):
        folder = directory.joinpath(*relative.parts[:number])
        if folder.is_symlink():
            raise UsageError(f"{folder}: a link to another directory; nothing is written there. Remove the link, or "
                             "choose another --output-dir")
    return directory / relative
