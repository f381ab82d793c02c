"""Checks that one run's file can pass or fail by itself. Each is a pure function ``(run) -> list[Finding]``."""

from __future__ import annotations

from gradsync.analysis import figures
from gradsync.analysis.finding import Finding
from gradsync.analysis.load import Run
from gradsync.analysis.message import clauses, enumerated, msg, printable
from gradsync.analysis.words import count, number, percent
from gradsync.results import Summary, summarise

SUMMARY_TOLERANCE = 0.02


def finished(run: Run) -> list[Finding]:
    """A complete run holds at least one epoch."""
    if run.results.epochs:
        return [Finding("finished", "pass", run.name, msg("epochs: {count}", count=len(run.results.epochs)))]
    return [Finding("finished", "invalid", run.name, msg("{file} holds no epoch", file=run.file),
                    msg("the run ended early"), msg("run it again"))]


def values(run: Run) -> list[Finding]:
    """Every figure is in its range: accuracies in percent, losses and rates not negative; reading refuses NaN."""
    wrong = []
    for epoch in run.results.epochs:
        for key in ("train_accuracy", "val_accuracy", "train_loss", "val_loss", "train_throughput"):
            value = getattr(epoch, key)
            if value is not None and (value < 0 or (key.endswith("accuracy") and value > 100)):
                wrong.append(msg("{key} {value} in epoch {epoch}", key=key, value=number(value), epoch=epoch.epoch))
    if wrong:
        return [Finding("values", "invalid", run.name, enumerated(wrong[:3]), msg("a figure outside its range"),
                        msg("look for a wrong unit or a counter that ran over"))]
    known = [epoch.val_accuracy for epoch in run.results.epochs if epoch.val_accuracy is not None]
    if known and 0 < max(known) <= 1 and figures.accuracy_is_meaningful(run):
        return [Finding("values", "note", run.name, msg("best validation accuracy {value}", value=number(max(known))),
                        msg("a fraction where per cent are expected, or a model that has learnt nothing"),
                        msg("write accuracies in per cent"))]
    return [Finding("values", "pass", run.name, msg("every figure is finite and in its range"))]


def summary(run: Run) -> list[Finding]:
    """The summary repeats what the epochs say, within 2%."""
    if run.results.summary is None:
        return [Finding("summary", "not known", run.name, msg("the file holds no summary"))]
    claimed, found = run.results.summary, summarise(run.results.epochs)
    pairs = {key: (getattr(claimed, key), getattr(found, key)) for key in Summary.model_fields}
    known = {key: pair for key, pair in pairs.items() if pair[0] is not None and pair[1] is not None}
    if not known:
        return [Finding("summary", "not known", run.name, msg("summary and epochs hold no figure in common"))]
    wrong = [msg("{key} {said}, from the epochs {found}", key=key, said=number(said), found=number(found))
             for key, (said, found) in known.items()
             if abs(said - found) > SUMMARY_TOLERANCE * max(abs(said), abs(found))]
    if wrong:
        return [Finding("summary", "suspect", run.name, clauses(wrong),
                        msg("the summary was computed from other figures"),
                        msg("trust the epochs; this analysis uses only them"))]
    return [Finding("summary", "pass", run.name, msg("{count} figures agree with the epochs", count=len(known)))]


def replicas_agree(run: Run) -> list[Finding]:
    """All replicas hold the same parameters before step 1 and after each epoch."""
    stages = [(msg("before step 1"), run.results.initial_fingerprints)]
    stages += [(msg("after epoch {epoch}", epoch=epoch.epoch), epoch.fingerprints) for epoch in run.results.epochs]
    known = [(stage, prints) for stage, prints in stages if prints]
    if not known:
        text = msg("the file holds no fingerprints of the parameters")
        return [Finding("replicas", "not known", run.name, text)]
    for stage, prints in known:
        if len(set(prints)) > 1:
            text = msg("{different} different sets of parameters on {replicas} replicas {stage}",
                       different=len(set(prints)), replicas=len(prints), stage=stage)
            return [Finding("replicas", "invalid", run.name, text, msg("the replicas do not train one model"),
                            msg("broadcast the start, and apply the same averaged gradient everywhere"))]
    text = msg("parameters equal on all replicas, checked {count} times", count=len(known))
    return [Finding("replicas", "pass", run.name, text)]


