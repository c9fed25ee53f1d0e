"""The rows of `benchmarks/results/*.csv`: one number with its spread, and where it comes from."""

import csv
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import quantiles

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NO_BF16 = "no bf16 instructions"
"""What the device of a row says where bfloat16 is not measured."""


@dataclass(frozen=True)
class Origin:
    """Where a row comes from.

    Attributes:
        device: Processor, its instruction set and the number of threads.
        torch: Version; likewise `transformers`, `peft` ("" where not installed) and `lorakit`.
        commit: Short hash; "-dirty" where the tree differs from it.
        date: Day of the measurement, UTC.
    """

    device: str
    torch: str
    transformers: str
    peft: str
    lorakit: str
    commit: str
    date: str


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        benchmark: Name of the module that measured it, and of the CSV file.
        measure: What was measured, such as "forward+backward".
        shape: Name of the model's shape, or the sizes of a single layer.
        setting: What else was varied, such as "4 x 256" or "tokens 512".
        dtype: dtype of the base.
        dropout: Probability of dropping an input of the low-rank path.
        r: Rank of the updates.
        variant: Who was measured.
        unit: Unit of p20, p50 and p80.
        p20: 20th percentile over the rounds; likewise p50, the median, and p80.
        ratio_to: Variant that the ratio is taken to, or "" for none.
        ratio_p20: 20th percentile of the ratio over the rounds; likewise ratio, its median, and
            ratio_p80.
        rounds: Number of rounds; 1 for a count, which is exact.
        origin: Where it comes from.
    """

    benchmark: str
    measure: str
    shape: str
    setting: str
    dtype: str
    dropout: float
    r: int
    variant: str
    unit: str
    p20: float
    p50: float
    p80: float
    ratio_to: str
    ratio_p20: float | None
    ratio: float | None
    ratio_p80: float | None
    rounds: int
    origin: Origin

    def key(self) -> tuple[object, ...]:
        """Return what this is a row of; a newer row with the same key takes its place."""
        return (
            self.benchmark,
            self.measure,
            self.shape,
            self.setting,
            self.dtype,
            self.dropout,
            self.r,
            self.variant,
            self.ratio_to,
            self.origin.device,
        )


_OWN = [field.name for field in fields(Row) if field.name != "origin"]
FIELDS = [*_OWN, *(field.name for field in fields(Origin))]
"""The columns of a CSV file, in their order."""

_NUMBERS = ("p20", "p50", "p80", "ratio_p20", "ratio", "ratio_p80")


def row(
    origin: Origin,
    values: Sequence[float],
    *,
    benchmark: str,
    measure: str,
    shape: str,
    variant: str,
    unit: str,
    setting: str = "",
    dtype: torch.dtype = torch.float32,
    dropout: float = 0.0,
    r: int = 8,
    ratio_to: str = "",
    ratios: Sequence[float] = (),
) -> Row:
    """Make a row of the values of all rounds and, where there are any, of their ratios."""
    ratio_quantiles = quantiles(ratios) if ratios else (None, None, None)
    return Row(
        benchmark,
        measure,
        shape,
        setting,
        str(dtype).removeprefix("torch."),
        dropout,
        r,
        variant,
        unit,
        *quantiles(values),
        ratio_to if ratios else "",
        *ratio_quantiles,
        len(values),
        origin,
    )


def compared(
    origin: Origin, values: Mapping[str, Sequence[float]], references: Sequence[str], **common: Any
) -> list[Row]:
    """Make the rows of several variants, one for each reference a variant is compared with.

    Args:
        origin: Where they come from.
        values: The values of all rounds by variant; rounds of different variants belong together.
        references: Variants to take ratios to; those that were not measured are passed over.
        common: What `row` takes besides.
    """
    rows = []
    for variant, mine in values.items():
        others = [name for name in references if name in values and name != variant]
        for reference in others or [""]:
            pairs = zip(mine, values.get(reference, ()), strict=bool(reference))
            ratios = [value / other for value, other in pairs]
            rows.append(
                row(origin, mine, variant=variant, ratio_to=reference, ratios=ratios, **common)
            )
    return rows


def append_rows(rows: Iterable[Row], directory: Path = RESULTS) -> None:
    """Append rows to the CSV files of their benchmarks, with a header in a new file.

    Raises:
        ValueError: A file there has other columns.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for one in rows:
        path = directory / f"{one.benchmark}.csv"
        is_new = not path.exists()
        if not is_new:
            _check_columns(path)
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(_as_text(one))


