"""Our figure beside each published one: read from a row, or made of several at page time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import latency
from benchmarks.claims import BENCHMARK
from benchmarks.claims.accuracy import Cell, Kind, best, cells, compared_runs, gaps, quickstart_gap
from benchmarks.claims.published import TABLE_1, Published
from benchmarks.claims.quality_runs import (
    ALL_LINEAR,
    ATTENTION,
    EQUAL_BUDGET,
    FULL,
    LORA,
    RANKS,
    QualityRun,
    read_runs,
)
from benchmarks.results import RESULTS, Row, newest, read_rows
from benchmarks.step import FORWARD_BACKWARD, TOTAL, WITH_OPTIMIZER
from benchmarks.variants import FULL as FULL_STEP
from benchmarks.variants import LIMIT, LORAKIT_MLP

AGREES, SPREAD, DIFFERS, MISSING = "agrees", "within the spread", "differs", "not measured yet"
FULL_KIND: Kind = (FULL, 0, "")
_STEP = {
    "benchmark": "step",
    "shape": "llama-69m",
    "setting": "4 x 256",
    "dtype": "float32",
    "dropout": 0.0,
    "r": 8,
    "ratio_to": FULL_STEP,
}


@dataclass(frozen=True)
class Ours:
    """One of our figures.

    Attributes:
        value: The median, the mean, or a count.
        low: Lower end of its spread; None for a count.
        high: Upper end.
        where: The model and what else matters.
    """

    value: float
    low: float | None = None
    high: float | None = None
    where: str = ""


@dataclass(frozen=True)
class Evidence:
    """All that was measured.

    Attributes:
        rows: Rows of the claims, and of the benchmarks that measure some of them.
        runs: The models that were trained.
        quickstart_gap: See `accuracy.quickstart_gap`.
    """

    rows: tuple[Row, ...]
    runs: tuple[QualityRun, ...]
    quickstart_gap: float | None = None

    @classmethod
    def read(cls, results: Path = RESULTS) -> "Evidence":
        """Read the CSV files; those that are not there have no rows."""
        rows = read_rows([BENCHMARK, "step", "latency"], results)
        return cls(tuple(rows), tuple(read_runs(results)), quickstart_gap(results))

    @cached_property
    def cells(self) -> dict[Kind, Cell]:
        """The comparable runs by configuration."""
        return cells(compared_runs(self.runs))

    def row(self, claim: str, what: str) -> Row | None:
        """Return the newest row of a claim's figure."""
        return newest(self.rows, benchmark=BENCHMARK, variant=claim, measure=what)

    def value(self, claim: str, what: str) -> float | None:
        """Return the value of such a row."""
        row = self.row(claim, what)
        return None if row is None else row.p50


def ours(figure: Published, evidence: Evidence) -> Ours | None:
    """Return our figure, or None where it was not measured yet."""
    made = _MADE.get((figure.claim, figure.what))
    if made is not None:
        return made(evidence)
    row = evidence.row(figure.claim, figure.what)
    return None if row is None else of_row(row)


def of_row(row: Row) -> Ours:
    """Return a claim's row as a figure."""
    where = ", ".join(part for part in (row.shape, row.setting) if part)
    spread = (None, None) if row.rounds == 1 else (row.p20, row.p80)
    return Ours(row.p50, *spread, where)


def verdict(figure: Published, mine: Ours | None) -> str:
    """Say whether our figure stands to the published one as it should."""
    if mine is None:
        return MISSING
    room = figure.tolerance * abs(figure.value) if figure.value else figure.tolerance
    agrees = {
        "=": abs(mine.value - figure.value) <= room,
        "≤": mine.value <= figure.value + room,
        "≥": mine.value >= figure.value - room,
        "same sign": mine.value * figure.value > 0,
    }[figure.relation]
    if agrees:
        return AGREES
    aim = 0.0 if figure.relation == "same sign" else figure.value
    if mine.low is not None and mine.high is not None and mine.low <= aim <= mine.high:
        return SPREAD
    return DIFFERS


def _of_range(values: Sequence[float]) -> Ours | None:
    """Return the mean with the range over the seeds."""
    if not values:
        return None
    where = "quickstart base, " + ("1 seed" if len(values) == 1 else f"{len(values)} seeds")
    return Ours(sum(values) / len(values), min(values), max(values), where)


