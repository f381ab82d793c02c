"""Speed-up studies as the one-shot script would leave them, for tests of the analysis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sample_results import GLOBAL_BATCH, TIMES, at_throughput, sample, write

SPEED = 500.0  # img/s of the single device
EFFICIENCY = {"baseline_ddp": 0.9, "all_reduce": 0.8, "ps": 0.7}
Change = Callable[[str, int, dict[str, Any]], None]


def run_at(method: str, ranks: int, speed: float, *, weak: bool = False, like: str = "") -> dict[str, Any]:
    """A run of ``method`` on ``ranks`` ranks at ``speed`` img/s; under weak scaling each replica has 24 samples."""
    run = sample(method, epochs=1, like=like)
    servers = 1 if (like or method) == "ps" else 0
    replicas, batch = ranks - servers, GLOBAL_BATCH
    if weak:
        batch = 24 * replicas
        run["epochs"][0]["samples"] = run["samples_per_epoch"] = run["epochs"][0]["steps"] * batch
    run |= {"world_size": ranks, "num_replicas": replicas, "num_servers": servers, "global_batch_size": batch,
            "num_workers": replicas if servers else None, "batch_size": -(-batch // replicas)}
    run["environment"] |= {"threads_per_rank": 1, "ranks_per_host": ranks, "devices": ["cpu (CPU x86_64)"] * ranks}
    run["initial_fingerprints"] = ["5f1e"] * replicas
    for epoch in run["epochs"]:
        epoch["fingerprints"] = ["a0"] * replicas
    before = run["epochs"][0]["train_time"]
    at_throughput(run, speed)
    if run["probe"]:
        factor = run["epochs"][0]["train_time"] / before
        for key in ("step_times", "local_step_times", "local_step_per_replica"):
            run["probe"][key] = [seconds * factor for seconds in run["probe"][key]]
        run["probe"]["exposed_communication"] *= factor
        run["probe"]["local_step_per_replica"] = run["probe"]["local_step_per_replica"][:1] * replicas
    return run


def write_study(directory: Path, ranks: Sequence[int] = (1, 2, 4), *, methods: Sequence[str] = tuple(EFFICIENCY),
                repeats: Sequence[float] = (1.0,), weak: bool = False, change: Change | None = None) -> Path:
    """A study whose methods have the efficiencies above; ``repeats``: what slows each repeat down, if several."""
    for number, slower in enumerate(repeats, start=1):
        folder = directory / f"repeat_{number}" if len(repeats) > 1 else directory
        runs = [("single", 1, run_at("single", 1, SPEED / slower, weak=weak))]
        for count in ranks:
            for method in methods:
                like = method if method in TIMES else "all_reduce"
                replicas = count - (method == "ps")
                if replicas:
                    speed = SPEED / slower * (replicas * EFFICIENCY.get(method, 0.6) if replicas > 1 else 0.98)
                    runs.append((method, count, run_at(method, count, speed, weak=weak, like=like)))
        for method, count, run in runs:
            run["recipe"]["seed"] = 41 + number
            if change:
                change(method, count, run)
            write(folder / f"ranks_{count}", run)
    return directory
