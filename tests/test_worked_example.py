"""The fourth method that docs/ARCHITECTURE.md shows works as shown, from the script to the comparison."""

from __future__ import annotations

import pytest
from test_parity import LOSS_TOLERANCE, PARAMETER_TOLERANCE
from worked_example import DOCUMENT, blocks, entered, follow


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict:
    return follow(DOCUMENT.read_text(), tmp_path_factory.mktemp("project"))


@pytest.mark.slow
def test_it_follows_the_oracle(done):
    losses, parameters = done["differences"]["None"]
    assert losses <= LOSS_TOLERANCE[True]
    assert parameters <= PARAMETER_TOLERANCE[True]


@pytest.mark.slow
def test_the_fault_that_it_plants_is_caught(done):
    planted = {fault: found for fault, found in done["differences"].items() if fault != "None"}
    assert planted
    for losses, parameters in planted.values():
        assert losses > 10 * LOSS_TOLERANCE[True]
        assert parameters > 10 * PARAMETER_TOLERANCE[True]


@pytest.mark.slow
def test_its_time_and_traffic_are_known(done):
    assert done["phases"] > 0
    assert done["bytes"] == 2 * done["gradient_bytes"]  # to rank 0, and back


def test_the_script_is_about_thirty_lines_of_code():
    body = blocks(DOCUMENT.read_text())[0].split("class ")[1]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 40


@pytest.mark.parametrize(("block", "complaint"), [
    ('    "x": (),\n', None),
    ('"x": (),\n', "indented by 4"),
    ('from y import Y\n\n    "x": (),\n', None),
    ('    from y import Y\n\n    "x": (),\n', "no import beside which"),
])
def test_entries_go_where_the_document_says(block, complaint):
    source = "from all_reduce_train import AllReduce\n\nTABLE: dict[str, tuple] = {\n}\n"
    if complaint is None:
        names: dict = {"AllReduce": 0}
        lines = entered(source, "TABLE", block).replace("from all_reduce_train import AllReduce\n", "")
        exec(lines.replace("from y import Y\n", "Y = 1\n"), names)
        assert names["TABLE"] == {"x": ()}
        assert ("Y" in names) == ("Y" in block)
    else:
        with pytest.raises(AssertionError, match=complaint):
            entered(source, "TABLE", block)
    with pytest.raises(AssertionError, match="no dictionary GONE"):
        entered(source, "GONE", '    "x": (),\n')