def read_rows(benchmarks: Iterable[str], directory: Path = RESULTS) -> list[Row]:
    """Return the newest row of each key, in the order of the files.

    Raises:
        ValueError: A file has other columns.
    """
    newest: dict[tuple[object, ...], Row] = {}
    for name in benchmarks:
        path = directory / f"{name}.csv"
        if not path.exists():
            continue
        _check_columns(path)
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                one = _from_text(line)
                newest[one.key()] = one
    return list(newest.values())


def matching(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """Return the rows whose fields have these values."""
    found = [*rows]
    for name, value in wanted.items():  # one field after the other: pages ask thousands of times
        found = [one for one in found if getattr(one, name) == value]
    return found


def newest(rows: Iterable[Row], **wanted: object) -> Row | None:
    """Return the newest row whose fields have these values; of one day, the last."""
    found = sorted(matching(rows, **wanted), key=lambda one: one.origin.date)
    return found[-1] if found else None


def _check_columns(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file), [])
    if columns != FIELDS:
        different = sorted(set(columns) ^ set(FIELDS)) or "their order"
        raise ValueError(f"{path.name} has other columns than this version writes: {different}.")


def _as_text(one: Row) -> dict[str, object]:
    values = {**asdict(one), **asdict(one.origin)}
    del values["origin"]
    for name in _NUMBERS:
        values[name] = _number_text(values[name])
    return values


def _number_text(value: float | None) -> str:
    """Write six digits of a number, and all of a whole one: a count is exact.

    >>> _number_text(0.123456789), _number_text(67694596.0), _number_text(None)
    ('0.123457', '67694596', '')
    """
    if value is None:
        return ""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _from_text(line: dict[str, str]) -> Row:
    numbers = {name: float(line[name]) if line[name] else None for name in _NUMBERS}
    origin = Origin(**{field.name: line[field.name] for field in fields(Origin)})
    return Row(
        **{name: line[name] for name in _OWN if name not in (*_NUMBERS, "dropout", "r", "rounds")},
        **numbers,  # type: ignore[arg-type]
        dropout=float(line["dropout"]),
        r=int(line["r"]),
        rounds=int(line["rounds"]),
        origin=origin,
    )


def origin_here(device: str = "cpu", commit: str | None = None) -> Origin:
    """Return the origin of rows measured now, without paths or host names.

    Args:
        device: "cpu" or a CUDA device.
        commit: Takes the place of git's, where there is no repository to ask.
    """
    return Origin(
        device_name(device),
        torch.__version__,
        _version("transformers"),
        _version("peft"),
        _version("lorakit"),
        commit or git_commit(),
        datetime.now(UTC).date().isoformat(),
    )


def device_name(device: str = "cpu") -> str:
    """Return the processor's model, instruction set and number of threads."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    bf16 = "bf16 instructions" if has_bf16_instructions() else NO_BF16
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {capability}, {bf16}, threads {threads}"


def has_bf16_instructions() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices at more than a crawl."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_model() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def git_commit() -> str:
    """Return the short hash of the commit, marked if code differs from it.

    Rows being appended and the page made from them do not count.
    """
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changed = _git(
        "status", "--porcelain", "--untracked-files=no", "--", ".",
        ":!benchmarks/results", ":!docs",
    )  # fmt: skip
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
