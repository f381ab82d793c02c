"""Checks of a speed-up study as a whole, beside the audit of each of its points.

The points of a study differ in the number of ranks by design, and with it in what follows from that by a declared
rule: the global batch (weak scaling), the learning rate (``--scale-lr``). Everything else must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from gradsync.analysis import figures
from gradsync.analysis.checks_set import OF_THE_GROUP, differences, dump, recipe_facts
from gradsync.analysis.finding import COMPARISON, Finding
from gradsync.analysis.load import SINGLE, Run
from gradsync.analysis.message import Text, enumerated, joined, msg, printable
from gradsync.analysis.words import count, percent

if TYPE_CHECKING:
    from gradsync.analysis.scaling import Scaled

Rule = Literal["strong", "weak", "neither", "not known"]
# The names of these checks beyond those of the audit, as findings and the catalogue have them.
CHECKS = ("ranks", "superlinear", "cores", "reference")
FORBIDDING = frozenset({"recipe", "environment", "threads", "updates", "start", "ranks"})
OF_A_POINT = OF_THE_GROUP | {"devices"}
SUPERLINEAR = 1.05  # caches and clock rates make a few per cent; no division of labour does more


def batch_rule(runs: Sequence[Run]) -> Rule:
    """Strong: one global batch for all; weak: one batch per replica. A single number of replicas counts as strong."""
    sizes = [(figures.global_batch(run), figures.replicas(run)) for run in runs]
    if not all(batch and replicas for batch, replicas in sizes):
        return "not known"
    if len({batch for batch, _ in sizes}) == 1:
        return "strong"
    return "weak" if len({batch / replicas for batch, replicas in sizes}) == 1 else "neither"


def study_checks(points: Sequence[tuple[int, Sequence[Run]]]) -> list[Finding]:
    """All findings about one repeat, given as (ranks that the folder names, runs)."""
    runs = [run for _, found in points for run in found]
    return [*_ranks(points), *_recipe(runs), *_machine(runs), *_threads(runs), *_updates(runs), *_start(runs),
            *_reference(runs)]


def forbidding(findings: Sequence[Finding]) -> list[Finding]:
    """Those that forbid any speed-up."""
    return [finding for finding in findings if finding.check in FORBIDDING and finding.verdict == "invalid"]


def excused(rule: Rule, runs: Sequence[Run]) -> frozenset[str]:
    """Checks of a single point that may withhold its ranking of methods, but no method's speed-up over itself.

    Waiting for data is something that a study measures. And where the batch or the rate follows the replicas, a
    parameter server, whose server is none, trains differently from its neighbours with as many ranks.
    """
    follows = rule == "weak" or any(_scaling(run) == "replicas" for run in runs)
    return frozenset({"input-bound", *(("recipe", "updates", "same samples") if follows else ())})


def failure(error: str | None, label: Text) -> Finding:
    """A run that failed, where the table has a place for it."""
    return Finding("finished", "invalid", label, printable(error).rstrip(".") if error else msg("no reason given"),
                   msg("the run failed"), msg("remove the cause and run it again"))


def superlinear(row: Scaled) -> list[Finding]:
    """No more than all of N devices' work can be had from N devices."""
    share = row.efficiency
    if share is None or row.name == SINGLE or share.low <= SUPERLINEAR:
        return []
    text = msg("efficiency {share}, at least {low}, n = {n}", share=percent(share.median), low=percent(share.low),
               n=share.n)
    return [Finding("superlinear", "suspect", row.label, text,
                    msg("the single device was slowed down: another load, too little memory, fewer threads"),
                    msg("run the study again on an idle machine, with --repeats"))]


def oversubscribed(row: Scaled) -> list[Finding]:
    """More threads than cores take turns, so no speed-up can be expected there."""
    facts = row.runs[0].results.environment if row.runs else None
    if facts is None or not facts.device.lower().startswith("cpu"):
        return []
    threads = facts.ranks_per_host * facts.threads_per_rank
    if threads <= facts.cpu_cores:
        return []
    text = msg("{ranks} ranks with {threads} thread(s) each on {cores} core(s)", ranks=facts.ranks_per_host,
               threads=facts.threads_per_rank, cores=facts.cpu_cores)
    return [Finding("cores", "note", row.label, text, msg("ranks take turns on the cores"),
                    msg("read this point as what sharing cores costs, not as what devices add"))]


