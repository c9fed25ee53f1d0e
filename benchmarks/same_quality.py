"""Whether batches of like length and bfloat16 train as well as random batches and float32.

The base model of the quickstart learns its task, which is a part of the docstrings of this Python's
standard library, with the quickstart's recipe, once in each way with each seed. Accuracies and
losses are of the held-out examples after the last epoch. Processor time is that of all threads, and
other programs on the machine change it little.

Each run is a row of each quantity. A benchmark that was stopped goes on where it was: runs that
have rows of this commit (or of that given by --commit), versions and machine are not repeated.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import Row, matching, read_rows, row
from lorakit.quickstart.docstrings import MAX_ROWS, DocstringFiles, write_docstrings
from lorakit.quickstart.run import EPOCHS, RANK, quickstart_recipe
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import train
from lorakit.training.setup import prepare

NAME = "same_quality"
SHAPE = "quickstart"
SEEDS = (0, 1, 2)


class Way(NamedTuple):
    """A way to train."""

    strategy: str
    """The value of `training.train_sampling_strategy`."""
    dtype: Literal["float32", "bfloat16"]
    compared_with: str = ""
    """The way that differs from it in one thing."""


RANDOM = "random batches, float32"
LIKE_LENGTH = "batches of like length, float32"
BFLOAT16 = "batches of like length, bfloat16"
WAYS = {
    RANDOM: Way("random", "float32"),
    LIKE_LENGTH: Way("group_by_length", "float32", RANDOM),
    BFLOAT16: Way("group_by_length", "bfloat16", LIKE_LENGTH),
}

ACCURACY, LOSS = "accuracy", "validation loss"
PADDING, CPU_TIME = "padding in the batches", "processor time of training"
UNITS = {ACCURACY: "%", LOSS: "nats", PADDING: "%", CPU_TIME: "s"}
LOST = "accuracy lost to {}"
"""Measure of the mean difference over the seeds; negative where accuracy is gained."""
POINTS = "points"
STEP = "step of one batch, as dtype: auto times it"
CHOSEN = "{}, which dtype: auto takes"

STANDARD_ERROR_POINTS = 1.8
"""Standard error of one accuracy near 80 %, on the quickstart's 480 held-out examples."""

_QUICK_EXAMPLES = 120


def setting_text(examples: int, epochs: int, seeds: str) -> str:
    """Say what was trained.

    >>> setting_text(2400, 1, "seed 0")
    '2400 examples, 1 epoch, seed 0'
    """
    return f"{examples} examples, {epochs} {'epoch' if epochs == 1 else 'epochs'}, {seeds}"


ALL_SEEDS = f"{len(SEEDS)} seeds"
SETTING = setting_text(MAX_ROWS, EPOCHS, ALL_SEEDS)
"""Setting of the differences over the seeds, with the quickstart's recipe."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return those of all runs and of their differences."""
    parser = options_parser(NAME, __doc__ or "")
    parser.add_argument("--examples", type=int, help=f"examples, {MAX_ROWS} by default")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"{EPOCHS} by default")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    examples = found.examples or (_QUICK_EXAMPLES if options.quick else MAX_ROWS)
    return measure(options, examples, 1 if options.quick else found.epochs)


def measure(options: Options, examples: int, epochs: int) -> list[Row]:
    """Train in each way with each seed, by turns.

    Args:
        options: The command line.
        examples: Largest number of examples.
        epochs: Epochs of each run.
    """
    rows: list[Row] = []
    ways = {name: way for name, way in WAYS.items() if options.runs(getattr(torch, way.dtype))}
    with tempfile.TemporaryDirectory() as name:
        for seed in SEEDS:
            folder = Path(name) / str(seed)
            files = write_docstrings(folder / "data", max_rows=examples, seed=seed)
            if seed == SEEDS[0]:
                rows += _rows_of_choice(options, quickstart_recipe(files, folder, seed, "auto"))
            for variant, way in ways.items():
                setting = setting_text(examples, epochs, f"seed {seed}")
                done = _known_rows(options, variant, setting)
                rows += done or _run(options, files, folder, variant, way, seed, setting, epochs)
    setting = setting_text(examples, epochs, ALL_SEEDS)
    return rows + _differences(options, rows, ways, setting)


