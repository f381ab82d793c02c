"""The formulas of docs/METHODS.md against what real runs count.

Every formula of its table is an expression in a code span. It is evaluated for each variant that the flags can choose,
and compared with the bytes and messages that a short run of that variant counted where it sent them.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re
from dataclasses import dataclass, replace

import pytest
from parity import Job, Trajectory, train_on_rank
from ranks import TOP, run_ranks

from gradsync.analysis.lower_bound import least_seconds as computed_bound
from gradsync.config import METHOD_CHOICES, TrainConfig
from gradsync.ddp_compression import FIRST_COMPRESSED_STEP
from gradsync.variants import METHODS, num_servers, parse_variant_name, variant_name
from gradsync.variants import settings as settings_of

RANKS = 4
SERVERS = (1, 2)
ELEMENT, CHUNK, RATE = 4, 2**14, 1e9  # bytes, bytes, bytes/s
# One epoch of two steps. The counts are those of the last epoch, so a second one tells what happens after two steps.
JOB = Job(32, double=False, config=TrainConfig(epochs=1, lr=0.01, bucket_mb=0.03, chunk_mb=CHUNK / 2**20))
LONGER = replace(JOB, config=replace(JOB.config, epochs=2))
DEFERS = "baseline_ddp_powersgd"  # compresses from its third step
SHAPES = [tuple(parameter.shape) for parameter in JOB.build(0).parameters()]
TEXT = (TOP / "docs/METHODS.md").read_text()
FORMULAS = ("replica's bytes", "replica's messages", "server's bytes", "server's messages", "at least, seconds")


def all_variants() -> list[str]:
    """The name of every choice of flags; more than two servers, or another staleness, are more of the same."""
    names = []
    for method, flags in METHODS.items():
        choices = {**METHOD_CHOICES, "num_servers": SERVERS}
        chosen = [flag for flag in flags if flag in choices]
        for values in itertools.product(*(choices[flag] for flag in chosen)):
            names.append(variant_name(method, replace(TrainConfig(), **dict(zip(chosen, values, strict=True)))))
    return names


# Reading the page.

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS = {"min": min, "max": max}


def evaluate(expression: str, symbols: dict[str, float]) -> float:
    """Arithmetic on ``symbols`` alone. Raises ValueError for anything else, and KeyError for an unknown symbol."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name):
                return symbols[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(value, args))
        raise ValueError(f"not a formula: {expression}")

    return value(ast.parse(expression, mode="eval").body)


