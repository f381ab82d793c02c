"""Results as the training scripts would write them, for tests of the analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

WORLD_SIZE = 4
GLOBAL_BATCH = 96
STEPS = 30
EPOCHS = 5
TRAIN_SAMPLES = STEPS * GLOBAL_BATCH - 40  # the last global batch is short
OLDER_KEYS = ("method", "world_size", "num_workers", "batch_size", "start_time", "end_time", "all_losses",
              "best_accuracy", "summary", "epochs")
OLDER_EPOCH_KEYS = ("epoch", "train_loss", "train_accuracy", "train_time", "train_throughput", "avg_batch_time",
                    "avg_comm_time", "avg_comm_time_pull", "avg_comm_time_push", "val_loss", "val_accuracy")
# method: (replicas, ms of each phase of a step, ms of exposed communication)
TIMES: dict[str, tuple[int, dict[str, float], float | None]] = {
    "baseline_ddp": (4, {"data_wait": 0.6, "forward_backward": 52.0, "optimizer": 1.5}, 4.1),
    "all_reduce": (4, {"data_wait": 0.6, "forward_backward": 47.5, "all_reduce": 9.8, "optimizer": 1.5}, 8.9),
    "ps": (3, {"data_wait": 0.7, "pull": 8.2, "forward_backward": 62.0, "push": 14.1, "optimizer": 0.0}, 20.5),
    "single": (1, {"data_wait": 0.5, "forward_backward": 176.0, "optimizer": 1.4}, None),
}


def sample(method: str, *, epochs: int = EPOCHS, steps: int = STEPS, noise: float = 0.01,
           like: str = "") -> dict[str, Any]:
    """A complete run of ``method`` as parsed JSON; ``like`` lends another method's times to an unknown one."""
    replicas, phases, exposed = TIMES[like or method]
    random = np.random.default_rng(len(method))
    samples = steps * GLOBAL_BATCH - 40
    losses = _losses(epochs * steps)
    records = [
        _epoch(index, losses[index * steps : (index + 1) * steps], samples, replicas, phases,
               1 + noise * float(random.standard_normal()))
        for index in range(epochs)
    ]
    world = 1 if method == "single" else WORLD_SIZE
    return {
        "schema_version": 1, "status": "complete", "error": None, "method": method, "title": None,
        "synchronous": True, "staleness": None,
        "world_size": world, "num_workers": replicas if replicas < world else None, "num_replicas": replicas,
        "num_servers": 1 if replicas < world else None,
        "batch_size": GLOBAL_BATCH // replicas, "global_batch_size": GLOBAL_BATCH,
        "start_time": "2031-05-04 10:00:00", "end_time": "2031-05-04 10:05:00",
        "steps_per_epoch": steps, "samples_per_epoch": samples,
        "epochs": records, "all_losses": losses.tolist(),
        "best_accuracy": max(record["val_accuracy"] for record in records), "summary": _summary(records),
        "recipe": {"lr": 0.05, "momentum": 0.9, "seed": 42, "epochs": epochs, "lr_schedule": "cosine"},
        "dataset": {"name": "digits", "train_samples": samples, "val_samples": 600, "num_classes": 10,
                    "image_shape": [1, 28, 28], "accuracy_is_meaningful": True},
        "model": {"name": "groupnorm_cnn", "parameters": 120_000, "tensors": 14, "gradient_bytes": 480_000,
                  "batch_norm": False},
        "environment": {"python": "3.11.9", "torch": "2.11.0", "torchvision": "0.26.0", "device": "CPU x86_64",
                        "devices": ["cpu (CPU x86_64)"] * world, "cpu_cores": 8,
                        "threads_per_rank": 8 // world, "num_hosts": 1,
                        "ranks_per_host": world, "backend": "none" if world == 1 else "gloo",
                        "transport": "none" if world == 1 else "tcp over loopback"},
        "probe": None if exposed is None else _probe(sum(phases.values()), exposed, replicas, random),
        "communication": {"replica_bytes_per_step": 480_000.0 if world > 1 else 0.0, "replica_messages_per_step": 14.0},
        "initial_fingerprints": ["5f1e"] * replicas, "parameter_sketch": [0.0] * 64,
    }


def _probe(step: float, exposed: float, replicas: int, random: np.random.Generator) -> dict[str, Any]:
    local = (step - exposed) * 1e-3 * (1 + 0.01 * random.standard_normal(8))
    differences = exposed * 1e-3 * (1 + 0.1 * random.standard_normal(8))
    low, middle, high = np.percentile(differences, [25, 50, 75])
    return {"rounds": 8, "local_step_per_replica": [float(np.median(local))] * replicas,
            "local_step_times": local.tolist(), "step_times": (local + differences).tolist(),
            "exposed_communication": float(middle), "exposed_communication_iqr": float(high - low)}


def _losses(count: int) -> np.ndarray:
    progress = np.arange(count) / count
    return 0.25 + 2.05 * np.exp(-4 * progress) + 0.08 * np.random.default_rng(0).standard_normal(count)


