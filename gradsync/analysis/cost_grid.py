"""The measured grid to which the cost model is fitted and by which it is judged (``benchmarks/cost_grid.py``)."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from gradsync.analysis.cost_model import Cluster, Costs, servers_of, shaped_link, step_time
from gradsync.analysis.least_squares import fit
from gradsync.config import TrainConfig
from gradsync.errors import UsageError
from gradsync.probed import ComputeProfile
from gradsync.section import Section

# Where the search begins; only the order of magnitude matters.
START = Costs(latency=3e-4, message=1e-4, byte=3e-10, reduce=3e-10, collect=3e-10, serial=0.3)
PRIOR = 0.05  # an e-fold from there weighs as much as a row that is 5% wrong: it only settles what no row tells


class Cell(Section):
    """One job on emulated hosts: the measured step of each row, and what the model is told of the cell."""

    hosts: int = Field(ge=2)
    rate: float = Field(gt=0)  # bits/s of each host's link
    cores: int = Field(gt=0)
    model: str
    batch_size: int
    image_size: int
    rounds: int
    steps: int = Field(gt=0)  # of a row in a round, from a common start
    bucket_mb: float | None
    chunk_mb: float
    step: dict[str, tuple[float, float, float]]  # seconds: lower quartile, median, upper quartile of the rounds
    profiles: dict[int, ComputeProfile]  # by the number of ranks that serve, and therefore do not compute

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(bucket_mb=self.bucket_mb, chunk_mb=self.chunk_mb)


@dataclass(frozen=True)
class Judged:
    """A row of a cell."""

    cell: Cell
    row: str
    measured: float  # seconds
    predicted: float

    @property
    def error(self) -> float:
        """Relative: 0.1 is predicted a tenth too long."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Fitted:
    """``factors``: each cost is known to within this factor, one standard error."""

    costs: Costs
    factors: dict[str, float]


def read_grid(path: Path) -> list[Cell]:
    """Raises UsageError that names the file and what is wrong with it."""
    try:
        cells = TypeAdapter(list[Cell]).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: is not JSON ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if min(len({cell.hosts for cell in cells}), len({cell.rate for cell in cells})) < 2:
        raise UsageError(f"{path}: the model is judged by what it was not fitted to, so it needs cells with two "
                         "numbers of hosts and two rates at least")
    return cells


def rows(cell: Cell) -> list[str]:
    """What is predicted of a cell: all but the step without synchronisation, which it is told."""
    return [row for row in cell.step if row != "none"]


def predict(cell: Cell, row: str, costs: Costs) -> float:
    """Seconds of a step of ``row``, from the cell's compute profile and the nominal rate of its links."""
    cluster = Cluster(cell.hosts, shaped_link(cell.rate), costs, cell.cores)
    return step_time(row, cell.profiles[servers_of(row)], cluster, cell.config, cell.steps)


def fit_costs(cells: Sequence[Cell]) -> Fitted:
    """The costs that explain ``cells`` best: least squares of the logarithm of predicted / measured."""
    pairs = [(cell, row, cell.step[row][1]) for cell in cells for row in rows(cell)]
    names = [field.name for field in fields(Costs)]
    start = np.log(np.array(astuple(START)))

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        costs = Costs(*np.exp(logarithms).tolist())
        misses = [np.log(predict(cell, row, costs) / measured) for cell, row, measured in pairs]
        return np.array([*misses, *PRIOR * (logarithms - start)])

    found = fit(residuals, start)
    return Fitted(Costs(*np.exp(found.values).tolist()),
                  dict(zip(names, np.exp(np.minimum(found.errors, 50)).tolist(), strict=True)))


def judge(cells: Sequence[Cell], costs: Costs) -> list[Judged]:
    return [Judged(cell, row, cell.step[row][1], predict(cell, row, costs)) for cell in cells for row in rows(cell)]


@dataclass(frozen=True)
class Errors:
    """Of predictions for cells that the fit had not seen, as shares of what was measured."""

    n: int  # predictions
    median: float
    worst: float


def held_out(cells: Sequence[Cell]) -> list[Judged]:
    """Every cell judged by costs fitted to other cells: the grid in two halves, as the squares of a chessboard."""
    rates = sorted({cell.rate for cell in cells})
    halves: tuple[list[Cell], list[Cell]] = ([], [])
    for cell in cells:
        halves[(rates.index(cell.rate) + cell.hosts) % 2].append(cell)
    return [one for fitted, rest in (halves, halves[::-1]) for one in judge(rest, fit_costs(fitted).costs)]


def extrapolated(cells: Sequence[Cell]) -> list[Judged]:
    """The largest number of hosts judged by costs fitted to all smaller ones."""
    most = max(cell.hosts for cell in cells)
    return judge([cell for cell in cells if cell.hosts == most],
                 fit_costs([cell for cell in cells if cell.hosts < most]).costs)


def summarise(judged: Sequence[Judged]) -> Errors:
    sizes = [abs(one.error) for one in judged]
    return Errors(len(sizes), statistics.median(sizes), max(sizes))


def told_apart(judged: Sequence[Judged]) -> float:
    """How much the predictions for two rows must differ to be told apart, as a share.

    Nine in ten ratios of two rows of one cell were within this of the measured ratio.
    """
    ratios = [abs((1 + one.error) / (1 + other.error) - 1) for one, other in itertools.permutations(judged, 2)
              if one.cell is other.cell]
    return float(np.quantile(ratios, 0.9))