def table(text: str, head: str) -> list[list[str]]:
    """The cells of the one table whose first column is called ``head``, its head first."""
    (found,) = re.findall(rf"^\| {head} \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return [lines[0], *lines[2:]]


def spans(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


def formulas(text: str) -> dict[str, dict[str, str]]:
    """The formulas of each variant that the page names, by column; a server's are missing where there is none."""
    head, *rows = table(text, "variant")
    assert tuple(head[1:]) == FORMULAS
    found: dict[str, dict[str, str]] = {}
    for variants, *cells in rows:
        row = {name: spans(cell)[0] for name, cell in zip(head[1:], cells, strict=True) if spans(cell)}
        for name in spans(variants):
            assert name not in found, f"{name} has two rows"
            found[name] = row
    return found


def row_of(name: str) -> str:
    """The page states the formulas for any number of servers and any staleness at once."""
    method, settings = parse_variant_name(name)
    kept = {flag: value for flag, value in settings.items() if flag not in ("num_servers", "staleness")}
    return variant_name(method, replace(TrainConfig(), **kept))


# What the symbols are worth, worked out apart from the product's own code.


def buckets(sizes: list[int], limit: float, closes_when_full: bool) -> list[list[int]]:
    """Numbers of the parameters in each bucket. Ours stay within the limit; DDP's close once they have reached it."""
    found: list[list[int]] = []
    filled = 0
    for number, size in reversed(list(enumerate(sizes))):
        if not found or (filled >= limit if closes_when_full else filled + size > limit):
            found.append([])
            filled = 0
        found[-1].append(number)
        filled += size
    return found


def bucket_symbols(method: str, config: TrainConfig, text: str) -> dict[str, float]:
    sizes = [ELEMENT * math.prod(shape) for shape in SHAPES]
    limit = {"per-parameter": 0, "flat": math.inf}.get(config.variant if method == "all_reduce" else "",
                                                       JOB.config.bucket_mb * 2**20)
    (summand,) = (spans(meaning)[0] for symbol, meaning in table(text, "symbol")[1:] if symbol == "`F`")
    factors = {}
    for number, shape in enumerate(SHAPES):
        out, rest = shape[0], math.prod(shape[1:])
        sent = evaluate(summand, {"e": ELEMENT, "r": config.powersgd_rank, "out": out, "rest": rest})
        if sent < sizes[number]:
            factors[number] = sent
    cut = buckets(sizes, limit, closes_when_full=method == "baseline_ddp")
    return {"B": len(cut), "B2": sum(any(number in factors for number in bucket) for bucket in cut),
            "F": sum(factors.values()), "U": sum(sizes) - sum(sizes[number] for number in factors)}


def server_symbols(servers: int) -> list[dict[str, float]]:
    """Of each server: bytes, parameters of which it holds a part, chunks."""
    elements = sum(math.prod(shape) for shape in SHAPES)
    ends = list(itertools.accumulate(math.prod(shape) for shape in SHAPES))
    found, start = [], 0
    for server in range(servers):
        stop = start + elements // servers + (server < elements % servers)
        parts = sum(begin < stop and end > start for begin, end in itertools.pairwise([0, *ends]))
        found.append({"m": ELEMENT * (stop - start), "t": parts, "c": math.ceil(ELEMENT * (stop - start) / CHUNK)})
        start = stop
    return found


# The comparison.


@dataclass
class Counted:
    """Of one variant, per step: what a replica and each server counted, and the symbols of its run."""

    replica: tuple[float, float]  # bytes, messages
    servers: list[tuple[float, float]]
    symbols: dict[str, float]
    of_servers: list[dict[str, float]]
    bound: float  # seconds at RATE
    computed: float  # the same, as the report gives it

    @staticmethod
    def of(name: str, run: Trajectory, text: str = TEXT) -> Counted:
        method, settings = parse_variant_name(name)
        config, results = replace(JOB.config, **settings), run.results
        counted, epoch, servers = results.communication, results.epochs[-1], num_servers(method, config)
        replica = (counted.replica_bytes_per_step, counted.replica_messages_per_step)
        records = [record for record in epoch.servers or [epoch.server] if record]
        of_servers = server_symbols(servers) if servers else []
        symbols = {"N": RANKS, "S": servers, "W": RANKS - servers, "M": ELEMENT * sum(map(math.prod, SHAPES)),
                   "T": len(SHAPES), "C": sum(one["c"] for one in of_servers), "R": RATE,
                   "X": sum(one["t"] for one in of_servers) - len(SHAPES),
                   **bucket_symbols(method, config, text)}
        moved = [((one.bytes_sent + one.bytes_received) / epoch.steps, one.messages / epoch.steps) for one in records]
        report = computed_bound(settings_of(method, config), replica[0], range(RANKS), servers, RATE)
        return Counted(replica, moved, symbols, of_servers, least_seconds(config, replica, moved), report)


def least_seconds(config: TrainConfig, replica: tuple[float, float], servers: list[tuple[float, float]]) -> float:
    """Of the busiest link: in a ring, 2 (N - 1) / N of what is all-reduced goes each way, both ways at once."""
    if not servers:
        return 2 * (RANKS - 1) / RANKS * replica[0] / RATE
    both_ways_at_once = config.transfer == "pipelined" and config.mode == "sync"
    return max(replica[0], *(moved for moved, _ in servers)) / RATE / (2 if both_ways_at_once else 1)


def disagreements(text: str, counted: dict[str, Counted]) -> list[str]:
    """Where the page does not say what was counted: a line for each formula, and for each variant without any."""
    stated, wrong = formulas(text), []
    for name, run in counted.items():
        row = stated.get(row_of(name))
        if row is None:
            wrong.append(f"{name}: no row")
            continue
        here = {**run.symbols, **(run.of_servers[0] if run.of_servers else {})}
        pairs = [(column, here, value) for column, value in zip(FORMULAS[:2], run.replica, strict=True)]
        for symbols, server in zip(run.of_servers, run.servers, strict=True):
            pairs += [(column, {**here, **symbols}, value) for column, value in zip(FORMULAS[2:4], server, strict=True)]
        pairs.append((FORMULAS[4], here, run.bound))
        if surplus := row.keys() - {column for column, _, _ in pairs}:
            wrong.append(f"{name}: there is no {', '.join(sorted(surplus))}")
        for column, symbols, value in pairs:
            formula = row.get(column, "nothing")
            says = evaluate(formula, symbols) if column in row else None
            if says != pytest.approx(value, rel=1e-12):
                wrong.append(f"{name}: {column} are {value:g}, and {formula} is {says}")
    return wrong + [f"{name}: a row for no variant" for name in stated if name not in counted]


@pytest.fixture(scope="module")
def runs() -> dict[str, Trajectory]:
    """Of the last rank, for all variants, in one launch."""
    wanted = [(name, LONGER if name == DEFERS else JOB, None) for name in all_variants()] + [(DEFERS, JOB, None)]
    done = run_ranks(train_on_rank, RANKS, wanted)[-1]
    return dict(zip([*all_variants(), "first steps"], done, strict=True))


@pytest.fixture(scope="module")
def counted(runs) -> dict[str, Counted]:
    return {name: Counted.of(name, runs[name]) for name in all_variants()}


def test_the_page_says_what_is_counted(counted):
    assert disagreements(TEXT, counted) == []


@pytest.mark.parametrize("name", all_variants())
def test_the_report_computes_the_bounds_of_the_page(name, counted):
    run = counted[name]
    says = evaluate(formulas(TEXT)[row_of(name)][FORMULAS[4]], {**run.symbols, **(run.of_servers or [{}])[0]})
    assert run.computed == pytest.approx(says, rel=1e-12)


def test_the_runs_tell_the_symbols_apart(counted):
    """Where two symbols were equal, one could stand for the other unnoticed."""
    own, ddp = counted["all_reduce_bucketed"].symbols, counted["baseline_ddp"].symbols
    assert len({own["B"], ddp["B"], own["T"], 1}) == 4
    assert counted["all_reduce_powersgd"].symbols["B2"] not in (own["B2"], own["T"], 1)
    sharded = counted["ps_2servers"]
    assert sharded.symbols["X"] > 0 and sharded.of_servers[0] != sharded.of_servers[1]
    assert counted["ps_pipelined"].symbols["C"] > sharded.symbols["S"]


def test_the_hook_of_torch_sends_everything_in_its_first_steps(runs):
    first = runs["first steps"].results
    assert first.epochs[0].steps == FIRST_COMPRESSED_STEP
    assert first.communication == runs["baseline_ddp"].results.communication


ROWS = [line for line in TEXT.partition("<!-- measured -->")[0].splitlines()
        if re.match(r"\| `(baseline_ddp|all_reduce|ps)[_`]", line) and line.count("|") == len(FORMULAS) + 2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: spans(row)[0])
def test_a_wrong_formula_is_caught(row, counted):
    names, *cells = row.strip("|").split("|")
    for number, cell in enumerate(cells):
        if spans(cell):
            wrong = [*cells[:number], cell.replace(spans(cell)[0], f"({spans(cell)[0]}) * 2"), *cells[number + 1 :]]
            found = disagreements(TEXT.replace(row, "|".join(["", names, *wrong, ""])), counted)
            assert {line.split(":")[0] for line in found} >= set(spans(names))
            assert all(FORMULAS[number] in line for line in found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: spans(row)[0])
def test_a_missing_variant_is_caught(row, counted):
    for name in spans(row.strip("|").split("|")[0]):
        found = disagreements(TEXT.replace(row, row.replace(f"`{name}`", "", 1)), counted)
        assert f"{name}: no row" in found


def test_a_row_for_no_variant_is_caught(counted):
    invented = ROWS[0].replace("baseline_ddp", "baseline_ddp_zip")
    assert disagreements(TEXT.replace(ROWS[0], f"{ROWS[0]}\n{invented}"), counted) == [
        "baseline_ddp_zip: a row for no variant"]


def test_a_wrong_size_of_the_factors_is_caught(counted, runs):
    name, text = "all_reduce_flat_powersgd", TEXT.replace("(out + rest) *", "(out + rest + 1) *")
    found = disagreements(text, {**counted, name: Counted.of(name, runs[name], text)})
    assert [line.split(" are ")[0] for line in found] == [f"{name}: replica's bytes", f"{name}: at least, seconds"]


@pytest.mark.parametrize(("expression", "error"), [
    ("__import__('os')", ValueError), ("M.real", ValueError), ("M ** 9", ValueError), ("'M'", ValueError),
    ("Q", KeyError), ("M * ", SyntaxError), ("open(M)", ValueError), ("max", KeyError),
])
def test_only_arithmetic_on_known_symbols_is_evaluated(expression, error):
    with pytest.raises(error):
        evaluate(expression, {"M": 3})
    assert evaluate("2 * max(M, 4) / (M - 1)", {"M": 3}) == 4
