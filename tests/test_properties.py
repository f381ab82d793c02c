"""Properties that hold for any input, tried on many: the results reader and the data order."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import sample_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradsync.data import GlobalBatchSampler, ValidationSampler
from gradsync.errors import UsageError
from gradsync.results import RunResults, read_results

TRIES = settings(max_examples=150, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner,
                                                                                         max_size=4), max_leaves=12)
SAMPLE = sample_results.sample("ps", epochs=2, steps=4)


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """Where each value stands in ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in paths(item, (*path, key)))]


PLACES = [path for path in paths(SAMPLE) if path]


def read(text: bytes, folder: Path) -> RunResults | None:
    """The results, or None where they are refused by name. Anything else that is raised is a fault."""
    path = folder / "results_x.json"
    path.write_bytes(text)
    with contextlib.suppress(UsageError):
        return read_results(path)
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: "):
        read_results(path)
    return None


@TRIES
@given(value=VALUES)
def test_any_json_is_read_or_refused_by_name(value, tmp_path):
    read(json.dumps(value).encode(), tmp_path)


@TRIES
@given(text=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_name(text, tmp_path):
    read(text, tmp_path)


@TRIES
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_at_any_place_of_a_results_file(place, value, tmp_path):
    data = json.loads(json.dumps(SAMPLE))
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    results = read(json.dumps(data).encode(), tmp_path)
    if results is not None:
        assert read(results.model_dump_json().encode(), tmp_path) == results


@given(samples=st.integers(1, 400), batch=st.integers(1, 500), replicas=st.integers(1, 9), epoch=st.integers(0, 5),
       seed=st.integers(0, 2**32 - 1))
@TRIES
def test_an_epoch_holds_every_sample_exactly_once(samples, batch, replicas, epoch, seed):
    samplers = [GlobalBatchSampler(samples, batch, replicas, replica, seed) for replica in range(replicas)]
    seen: list[tuple[int, int]] = []
    steps = set()
    for sampler in samplers:
        sampler.set_epoch(epoch)
        shares = list(sampler)
        steps.add(len(shares))
        assert all(shares), "a replica takes part in every step"
        for step, keys in enumerate(shares):
            own, _ = sampler.share(step)
            assert len(keys) == max(1, own)  # an empty share is stood in for, with weight 0
            seen += keys[:own]
    assert sorted(seen) == [(epoch, index) for index in range(samples)]
    assert steps == {-(-samples // batch)}


@given(samples=st.integers(0, 400), batch=st.integers(1, 500), replicas=st.integers(1, 9))
@TRIES
def test_validation_counts_every_sample_exactly_once(samples, batch, replicas):
    samplers = [ValidationSampler(samples, batch, replicas, replica) for replica in range(replicas)]
    assert [key for sampler in samplers for keys in sampler for key in keys] == [(0, i) for i in range(samples)]


def test_the_reader_is_not_merely_refusing(tmp_path):
    assert read(json.dumps(SAMPLE).encode(), tmp_path) is not None
    with pytest.raises(UsageError):
        read_results(tmp_path / "results_missing.json")
