"""Files that others rely on: replaced wholly or not at all."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

STALE_SECONDS = 3600.0


def write_text_atomically(path: Path, text: str) -> None:
    """Replace ``path`` wholly or not at all."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, data: bytes | memoryview) -> None:
    """Replace ``path`` wholly or not at all, on the disk when this returns.

    Raises OSError with ``filename`` set, and then leaves no temporary file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; results are for sharing
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _flush_directory(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def _flush_directory(directory: Path) -> None:
    """Make a rename last through a loss of power, too. Some file systems cannot."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_temporaries(directory: Path) -> None:
    """Remove what a crash between writing and renaming has left.

    Another run may be writing into the same directory just now, so only files older than an hour are stale.
    """
    for leftover in directory.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()
