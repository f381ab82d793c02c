"""Checks of comparability over all complete runs. Each is a pure function ``(runs) -> list[Finding]``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradsync.analysis import figures
from gradsync.analysis.finding import COMPARISON, Finding
from gradsync.analysis.load import BASELINE, METHODS, SINGLE, Run
from gradsync.analysis.words import count, joined, number, printable, shortened

# Per replica, or written again at the top of the file with its final value.
NOT_COMPARED = frozenset({"batch_size", "global_batch_size"})
# A single device has no peers, so these differ by nature.
OF_THE_GROUP = frozenset({"world_size", "threads_per_rank", "num_hosts", "ranks_per_host", "backend", "transport"})
EARLY_STEPS = 10
# Rounding cannot reach 1% of the loss in ten steps; afterwards training amplifies it.
SAME_TRAJECTORY = 0.01
# Runs that differ by rounding alone end within this share of the first losses of each other.
SAME_END = 0.05
# BatchNorm over shares of another size moves single losses and the end by no more than this.
WITH_BATCHNORM = 0.10


def recipe(runs: Sequence[Run]) -> list[Finding]:
    """Recipe, data set and model are equal; every differing key is a finding of its own."""
    found = _differences("recipe", [(run, _recipe(run)) for run in runs],
                         "the runs trained differently", "run all methods with the same flags")
    unknown = [run.name for run in runs if run.results.recipe is None]
    if unknown:
        found.append(Finding("recipe", "not known", COMPARISON, f"no recipe in the file of {joined(unknown)}"))
    return found or [Finding("recipe", "pass", COMPARISON, f"recipe, data set and model are equal in {len(runs)} runs")]


def _recipe(run: Run) -> dict[str, Any]:
    results = run.results
    facts = {key: value for key, value in (results.recipe or {}).items() if key not in NOT_COMPARED}
    facts |= {f"dataset.{key}": value for key, value in _dump(results.dataset).items()}
    facts |= {f"model.{key}": value for key, value in _dump(results.model).items()}
    rates = [epoch.learning_rate for epoch in results.epochs]
    return facts | ({"learning rate at the end of each epoch": rates} if any(rates) else {})


def environment(runs: Sequence[Run]) -> list[Finding]:
    """The same machine, versions and number of ranks; a single device is exempt from what concerns the group."""
    facts = [(run, _environment(run)) for run in runs]
    found = _differences("environment", facts, "a difference in speed may be one of hardware or versions",
                         "run all methods on the same machine in one go")
    unknown = [run.name for run in runs if run.results.environment is None]
    if unknown:
        text = f"no environment in the file of {joined(unknown)}"
        found.append(Finding("environment", "not known", COMPARISON, text))
    text = f"machine, versions and ranks are equal in {len(runs)} runs"
    return found or [Finding("environment", "pass", COMPARISON, text)]


def _environment(run: Run) -> dict[str, Any]:
    facts = _dump(run.results.environment)
    facts["devices"] = sorted(set(facts.get("devices", []))) or None
    facts["world_size"] = run.results.world_size
    return {key: value for key, value in facts.items()
            if value is not None and not (run.name == SINGLE and key in OF_THE_GROUP)}


def updates(runs: Sequence[Run]) -> list[Finding]:
    """The same global batch, and the same number of optimizer steps and epochs."""
    facts = [(run, {"global batch": figures.global_batch(run), "optimizer steps": figures.total_steps(run),
                    "epochs": len(run.results.epochs)}) for run in runs]
    facts = [(run, {key: value for key, value in values.items() if value}) for run, values in facts]
    found = _differences("updates", facts, "the runs made other updates, so neither speed nor loss compares",
                         "give all runs the same --global-batch-size and --epochs")
    unknown = [run.name for run, values in facts if len(values) < 3]
    if unknown:
        text = f"global batch or steps unknown for {joined(unknown)}"
        found.append(Finding("updates", "not known", COMPARISON, text))
    text = ", ".join(f"{key} {count(value)}" for key, value in facts[0][1].items())
    return found or [Finding("updates", "pass", COMPARISON, f"equal in {len(runs)} runs: {text}")]


def start(runs: Sequence[Run]) -> list[Finding]:
    """All runs start from the same parameters."""
    known = [(run, {"initial parameters": run.results.initial_fingerprints[0]})
             for run in runs if run.results.initial_fingerprints]
    if len(known) < 2:
        return [Finding("start", "not known", COMPARISON, "fewer than two files hold a fingerprint of their start")]
    found = _differences("start", known, "the runs did not start from the same parameters",
                         "use the same --seed, --model and --weights")
    return found or [Finding("start", "pass", COMPARISON, f"{len(known)} runs started from the same parameters")]


def trajectory(runs: Sequence[Run]) -> list[Finding]:
    """Synchronous methods follow the loss of the baseline (or of the single device) step by step."""
    candidates = {run.name: run for run in runs if run.results.all_losses}
    reference = candidates.get(BASELINE) or candidates.get(SINGLE) or next(iter(candidates.values()), None)
    if reference is None or len(candidates) < 2:
        return [Finding("trajectory", "not known", COMPARISON, "fewer than two files hold losses per step")]
    return [_against(run, reference) for run in candidates.values() if run is not reference]


def _against(run: Run, reference: Run) -> Finding:
    common = min(len(run.results.all_losses), len(reference.results.all_losses))
    losses, expected = np.array(run.results.all_losses[:common]), np.array(reference.results.all_losses[:common])
    difference = np.abs(losses - expected)
    scale = max(float(np.max(np.abs(expected[:EARLY_STEPS]))), 1e-12)
    early, tail = float(difference[:EARLY_STEPS].max()), max(1, common // 10)
    end = abs(float(losses[-tail:].mean() - expected[-tail:].mean()))
    step = int(difference.argmax())
    text = (f"largest loss difference from {reference.name}: {number(float(difference[step]), 2)} at step {step + 1} "
            f"of {common}; {number(early, 2)} in the first {min(common, EARLY_STEPS)} steps, "
            f"{number(end, 2)} between the means of the last {tail}")
    if difference[step] <= SAME_TRAJECTORY * scale:
        return Finding("trajectory", "pass", run.name, text)
    if early <= SAME_TRAJECTORY * scale and end <= SAME_END * scale:
        return Finding("trajectory", "note", run.name, text,
                       "rounding, amplified by training: same early steps, same end")
    if run.name not in METHODS:
        return Finding("trajectory", "note", run.name, text,
                       "another update rule, or a fault: whether this method is synchronous is not known")
    if figures.replicas(run) != figures.replicas(reference) and max(early, end) <= WITH_BATCHNORM * scale:
        return Finding("trajectory", "note", run.name, text,
                       "the numbers of replicas differ: BatchNorm statistics are per replica",
                       "compare a model without BatchNorm to tell this from a fault")
    return Finding("trajectory", "suspect", run.name, text, "the runs do not compute the same updates",
                   "compare gradients of step 1 with the baseline's")


def _differences(check: str, facts: list[tuple[Run, dict[str, Any]]], cause: str, action: str) -> list[Finding]:
    """One finding for each key whose known values differ, with values and files."""
    found = []
    for key in sorted({key for _, values in facts for key in values}):
        files: dict[str, list[str]] = {}
        for run, values in facts:
            if key in values:
                files.setdefault(_shown(values[key]), []).append(run.file)
        if len(files) > 1:
            text = "; ".join(f"{shortened(value, 120)} in {joined(names)}" for value, names in files.items())
            found.append(Finding(check, "invalid", COMPARISON, f"{printable(key)} is {text}", cause, action))
    return found


def _shown(value: Any) -> str:
    return printable(json.dumps(value, sort_keys=True, ensure_ascii=False))


def _dump(section: Any) -> dict[str, Any]:
    return section.model_dump() if section is not None else {}