def _ratio(evidence: Evidence, change: Callable[[float], float], **wanted: object) -> Ours | None:
    """Return a change of a row's ratio, with that of its percentiles."""
    row = newest(evidence.rows, **wanted)
    if row is None or row.ratio is None:
        return None
    where = f"{row.shape}, {row.setting}, {row.dtype}, r={row.r}, {row.origin.device}"
    if row.rounds == 1 or row.ratio_p20 is None or row.ratio_p80 is None:
        return Ours(change(row.ratio), where=where)
    low, high = sorted((change(row.ratio_p20), change(row.ratio_p80)))
    return Ours(change(row.ratio), low, high, where)


def _percent_less(ratio: float) -> float:
    return 100 * (1 - ratio)


def _percent_more(ratio: float) -> float:
    return 100 * (ratio - 1)


def _saved_by_plan(evidence: Evidence) -> Ours | None:
    whole, mine = (evidence.value("C5", f"{name}, peak") for name in ("full", "LoRA"))
    return None if not whole or mine is None else Ours(_percent_less(mine / whole))


def _added(variant: str, batch: str) -> Callable[[Evidence], Ours | None]:
    wanted = {"benchmark": "latency", "measure": latency.FORWARD, "setting": batch}
    wanted |= {"variant": variant, "ratio_to": latency.BASE, "dtype": "float32"}
    return lambda evidence: _ratio(evidence, _percent_more, **wanted)


def _step(measure: str, variant: str, change: Callable[[float], float]) -> Callable:
    return lambda evidence: _ratio(evidence, change, measure=measure, variant=variant, **_STEP)


def lora(r: int, targets: Sequence[str] = ALL_LINEAR) -> Kind:
    """Return the kind of the runs of a rank on some modules."""
    return LORA, r, " ".join(targets)


def rank_cells(evidence: Evidence) -> list[Cell]:
    """Return the cells of each rank on every linear layer."""
    return [evidence.cells[lora(r)] for r in RANKS if lora(r) in evidence.cells]


def single_cells(evidence: Evidence) -> list[Cell]:
    """Return the cells of one kind of matrix each, at the same budget."""
    kinds = [lora(r, targets) for r, targets in EQUAL_BUDGET if targets != ALL_LINEAR]
    return [evidence.cells[kind] for kind in kinds if kind in evidence.cells and " " not in kind[2]]


def _gap(first: Cell | None, second: Cell | None) -> Ours | None:
    return None if first is None or second is None else _of_range(gaps(first, second))


def _against_full(evidence: Evidence) -> Ours | None:
    return _gap(evidence.cells.get(lora(8)), evidence.cells.get(FULL_KIND))


def _lowest_rank(evidence: Evidence) -> Ours | None:
    return _gap(evidence.cells.get(lora(1)), best(rank_cells(evidence)))


def _all_four(evidence: Evidence) -> Ours | None:
    [r] = [rank for rank, targets in EQUAL_BUDGET if targets == ATTENTION]
    return _gap(evidence.cells.get(lora(r, ATTENTION)), best(single_cells(evidence)))


_MADE: dict[tuple[str, str], Callable[[Evidence], Ours | None]] = {
    ("C5", "memory saved, GPT-3"): _saved_by_plan,
    ("C5", "memory saved, measured"): _step(TOTAL, LORAKIT_MLP, _percent_less),
    ("C6", "time saved"): _step(WITH_OPTIMIZER, LORAKIT_MLP, _percent_less),
    ("C6", "more tokens per second"): _step(
        WITH_OPTIMIZER, LORAKIT_MLP, lambda ratio: _percent_more(1 / ratio)
    ),
    ("C6", "time of the frozen limit"): _step(FORWARD_BACKWARD, LIMIT, lambda r: 100 * r),
    ("C8", "LoRA r=8 on every linear layer against full"): _against_full,
    ("C8", "r=1 against the best rank"): _lowest_rank,
    ("C8", "q + k + v + o against the best single matrix"): _all_four,
    **{("C7", f"merged, {batch}"): _added(latency.MERGED, batch) for batch in TABLE_1},
    **{("C7", f"unmerged, {batch}"): _added(latency.UNMERGED, batch) for batch in TABLE_1},
}
"""Figures that are made of rows of several files."""