def _epoch(index: int, losses: np.ndarray, samples: int, replicas: int, phases: dict[str, float],
           factor: float) -> dict[str, Any]:
    steps = len(losses)
    seconds = {name: value * 1e-3 * steps * factor for name, value in phases.items()}
    time = sum(seconds.values()) * 1.01
    step = {name: value / steps for name, value in seconds.items()}
    return {
        "epoch": index + 1, "train_loss": float(losses.mean()), "train_accuracy": 96.0 - 32 * 0.6**index,
        "train_time": time, "train_throughput": samples / time, "avg_batch_time": time / steps,
        "avg_comm_time": step.get("all_reduce"), "avg_comm_time_pull": step.get("pull"),
        "avg_comm_time_push": step.get("push"), "val_loss": float(losses.mean()) + 0.05,
        "val_accuracy": 95.0 - 32 * 0.6**index, "steps": steps, "samples": samples, "val_samples": 600,
        "learning_rate": 0.05 / (index + 1), "phases": seconds, "phases_per_replica": [seconds] * replicas,
        "step_times": [time / steps] * steps, "fingerprints": [f"a{index}"] * replicas,
        "parameter_sketch": [1.0 + index] * 64, "server": None,
    }


def _summary(epochs: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "avg_train_throughput": float(np.mean([epoch["train_throughput"] for epoch in epochs])),
        "avg_train_time_per_epoch": float(np.mean([epoch["train_time"] for epoch in epochs])),
        "best_val_accuracy": max(epoch["val_accuracy"] for epoch in epochs),
        "final_train_accuracy": epochs[-1]["train_accuracy"],
    }


def older(run: dict[str, Any], *, losses_in_epochs: bool = False) -> dict[str, Any]:
    """``run`` with nothing but the keys that older scripts write, its losses optionally inside each epoch."""
    kept = {key: run[key] for key in OLDER_KEYS}
    kept["epochs"] = [{key: epoch[key] for key in OLDER_EPOCH_KEYS} for epoch in run["epochs"]]
    if losses_in_epochs:
        losses = kept.pop("all_losses")
        size = len(losses) // len(kept["epochs"])
        for index, epoch in enumerate(kept["epochs"]):
            epoch["batch_losses"] = losses[index * size : (index + 1) * size]
    return {key: value for key, value in kept.items() if value is not None}


def write(directory: Path, *runs: dict[str, Any]) -> Path:
    """Each run as ``results_<method>.json`` in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for run in runs:
        failed = ".failed" if run.get("status") == "failed" else ""
        (directory / f"results_{run['method']}{failed}.json").write_text(json.dumps(run), encoding="utf-8")
    return directory


def at_throughput(run: dict[str, Any], throughput: float) -> dict[str, Any]:
    """``run`` at another speed (img/s), all its times scaled alike."""
    for epoch in run["epochs"]:
        factor = epoch["samples"] / throughput / epoch["train_time"]
        for key in ("train_time", "avg_batch_time", "avg_comm_time", "avg_comm_time_pull", "avg_comm_time_push"):
            epoch[key] = epoch[key] and epoch[key] * factor
        epoch["train_throughput"] = throughput
        epoch["phases"] = {name: seconds * factor for name, seconds in epoch["phases"].items()}
        epoch["phases_per_replica"] = [epoch["phases"]] * len(epoch["phases_per_replica"])
        epoch["step_times"] = [seconds * factor for seconds in epoch["step_times"]]
    run["summary"] = _summary(run["epochs"])
    return run


def trained_losses(fault: str = "", *, replicas: int = 4, steps: int = EPOCHS * STEPS, seed: int = 0,
                   rate: float = 0.3) -> list[float]:
    """Losses per step of a small network that several replicas really train, with one of the mistakes that occur."""
    data = np.random.default_rng(100)
    centres, labels = data.standard_normal((10, 24)), data.integers(10, size=TRAIN_SAMPLES)
    images = 0.6 * centres[labels] + data.standard_normal((TRAIN_SAMPLES, 24))
    networks = [_network(seed + {"weights not shared": replica, "another start": 50}.get(fault, 0))
                for replica in range(replicas)]
    losses = []
    for step in range(steps):
        epoch, place = divmod(step, STEPS)
        order = np.random.default_rng([seed + 7 * (fault == "another order"), epoch]).permutation(TRAIN_SAMPLES)
        batch = order[place * GLOBAL_BATCH : (place + 1) * GLOBAL_BATCH]
        shares = np.array_split(batch, replicas)
        results = [_loss_and_gradient(network, images[share], labels[share])
                   for network, share in zip(networks, shares, strict=True)]
        weights = np.array([len(share) / len(batch) for share in shares])
        losses.append(float(sum(weights * [loss for loss, _ in results])))
        factor = {"summed": replicas, "divided twice": 1 / replicas}.get(fault, 1.0)
        decayed = 0.05 if fault == "schedule" and step >= STEPS else 1.0
        for layer in (0, 1):
            mean = sum(weight * gradient[layer] for weight, (_, gradient) in zip(weights, results, strict=True))
            for network in networks:
                network[layer] -= rate * factor * decayed * mean
    return losses


def _network(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((24, 32)) / 24**0.5, 0.3 * random.standard_normal((32, 10)) / 32**0.5]


def _loss_and_gradient(network: list[np.ndarray], images: np.ndarray,
                       labels: np.ndarray) -> tuple[float, list[np.ndarray]]:
    hidden = np.tanh(images @ network[0])
    scores = hidden @ network[1]
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(chances[rows, labels]).mean())
    chances[rows, labels] -= 1
    error = chances / len(labels)
    return loss, [images.T @ ((error @ network[1].T) * (1 - hidden**2)), hidden.T @ error]