def _known_rows(options: Options, variant: str, setting: str) -> list[Row]:
    """Return the rows of a run that an earlier call of this commit made here; else none."""
    known = [
        one
        for one in matching(read_rows([NAME], options.output), variant=variant, setting=setting)
        if replace(one.origin, date=options.origin.date) == options.origin
    ]
    return known if {one.measure for one in known} >= UNITS.keys() else []


def _run(
    options: Options,
    files: DocstringFiles,
    folder: Path,
    variant: str,
    way: Way,
    seed: int,
    setting: str,
    epochs: int,
) -> list[Row]:
    """Train once and keep the row of each quantity."""
    recipe = quickstart_recipe(files, folder / variant, seed, way.dtype)
    changes = {
        "train_sampling_strategy": way.strategy,
        "num_train_epochs": epochs,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "eval_on_start": False,
    }
    recipe = recipe.model_copy(update={"training": {**recipe.training, **changes}})
    started_s = time.process_time()
    result = train(recipe)
    cpu_s = time.process_time() - started_s
    if result.throughput is None:
        raise RuntimeError("the run had no step")
    values = {
        ACCURACY: 100 * result.metrics["eval_accuracy"],
        LOSS: result.metrics["eval_loss"],
        PADDING: 100 * result.throughput.padding_share,
        CPU_TIME: cpu_s,
    }
    return options.keep(
        _row(options, [value], variant, what, UNITS[what], setting)
        for what, value in values.items()
    )


def _differences(
    options: Options, rows: Sequence[Row], ways: Mapping[str, Way], setting: str
) -> list[Row]:
    """Keep the accuracy that each way loses to another, and print what the seeds change."""
    kept: list[Row] = []
    for quantity in UNITS:
        for variant, way in ways.items():
            values = _values(rows, quantity, variant)
            text = f"mean {statistics.mean(values):.4g}"
            text += f", standard deviation {statistics.stdev(values):.2g} over the seeds"
            if way.compared_with:
                others = _values(rows, quantity, way.compared_with)
                lost = [other - value for value, other in zip(values, others, strict=True)]
                error = statistics.stdev(lost) / sqrt(len(lost))
                text += f"; {-statistics.mean(lost):+.2g} ± {error:.2g} to {way.compared_with}"
                if quantity == ACCURACY:
                    what = LOST.format(way.compared_with)
                    kept.append(_row(options, lost, variant, what, POINTS, setting))
            print(f"  {quantity}, {variant}: {text}", flush=True)
    return options.keep(kept)


def _values(rows: Sequence[Row], quantity: str, variant: str) -> list[float]:
    return [one.p50 for one in matching(rows, measure=quantity, variant=variant)]


def _rows_of_choice(options: Options, recipe: Recipe) -> list[Row]:
    """Let `dtype: auto` choose, say so, and keep what it measured."""
    choice = prepare(recipe, lambda name, payload: None).dtype_choice
    if choice is None:
        raise RuntimeError("the recipe left no choice open")
    print(f"  {choice.note}", flush=True)
    rows = []
    for precision, step_s in choice.step_cpu_s.items():
        chosen = precision == str(choice.precision)
        variant = CHOSEN.format(precision) if chosen else precision
        rows.append(_row(options, [step_s], variant, STEP, "s", "", precision))
    return options.keep(rows)


def _row(
    options: Options,
    values: Sequence[float],
    variant: str,
    what: str,
    unit: str,
    setting: str,
    dtype: str | None = None,
) -> Row:
    return row(
        options.origin,
        values,
        benchmark=NAME,
        measure=what,
        shape=SHAPE,
        variant=variant,
        unit=unit,
        setting=setting,
        dtype=getattr(torch, dtype or WAYS[variant].dtype),
        r=RANK,
    )


if __name__ == "__main__":
    main()
