"""Checks of comparability over all complete runs. Each is a pure function ``(runs) -> list[Finding]``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from gradsync.analysis import figures
from gradsync.analysis.finding import COMPARISON, Finding
from gradsync.analysis.layout import shortened
from gradsync.analysis.load import SINGLE, Run
from gradsync.analysis.message import Text, clauses, enumerated, joined, msg, printable, term
from gradsync.analysis.words import count, number

# A single device has no peers, so these differ by nature.
OF_THE_GROUP = frozenset({"world_size", "threads_per_rank", "num_hosts", "ranks_per_host", "backend", "transport"})
# What is compared beside the keys of the files, whose names are nobody's to translate.
OUR_KEYS = ("learning rate at the end of each epoch", "global batch", "optimizer steps", "number of epochs",
            "evaluated samples", "validation transforms", "initial parameters", "learning rate / global batch",
            "learning rate / replicas", "threads per rank")
SAME_FIRST_LOSS = 1e-4  # relative: same weights, same batch, float32
OTHER_WEIGHTS = 0.25  # relative: no batch of an untrained network is so far from another


def recipe(runs: Sequence[Run]) -> list[Finding]:
    """Recipe, data set and model are equal; every differing key is a finding of its own."""
    runs = figures.without_repeats(runs)
    found = differences("recipe", [(run, recipe_facts(run)) for run in runs], msg("the runs trained differently"),
                        msg("run all methods with the same flags"))
    unknown = [run.name for run in runs if run.results.recipe is None]
    if unknown:
        found.append(Finding("recipe", "not known", COMPARISON,
                             msg("no recipe in the file of {names}", names=joined(unknown))))
    text = msg("recipe, data set and model are equal in {count} runs", count=len(runs))
    return found or [Finding("recipe", "pass", COMPARISON, text)]


def recipe_facts(run: Run) -> dict[str, Any]:
    """Recipe, data set and model of a run, each fact once."""
    results, facts = run.results, figures.recipe(run) or {}
    sections = {"dataset": dump(results.dataset), "model": dump(results.model)}
    # What the recipe says once more would only be listed twice.
    further = {f"{title}.{key}": value for title, section in sections.items() for key, value in section.items()
               if value is not None and value not in (facts.get(key), facts.get(title))}
    rates = [epoch.learning_rate for epoch in results.epochs]
    return facts | further | ({"learning rate at the end of each epoch": rates} if any(rates) else {})


def environment(runs: Sequence[Run]) -> list[Finding]:
    """The same machine, versions and number of ranks; a single device is exempt from what concerns the group."""
    facts = [(run, _environment(run)) for run in runs]
    found = differences("environment", facts, msg("a difference in speed may be one of hardware or versions"),
                        msg("run all methods on the same machine in one go"))
    unknown = [run.name for run in runs if run.results.environment is None]
    if unknown:
        found.append(Finding("environment", "not known", COMPARISON,
                             msg("no environment in the file of {names}", names=joined(unknown))))
    text = msg("machine, versions and ranks are equal in {count} runs", count=len(runs))
    return found or [Finding("environment", "pass", COMPARISON, text)]


def _environment(run: Run) -> dict[str, Any]:
    facts = dump(run.results.environment)
    facts["devices"] = sorted(set(facts.get("devices", []))) or None
    facts["world_size"] = run.results.world_size
    return {key: value for key, value in facts.items()
            if value is not None and not (run.name == SINGLE and key in OF_THE_GROUP)}


def updates(runs: Sequence[Run]) -> list[Finding]:
    """The same global batch, and the same number of optimizer steps and epochs; asynchronous runs make more updates."""
    runs = [run for run in runs if figures.is_synchronous(run) is not False]
    if len(runs) < 2:
        return []
    facts = [(run, {"global batch": figures.global_batch(run), "optimizer steps": figures.total_steps(run),
                    "number of epochs": len(run.results.epochs)}) for run in runs]
    facts = [(run, {key: value for key, value in values.items() if value}) for run, values in facts]
    found = differences("updates", facts, msg("the runs made other updates, so neither speed nor a curve per epoch "
                                              "compares"),
                        msg("give all runs the same --global-batch-size and --epochs"))
    unknown = [run.name for run, values in facts if len(values) < 3]
    if unknown:
        found.append(Finding("updates", "not known", COMPARISON,
                             msg("global batch or steps unknown for {names}", names=joined(unknown))))
    shared = enumerated([msg("{key} {value}", key=term(key), value=count(value)) for key, value in facts[0][1].items()])
    text = msg("equal in {count} runs: {facts}", count=len(runs), facts=shared)
    return found or [Finding("updates", "pass", COMPARISON, text)]


def evaluation(runs: Sequence[Run]) -> list[Finding]:
    """All runs are evaluated on equally many samples, seen through the same transforms."""
    facts = [(run, {key: value for key, value in _evaluation(run).items() if value}) for run in runs]
    return differences("evaluation", facts, msg("the runs are not evaluated on the same data"),
                       msg("do not compare their accuracies; evaluate the saved models alike"))


def _evaluation(run: Run) -> dict[str, Any]:
    data = run.results.dataset
    return {"evaluated samples": next((epoch.val_samples for epoch in run.results.epochs), None),
            "validation transforms": data and data.val_transforms}


def start(runs: Sequence[Run]) -> list[Finding]:
    """All runs start from the same parameters: by their fingerprints, else by their first losses."""
    runs = figures.without_repeats(runs)
    known = [(run, {"initial parameters": run.results.initial_fingerprints[0]})
             for run in runs if run.results.initial_fingerprints]
    if len(known) < 2:
        return [_first_losses(runs)]
    found = differences("start", known, msg("the runs did not start from the same parameters"),
                        msg("use the same --seed, --model and --weights"))
    text = msg("{count} runs started from the same parameters", count=len(known))
    return found or [Finding("start", "pass", COMPARISON, text)]


def _first_losses(runs: Sequence[Run]) -> Finding:
    """What the losses of step 1 say of the start, where no fingerprints do."""
    known = [run for run in runs if run.results.all_losses]
    if len(known) < 2:
        text = msg("fewer than two files hold a fingerprint of their start, or a first loss")
        return Finding("start", "not known", COMPARISON, text)
    losses = [run.results.all_losses[0] for run in known]
    low, high = min(losses), max(losses)
    chances = {chance for run in known if (chance := figures.chance_loss(run))}
    text: Text = msg("first losses {losses}", losses=enumerated([f"{run.name} {number(loss)}" for run, loss in
                                                                  zip(known, losses, strict=True)]))
    if all(figures.chance_loss(run) for run in known) and len(chances) == 1:
        classes, chance = chances.pop()
        text = clauses([text, msg("an untrained network has about ln {classes} = {chance}", classes=classes,
                                  chance=number(chance))])
    if high - low <= SAME_FIRST_LOSS * max(abs(high), 1e-12):
        return Finding("start", "pass", COMPARISON, text)
    if high - low > OTHER_WEIGHTS * abs(high):
        return Finding("start", "suspect", COMPARISON, text,
                       msg("the runs did not start from the same parameters: some were trained before"),
                       msg("use the same --seed, --model and --weights"))
    unproven = msg("so equal weights are neither shown nor refuted")
    return Finding("start", "not known", COMPARISON, clauses([text, unproven]))


def differences(check: str, facts: list[tuple[Run, dict[str, Any]]], cause: Text, action: Text,
                called: Callable[[Run], str] = lambda run: run.file) -> list[Finding]:
    """One finding for each key whose known values differ, with values and files, as ``called`` names them."""
    found = []
    for key in sorted({key for _, values in facts for key in values}):
        files: dict[str, list[str]] = {}
        for run, values in facts:
            if key in values:
                files.setdefault(_shown(values[key]), []).append(called(run))
        if len(files) > 1:
            parts = [msg("{value} in {files}", value=shortened(value, 120), files=joined(names))
                     for value, names in files.items()]
            text = msg("{key} is {values}", key=term(key) if key in OUR_KEYS else key, values=clauses(parts))
            found.append(Finding(check, "invalid", COMPARISON, text, cause, action))
    return found


def _shown(value: Any) -> str:
    return printable(json.dumps(value, sort_keys=True, ensure_ascii=False))


def dump(section: Any) -> dict[str, Any]:
    return section.model_dump() if section is not None else {}
