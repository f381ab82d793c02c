"""What a variant is called, and that the name leads back to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.variants import check, num_servers, parse_variant_name, variant_name

NAMES = [
    ("baseline_ddp", {}, "baseline_ddp"),
    ("baseline_ddp", {"compress": "bf16", "transfer": "flat"}, "baseline_ddp_bf16"),
    ("all_reduce", {"variant": "overlapped", "bucket_mb": 2.0}, "all_reduce_overlapped"),
    ("all_reduce", {"variant": "flat", "compress": "powersgd"}, "all_reduce_flat_powersgd"),
    ("ps", {"num_servers": 1}, "ps"),
    ("ps", {"transfer": "pipelined", "num_servers": 12}, "ps_pipelined_12servers"),
    ("ps", {"mode": "ssp", "staleness": 0}, "ps_ssp_staleness0"),
    ("ps", {"mode": "async"}, "ps_async"),
]


@pytest.mark.parametrize(("method", "settings", "name"), NAMES)
def test_a_name_leads_back_to_its_settings(method, settings, name):
    assert variant_name(method, replace(TrainConfig(), **settings)) == name
    parsed, read = parse_variant_name(name)
    assert parsed == method
    assert variant_name(method, replace(TrainConfig(), **read)) == name


@pytest.mark.parametrize("name", [
    "", "ps_", "pst", "all", "all_reduce_pipelined", "ps_2", "ps_0servers", "ps_flat_flat", "ps_flat_pipelined",
    "single", "baseline_ddp_overlapped",
])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_variant_name(name)


@pytest.mark.parametrize(("method", "settings", "flag"), [
    ("ps", {"staleness": 2}, "--staleness 2"),
    ("ps", {"staleness": 2, "mode": "async"}, "--staleness 2"),
    ("baseline_ddp", {"compress": "powersgd", "channels_last": True}, "--channels-last"),
    ("baseline_ddp", {"compress": "powersgd", "amp": "fp16"}, "--amp fp16"),
])
def test_contradictions_are_refused(method, settings, flag):
    with pytest.raises(UsageError, match=flag):
        check(method, replace(TrainConfig(), **settings))
    check("all_reduce", replace(TrainConfig(), **settings))  # which does that, or has no such flag


def test_only_a_parameter_server_has_servers():
    config = TrainConfig(num_servers=3)
    assert [num_servers(method, config) for method in ("baseline_ddp", "all_reduce", "ps", "single")] == [0, 0, 3, 0]
