"""The command line that every benchmark has."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Sample, Timings, interleaved
from benchmarks.models import Shape, shape_named
from benchmarks.results import (
    RESULTS,
    ROOT,
    Origin,
    Row,
    append_rows,
    compared,
    has_bf16_instructions,
    origin_here,
)

QUICK_RESULTS = ROOT / "build" / "benchmarks"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ROUNDS = 7
_QUICK_ROUNDS = 2


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        device: "cpu" or a CUDA device.
        rounds: Rounds that count.
        quick: Tiny shapes and two rounds: shows that the benchmark works, says nothing of speed.
        shapes: Shapes asked for, or None for the benchmark's own.
        dtype: dtype asked for, or None for the benchmark's own.
        dropout: Dropout asked for, or None for the benchmark's own.
        r: Rank asked for, or None for the benchmark's own.
        force: Whether to run what this machine is far too slow for.
        output: Directory of the CSV files.
        origin: Where the rows come from.
    """

    device: str
    rounds: int
    quick: bool
    shapes: tuple[Shape, ...] | None
    dtype: torch.dtype | None
    dropout: float | None
    r: int | None
    force: bool
    output: Path
    origin: Origin

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    def runs(self, dtype: torch.dtype) -> bool:
        """Return whether this machine can run a dtype in sensible time; print why if not."""
        if dtype != torch.bfloat16 or self.on_cuda or self.force or has_bf16_instructions():
            return True
        print(
            "  not run: bfloat16 on a CPU without bf16 instructions takes minutes for a step; "
            "--force runs it all the same",
            flush=True,
        )
        return False

    @property
    def device_dtype(self) -> torch.dtype:
        """The dtype asked for; else bfloat16 on a GPU and float32 on a CPU."""
        return self.dtype or (torch.bfloat16 if self.on_cuda else torch.float32)

    def shapes_or(self, *, cpu: str = "llama-69m", cuda: str = "llama-1b") -> tuple[Shape, ...]:
        """Return the shapes asked for, or one that suits the device."""
        name = "tiny-llama" if self.quick else cuda if self.on_cuda else cpu
        return self.shapes or (shape_named(name),)

    def timed(self, samples: Mapping[str, Sample], warmup: int = 2) -> Timings:
        """Time variants in turn for all rounds on the device."""
        return interleaved(samples, rounds=self.rounds, warmup=warmup, device=self.device)

    def compared(
        self, values: Mapping[str, Sequence[float]], references: Sequence[str], **common: Any
    ) -> list[Row]:
        """Make rows of this origin: see `results.compared`."""
        return compared(self.origin, values, references, **common)

    def compared_laps(
        self,
        samples: Mapping[str, Sample],
        laps: Sequence[str],
        references: Sequence[str],
        **common: Any,
    ) -> list[Row]:
        """Time variants in turn and make the rows of each lap."""
        timings = self.timed(samples)
        rows = []
        for lap in laps:
            values = timings.by_variant(lap)
            rows += self.compared(values, references, measure=lap, unit="s", **common)
        return rows

    def keep(self, rows: Iterable[Row]) -> list[Row]:
        """Append rows to their CSV file, print them and return them."""
        kept = list(rows)
        append_rows(kept, self.output)
        for _, same in groupby(kept, key=lambda one: (one.measure, one.setting, one.variant)):
            print(f"  {rows_text(list(same))}", flush=True)
        return kept


def parse(name: str, about: str, arguments: Sequence[str] | None) -> Options:
    """Read a benchmark's command line.

    Args:
        name: The benchmark, or "" for all of them.
        about: What `--help` says of it.
        arguments: The command line, or None for the process's own.
    """
    parser = options_parser(name, about)
    return options_of(parser, parser.parse_args(arguments))


def options_parser(name: str, about: str) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes, to which a benchmark may add."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}".rstrip("."), description=about
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, help=f"rounds that count, {_ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    parser.add_argument("--shape", nargs="+", type=_shape, help="llama-69m, llama-69m:2, ...")
    parser.add_argument("--batch", nargs=2, type=int, metavar=("ROWS", "LENGTH"))
    parser.add_argument("--dtype", choices=_DTYPES)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--r", type=int, help="rank of the updates")
    parser.add_argument("--threads", type=int, help="CPU threads, torch's choice by default")
    parser.add_argument("--force", action="store_true", help="run what is far too slow here")
    parser.add_argument("--output", type=Path, help="directory of the CSV files")
    parser.add_argument("--commit", help="commit to note where there is no repository")
    return parser


def options_of(parser: argparse.ArgumentParser, found: argparse.Namespace) -> Options:
    """Return the options that a command line gave; wrong ones end the program."""
    if found.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {found.device}: torch finds no CUDA GPU here")
    if found.threads:
        torch.set_num_threads(found.threads)
    rounds = found.rounds or (_QUICK_ROUNDS if found.quick else _ROUNDS)
    if rounds < _ROUNDS and not found.quick:
        parser.error(f"--rounds {rounds}: a median of fewer than {_ROUNDS} rounds says little")
    shapes = tuple(found.shape) if found.shape else None
    if found.batch and shapes:
        shapes = tuple(shape.with_batch(*found.batch) for shape in shapes)
    return Options(
        found.device,
        rounds,
        found.quick,
        shapes,
        _DTYPES.get(found.dtype),
        found.dropout,
        found.r,
        found.force,
        # Rows of a quick run are no measurement, so they never lie beside those that are.
        found.output or (QUICK_RESULTS if found.quick else RESULTS),
        origin_here(found.device, found.commit),
    )


def _shape(name: str) -> Shape:
    try:
        return shape_named(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_SCALES = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")), "B": ((2**30, "GiB"), (2**20, "MiB"))}


def quantity_text(value: float, unit: str) -> str:
    """Write a number with the unit that suits its size.

    >>> quantity_text(0.0123, "s"), quantity_text(3 * 2**20, "B"), quantity_text(12.5, "tokens/s")
    ('12.3 ms', '3.00 MiB', '12.5 tokens/s')
    """
    for size, name in _SCALES.get(unit, ()):
        if value >= size:
            return f"{_three_digits(value / size)} {name}"
    return f"{_three_digits(value)} {unit}"


def _three_digits(value: float) -> str:
    return (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def rows_text(rows: Sequence[Row]) -> str:
    """Write the rows of one number, which differ in their reference alone, as a line to read."""
    one = rows[0]
    text = f"{', '.join(filter(None, (one.measure, one.shape, one.setting, one.variant)))}: "
    text += quantity_text(one.p50, one.unit)
    if one.rounds > 1:
        text += f" ({quantity_text(one.p20, one.unit)} to {quantity_text(one.p80, one.unit)})"
    return text + "".join(f", {r.ratio:.3f} x {r.ratio_to}" for r in rows if r.ratio is not None)
