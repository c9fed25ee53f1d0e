"""The trained models of `claims_quality.csv`: a row for each run, and which of them are wanted."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.results import Origin

FILE = "claims_quality.csv"
LORA, FULL = "LoRA", "full"
ALL_LINEAR = ("all-linear",)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RANKS = (1, 2, 4, 8, 64)
SEEDS = (1, 2, 3)
EQUAL_BUDGET: tuple[tuple[int, tuple[str, ...]], ...] = (
    (21, ("q_proj",)),
    (28, ("k_proj",)),
    (28, ("v_proj",)),
    (21, ("o_proj",)),
    (12, ("q_proj", "k_proj")),
    (12, ("q_proj", "v_proj")),
    (6, ATTENTION),
    (2, ALL_LINEAR),
)
"""Ranks by modules. But for the last all train 53,760 numbers: q and o are 256 × 256 in this model,
k and v 128 × 256, in five layers. Every linear layer has 44,800 with rank 2, and 67,200 with 3."""
LEARNING_RATES = {LORA: (1e-3, 2e-3, 5e-3), FULL: (5e-4, 1e-3, 2e-3)}
"""What is tried with the first seed; the best one is every run's of its method."""
SEARCHED_RANK = 8


@dataclass(frozen=True)
class Wanted:
    """The settings of a run; a finished run is not repeated.

    Attributes:
        method: `LORA` or `FULL`.
        r: Rank, 0 where all weights are trained.
        targets: Adapted modules, "" where all weights are trained.
        learning_rate: Peak learning rate of AdamW.
        epochs: Passes over the training examples.
        train_examples: Number of training examples.
        seed: Seed of the split, the head, the factors and the order of examples.
    """

    method: str
    r: int
    targets: str
    learning_rate: float
    epochs: int
    train_examples: int
    seed: int

    @property
    def name(self) -> str:
        """What to call the run, and its directory."""
        what = f"r{self.r}-{self.targets.replace(' ', '-')}" if self.method == LORA else FULL
        return f"{what}-lr{self.learning_rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class QualityRun:
    """A finished run.

    Attributes:
        wanted: Its settings.
        model: The base.
        data: The task.
        trained_parameters: Trained parameters, the head included.
        factor_parameters: Those in lora_A and lora_B; 0 where all weights are trained.
        accuracy_before: Accuracy on the held-out examples before training, in [0, 1].
        accuracy: Accuracy after the best epoch.
        held_out_rows: Number of held-out examples.
        wall_s: Seconds of training, evaluations included.
        saved_bytes: Size of the file that has to be saved.
        origin: Device, versions and commit.
    """

    wanted: Wanted
    model: str
    data: str
    trained_parameters: int
    factor_parameters: int
    accuracy_before: float
    accuracy: float
    held_out_rows: int
    wall_s: float
    saved_bytes: int
    origin: Origin


_PARTS = (Wanted, Origin)
_OWN = [field for field in fields(QualityRun) if field.name not in ("wanted", "origin")]
COLUMNS = [
    *(field.name for field in fields(Wanted)),
    *(field.name for field in _OWN),
    *(field.name for field in fields(Origin)),
]


def append_run(run: QualityRun, directory: Path) -> None:
    """Append a run, with a header in a new file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    is_new = not path.exists()
    values = asdict(run)
    flat = {**values.pop("wanted"), **values.pop("origin"), **values}
    flat |= {"accuracy_before": f"{run.accuracy_before:.4f}", "accuracy": f"{run.accuracy:.4f}"}
    flat |= {"wall_s": f"{run.wall_s:.1f}"}
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(flat)


def read_runs(directory: Path) -> list[QualityRun]:
    """Return the newest run of each kind; none where nothing was run yet.

    Raises:
        ValueError: The file has other columns.
    """
    path = directory / FILE
    if not path.exists():
        return []
    found: dict[Wanted, QualityRun] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{FILE} has other columns than this version writes.")
        for line in reader:
            wanted, origin = (
                kind(**{field.name: field.type(line[field.name]) for field in fields(kind)})
                for kind in _PARTS
            )
            fields_of_run = {field.name: field.type(line[field.name]) for field in _OWN}
            found[wanted] = QualityRun(wanted=wanted, origin=origin, **fields_of_run)
    return list(found.values())


@dataclass(frozen=True)
class Grid:
    """Which runs are made.

    Attributes:
        ranks: Ranks of the adapters on every linear layer.
        equal_budget: Ranks and modules of the same number of parameters.
        learning_rates: Those tried, by method.
        seeds: The first one is that of the search.
        epochs: Passes over the rows.
        rows: Rows of both splits.
        held_out: Share of them that is measured on.
    """

    ranks: tuple[int, ...] = RANKS
    equal_budget: tuple[tuple[int, tuple[str, ...]], ...] = EQUAL_BUDGET
    learning_rates: tuple[tuple[str, tuple[float, ...]], ...] = tuple(LEARNING_RATES.items())
    seeds: tuple[int, ...] = SEEDS
    epochs: int = 3
    rows: int = 1800
    held_out: float = 0.25

    @property
    def train_examples(self) -> int:
        """Rows to learn from."""
        return self.rows - round(self.rows * self.held_out)

    def searches(self, method: str) -> list[Wanted]:
        """Return the runs that decide a method's learning rate."""
        r = self.ranks[-1] if SEARCHED_RANK not in self.ranks else SEARCHED_RANK
        of_method = (r, ALL_LINEAR) if method == LORA else (0, ())
        rates = dict(self.learning_rates)[method]
        return [self._run(method, *of_method, rate, self.seeds[0]) for rate in rates]

    def of_seed(self, rates: dict[str, float], seed: int) -> list[Wanted]:
        """Return all runs of one seed, those that decide most first."""
        adapters = [(r, ALL_LINEAR) for r in self.ranks] + list(self.equal_budget)
        runs = [self._run(FULL, 0, (), rates[FULL], seed)]
        runs += [self._run(LORA, r, targets, rates[LORA], seed) for r, targets in adapters]
        return list(dict.fromkeys(runs))

    def _run(self, method: str, r: int, targets: Sequence[str], rate: float, seed: int) -> Wanted:
        return Wanted(method, r, " ".join(targets), rate, self.epochs, self.train_examples, seed)


def best_rate(runs: Iterable[QualityRun], searched: Sequence[Wanted]) -> float | None:
    """Return the learning rate of the most accurate of the searched runs; of equals the lowest.

    None where one of them is not finished.
    """
    accuracy = {run.wanted: run.accuracy for run in runs}
    if any(wanted not in accuracy for wanted in searched):
        return None
    ordered = sorted(searched, key=lambda wanted: wanted.learning_rate)
    return max(ordered, key=lambda wanted: accuracy[wanted]).learning_rate