def _ranks(points: Sequence[tuple[int, Sequence[Run]]]) -> list[Finding]:
    wrong = [msg("{file}: {ranks} ranks", file=_called(run), ranks=count(run.results.world_size))
             for ranks, runs in points for run in runs if run.results.world_size not in (None, ranks)]
    if not wrong:
        return []
    return [Finding("ranks", "invalid", COMPARISON, enumerated(wrong),
                    msg("a file lies in the folder of another point"), msg("run the study again"))]


def _recipe(runs: Sequence[Run]) -> list[Finding]:
    found = differences("recipe", [(run, _facts(run)) for run in runs], msg("the points trained differently"),
                        msg("run the whole study with the same flags"), _called)
    unknown = [_called(run) for run in runs if run.results.recipe is None]
    if unknown:
        found.append(Finding("recipe", "not known", COMPARISON,
                             msg("no recipe in the file of {names}", names=joined(unknown))))
    text = msg("recipe, data set and model are equal in {count} runs", count=len(runs))
    return found or [Finding("recipe", "pass", COMPARISON, text)]


def _scaling(run: Run) -> str:
    """The rule of the learning rate: off, batch or replicas."""
    return str((run.results.recipe or {}).get("scale_lr") or "off")


def _facts(run: Run) -> dict[str, Any]:
    """What must be equal: all of the recipe, but of a rate that follows a declared rule its constant."""
    facts = recipe_facts(run)
    rule = {"batch": ("learning rate / global batch", figures.global_batch(run)),
            "replicas": ("learning rate / replicas", figures.replicas(run))}.get(_scaling(run))
    if rule is not None and rule[1] and isinstance(facts.get("lr"), (int, float)):
        facts[rule[0]] = float(f"{facts['lr'] / rule[1]:.6g}")
        facts.pop("lr")
    return {key: value for key, value in facts.items() if key != "learning rate at the end of each epoch"}


def _machine(runs: Sequence[Run]) -> list[Finding]:
    facts = [(run, {key: value for key, value in dump(run.results.environment).items()
                    if key not in OF_A_POINT and value is not None}) for run in runs]
    found = differences("environment", facts, msg("a difference in speed may be one of hardware or versions"),
                        msg("run the whole study on the same machine in one go"), _called)
    text = msg("machine and versions are equal in {count} runs", count=len(runs))
    return found or [Finding("environment", "pass", COMPARISON, text)]


def _threads(runs: Sequence[Run]) -> list[Finding]:
    """A single device with all cores to itself leaves nothing to gain, and one with fewer threads gives too much."""
    facts = [(run, {"threads per rank": run.results.environment.threads_per_rank})
             for run in runs if run.results.environment]
    found = differences("threads", facts, msg("points with more threads compute faster whatever the method does"),
                        msg("set OMP_NUM_THREADS to the same number for all points"), _called)
    text = msg("threads per rank are equal in {count} runs", count=len(facts))
    return found or ([Finding("threads", "pass", COMPARISON, text)] if facts else [])


def _updates(runs: Sequence[Run]) -> list[Finding]:
    rule = batch_rule(runs)
    if rule == "not known":
        return [Finding("updates", "not known", COMPARISON, msg("not every file tells batch and replicas"))]
    if rule == "neither":
        facts = [(run, {"global batch": figures.global_batch(run)}) for run in runs]
        return differences("updates", facts, msg("neither one global batch nor one batch per replica for all"),
                           msg("run the whole study with the same flags"), _called)
    steps = [(run, {"optimizer steps": figures.total_steps(run)}) for run in runs
             if figures.is_synchronous(run) is not False and figures.total_steps(run)]
    found = differences("updates", steps if rule == "strong" else [], msg("runs of different length"),
                        msg("run the whole study with the same flags"), _called)
    text = msg("one global batch for all") if rule == "strong" else msg("one batch per replica for all")
    return found or [Finding("updates", "pass", COMPARISON, text)]


def _start(runs: Sequence[Run]) -> list[Finding]:
    known = [(run, {"initial parameters": run.results.initial_fingerprints[0]})
             for run in runs if run.results.initial_fingerprints]
    found = differences("start", known, msg("the runs did not start from the same parameters"),
                        msg("use the same --seed, --model and --weights"), _called)
    text = msg("{count} runs started from the same parameters", count=len(known))
    return found or ([Finding("start", "pass", COMPARISON, text)] if known else [])


def _reference(runs: Sequence[Run]) -> list[Finding]:
    if any(run.name == SINGLE for run in runs):
        return []
    return [Finding("reference", "not known", COMPARISON, msg("there is no run of the single device"),
                    msg("ranks_1/results_single.json is missing"), msg("run the study again"))]


def _called(run: Run) -> str:
    return f"{run.path.parent.name}/{run.file}"
