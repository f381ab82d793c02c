"""Every synchronous method, at any number of ranks, follows the single-process trajectory.

Tolerances. A global batch's gradient is the same sum in another order. In one step the difference is a few
units of rounding (float32: 6e-8, float64: 1.1e-16), which ten steps of SGD with momentum carry along without
amplifying, because the learning rate is one at which the loss falls. (At 0.05 it oscillates, and the same
rounding grows to 3e-3.) Largest differences measured over all methods, ranks and jobs: float32 7e-7 in a
loss and 3e-6 in a parameter, float64 9e-16 and 2e-16. The bounds leave a factor of 20 for other processors'
kernels; every planted fault is beyond ten times the bound.
"""

from __future__ import annotations

import numpy as np
import pytest
from parity import FAULTS, METHODS, VAL_SAMPLES, VARIANTS, Job, Trajectory, oracle, train_on_rank
from ranks import run_ranks

LOSS_TOLERANCE = {False: 1.5e-5, True: 2e-14}
PARAMETER_TOLERANCE = {False: 6e-5, True: 5e-15}
JOBS = [Job(samples, double) for samples in (70, 66) for double in (False, True)]
VARIANT_JOBS = [Job(70, double=False), Job(66, double=True)]
RUNS = [(name, job) for name in METHODS for job in JOBS] + [(name, job) for name in VARIANTS for job in VARIANT_JOBS]
FAULTY_JOB = Job(70, double=False)
WORLD_SIZES = (2, 3, 4)


def differences(run: Trajectory, reference: Trajectory) -> tuple[float, float]:
    """Largest absolute difference of a step's loss, and of a parameter."""
    assert len(run.losses) == len(reference.losses)
    losses = max(abs(a - b) for a, b in zip(run.losses, reference.losses, strict=True))
    parameters = max(float(np.abs(run.parameters[name] - value).max()) for name, value in reference.parameters.items())
    return losses, parameters


@pytest.fixture(scope="module")
def oracles() -> dict[Job, Trajectory]:
    return {job: oracle(job) for job in JOBS}


@pytest.fixture(scope="module")
def runs() -> dict[int, dict[tuple[str, Job, str | None], list[Trajectory]]]:
    """All runs of all tests, one launch per number of ranks."""
    good = [(name, job, None) for name, job in RUNS]
    faulty = [(name, FAULTY_JOB, fault) for fault, methods in FAULTS.items() for name in methods]
    done = {}
    for world_size in WORLD_SIZES:
        wanted = good + (faulty if world_size == 4 else [])
        by_rank = run_ranks(train_on_rank, world_size, wanted)
        done[world_size] = dict(zip(wanted, zip(*by_rank, strict=True), strict=True))
    return done


@pytest.mark.parametrize(("method", "job"), [
    pytest.param(name, job, id=f"{name}-{job.samples}-{'f64' if job.double else 'f32'}") for name, job in RUNS])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_method_follows_the_single_process_trajectory(world_size, method, job, runs, oracles):
    for rank, run in enumerate(runs[world_size][method, job, None]):
        if run.losses:  # a server keeps none
            losses, parameters = differences(run, oracles[job])
            print(f"rank {rank}: loss {losses:.2e}, parameters {parameters:.2e}")
            assert losses <= LOSS_TOLERANCE[job.double]
            assert parameters <= PARAMETER_TOLERANCE[job.double]
            assert run.val_loss == pytest.approx(oracles[job].val_loss, abs=LOSS_TOLERANCE[job.double])
            assert run.val_accuracy == pytest.approx(oracles[job].val_accuracy, abs=1e-9)


@pytest.mark.parametrize("method", [*METHODS, *VARIANTS])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_counts(world_size, method, runs):
    run = runs[world_size][method, JOBS[0], None][-1]
    for epoch in run.results.epochs:
        assert epoch.samples == 70
        assert epoch.val_samples == VAL_SAMPLES
        assert epoch.steps == 5 == len(epoch.step_times)
        assert epoch.train_throughput * epoch.train_time == pytest.approx(70)


@pytest.mark.parametrize(("fault", "method"), [(fault, name) for fault, methods in FAULTS.items() for name in methods])
def test_planted_fault_is_caught(fault, method, runs, oracles):
    run = runs[4][method, FAULTY_JOB, fault][-1]
    losses, parameters = differences(run, oracles[FAULTY_JOB])
    assert losses > 10 * LOSS_TOLERANCE[False]
    assert parameters > 10 * PARAMETER_TOLERANCE[False]