def server_updates(run: Run) -> list[Finding]:
    """A synchronous parameter server updates once a step, not once a push."""
    if figures.is_synchronous(run) is False:
        return []
    known = [(epoch.epoch, epoch.server.updates, epoch.steps) for epoch in run.results.epochs
             if epoch.server and epoch.steps is not None]
    wrong = [msg("epoch {epoch}: {updates} updates in {steps} steps", epoch=epoch, updates=updates, steps=steps)
             for epoch, updates, steps in known if updates != steps]
    if wrong:
        return [Finding("server updates", "invalid", run.name, clauses(wrong[:3]),
                        msg("the server updates for each push instead of each global batch"),
                        msg("average the gradients of all workers, then update once"))]
    return [Finding("server updates", "pass", run.name, msg("one update a step"))] if known else []


def staleness(run: Run) -> list[Finding]:
    """An asynchronous run says how stale its gradients were; else nobody knows what its speed was bought with."""
    if figures.is_synchronous(run) is not False:
        return []
    record = {int(steps): updates for steps, updates in (run.results.staleness or {}).items() if steps.isdecimal()}
    total = sum(record.values())
    if not total:
        return [Finding("staleness", "invalid", run.name, msg("an asynchronous run without a record of its staleness"),
                        msg("how old the gradients were that it applied is not known"),
                        msg("count the updates between each pull and the push that answers it"))]
    mean = sum(steps * updates for steps, updates in record.items()) / total
    text = msg("gradients are {mean} updates old on average, {most} at most, over {updates} updates",
               mean=number(mean, 3), most=max(record), updates=count(total))
    return [Finding("staleness", "pass", run.name, text)]


def resumed(run: Run) -> list[Finding]:
    """A run that was taken up from a checkpoint says where, which must be a place that it has."""
    if not run.results.resumed_at:
        return []
    steps = {epoch.epoch: epoch.steps for epoch in run.results.epochs}
    places = enumerated([msg("epoch {epoch} after step {step}", epoch=stop.epoch, step=stop.step)
                         for stop in run.results.resumed_at])
    text = msg("taken up from a checkpoint in {places}", places=places)
    last = max(steps, default=0)
    if any(not 1 <= stop.epoch <= last + 1 or (stop.step and stop.step >= (steps.get(stop.epoch) or 0))
           for stop in run.results.resumed_at):
        return [Finding("resumed", "invalid", run.name, text, msg("the run has no such place"),
                        msg("the file was put together from several runs; run it again"))]
    changed = [change for stop in run.results.resumed_at for change in stop.changed]
    if changed:
        return [Finding("resumed", "suspect", run.name, clauses([text, *map(printable, changed)]),
                        msg("its parts ran in different environments"),
                        msg("run it again in one environment"))]
    return [Finding("resumed", "note", run.name, text,
                    msg("the run was interrupted; its times are sums over several processes"),
                    msg("where speed matters, run it again undisturbed"))]


def evaluation(run: Run) -> list[Finding]:
    """Each epoch evaluates the whole validation set, every sample once."""
    data = run.results.dataset
    counts = {epoch.val_samples for epoch in run.results.epochs if epoch.val_samples is not None}
    if data is None or not data.val_samples or not counts:
        text = msg("the file does not tell how many samples it evaluated")
        return [Finding("evaluation", "not known", run.name, text)]
    worst = max(counts, key=lambda value: abs(value - data.val_samples))
    text = msg("{evaluated} of {total} validation samples evaluated ({share})", evaluated=count(worst),
               total=count(data.val_samples), share=percent(worst / data.val_samples))
    if worst == data.val_samples:
        return [Finding("evaluation", "pass", run.name, text)]
    cause = (msg("a sampler that pads: some samples count twice") if worst > data.val_samples else
             msg("only some replicas' shares were counted, or a last batch was dropped"))
    return [Finding("evaluation", "suspect", run.name, text, cause,
                    msg("evaluate every sample once, and add the replicas' sums"))]
