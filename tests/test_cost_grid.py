"""The cost model against the measured grid that comes with the project.

The grid is a file, so the errors are the same in every run of these tests. What the documents say of them is held
against it, and a model that is told something wrong must be visibly farther off.
"""

from __future__ import annotations

import re

import pytest
from ranks import TOP

from gradsync.analysis import cost_grid
from gradsync.analysis.cost_grid import Cell, fit_costs, held_out, judge, read_grid, summarise
from gradsync.probed import ComputeProfile

GRID = TOP / "benchmarks" / "cost_grid.json"


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return read_grid(GRID)


def stated() -> dict[str, tuple[float, float]]:
    """Median and worst error in per cent, as docs/COST_MODEL.md states them, by what judged."""
    text = (TOP / "docs" / "COST_MODEL.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| (held-out cells|4 hosts from 2 and 3) \| \d+ \| ([\d.]+)% \| ([\d.]+)% \|$", text, re.M)
    return {name: (float(median), float(worst)) for name, median, worst in found}


def test_the_grid_is_what_the_document_says(cells):
    assert {cell.hosts for cell in cells} == {2, 3, 4}
    assert {cell.rate for cell in cells} == {1e8, 3e8, 1e9, 3e9, 1e10}
    assert len({(cell.hosts, cell.rate) for cell in cells}) == len(cells) >= 10
    assert all({"baseline_ddp", "all_reduce_overlapped_powersgd", "ps", "ps_pipelined"} <= cell.step.keys()
               for cell in cells)


@pytest.fixture(scope="module")
def errors(cells) -> dict[str, cost_grid.Errors]:
    return {"held-out cells": summarise(held_out(cells)),
            "4 hosts from 2 and 3": summarise(cost_grid.extrapolated(cells))}


def test_errors_on_cells_that_were_held_out(errors):
    assert errors["held-out cells"].median <= 0.10 and errors["held-out cells"].worst <= 0.25


def test_the_document_states_the_errors(errors):
    assert stated() == {name: (pytest.approx(100 * found.median, abs=0.1), pytest.approx(100 * found.worst, abs=0.1))
                        for name, found in errors.items()}


def _alter(cells: list[Cell], **changes) -> list[Cell]:
    return [cell.model_copy(update={key: change(cell) for key, change in changes.items()}) for cell in cells]


def _late(cell: Cell) -> dict[int, ComputeProfile]:
    """As if no gradient were there before the end of backward: nothing overlaps."""
    return {servers: one.model_copy(update={"gradients": [
        group.model_copy(update={"ready": one.backward}) for group in one.gradients]})
        for servers, one in cell.profiles.items()}


FAULTS = {
    "one host too many": lambda cells: _alter(cells, hosts=lambda cell: cell.hosts + 1),
    "rates swapped": lambda cells: _alter(cells, rate=lambda cell: 1e18 / cell.rate),
    "bits for bytes": lambda cells: _alter(cells, rate=lambda cell: cell.rate / 8),
    "a profile of twice the computing": lambda cells: _alter(cells, profiles=lambda cell: {
        servers: one.model_copy(update={"forward": one.forward + one.step}) for servers, one in cell.profiles.items()}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_the_model_is_told_shows_after_the_best_fit_too(fault, cells, errors):
    faulty = FAULTS[fault](cells)
    found = summarise(judge(faulty, fit_costs(faulty).costs))
    assert found.median > 1.5 * errors["held-out cells"].median or found.worst > 1.5 * errors["held-out cells"].worst


def test_overlap_ignored_shows_in_what_overlaps(cells):
    overlapping = ("baseline_ddp", "all_reduce_overlapped", "all_reduce_overlapped_fp16")
    costs = fit_costs(cells).costs

    def off(cells: list[Cell]) -> float:
        return summarise([one for one in judge(cells, costs) if one.row in overlapping]).median

    assert off(_alter(cells, profiles=_late)) > 1.3 * off(cells)
