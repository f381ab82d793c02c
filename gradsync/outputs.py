"""The files that one run leaves in its output directory, and how they are written."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import torch

from gradsync.checkpoint import MANIFEST
from gradsync.errors import RunError, UsageError
from gradsync.files import below, remove_stale_temporaries, write_together
from gradsync.results import TIME_FORMAT, RunResults, encode_json, write_results


def encode(results: RunResults, best: dict[str, torch.Tensor]) -> list[bytes]:
    """The contents of the results file and of the best model's, when the run has ended."""
    results.end_time = datetime.now().strftime(TIME_FORMAT)
    buffer = io.BytesIO()
    torch.save(best, buffer)
    return [encode_json(results), buffer.getvalue()]


class Outputs:
    """``name`` is the variant's. Raises UsageError where the directory cannot be made, or written to."""

    def __init__(self, directory: Path, name: str) -> None:
        self.results = below(directory, f"results_{name}.json")
        self.failed_results = below(directory, f"results_{name}.failed.json")
        self.best_model = below(directory, "saved_models", f"{name}_best.pth")
        self.checkpoints = below(directory, "checkpoints", name)
        self.traces = below(directory, "profiles", f"{name}_rank")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for folder in (directory, self.best_model.parent, self.checkpoints, self.traces.parent):
                remove_stale_temporaries(folder)
        except OSError as error:
            raise UsageError(f"--output-dir {directory}: {error.strerror}") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise UsageError(f"--output-dir {directory}: not writable")

    def trace(self, rank: int) -> Path:
        """Where ``--profile`` puts the trace of a rank."""
        return self.traces.with_name(f"{self.traces.name}{rank}.json")

    def write(self, results: bytes, best: bytes) -> None:
        """Replace an earlier run's results and best model, both or neither. Raises RunError that names the file."""
        try:
            write_together({self.best_model: best, self.results: results})
        except OSError as error:
            on = ", and --resume goes on from the last checkpoint" if (self.checkpoints / MANIFEST).exists() else ""
            raise RunError(f"{error.filename}: cannot be written ({error.strerror}); what was there is as it was"
                           f"{on}") from error
        self.failed_results.unlink(missing_ok=True)

    def write_failure(self, results: RunResults, cause: str) -> None:
        """A results file that says failed. The failure itself is the news, so one in writing it is not reported."""
        results.status, results.error = "failed", cause
        results.end_time = datetime.now().strftime(TIME_FORMAT)
        with suppress(OSError, ValueError):
            write_results(self.failed_results, results)
