"""Train the quickstart's base in full and with adapters of many shapes: the runs behind C8 and C9.

Every run is an ordinary recipe. The scaling lora_alpha / r is the quickstart's at every rank. A
finished run is never repeated, so that an interrupted grid goes on where it was.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.claims.quality_runs import (
    FULL,
    LORA,
    Grid,
    QualityRun,
    Wanted,
    append_run,
    best_rate,
    read_runs,
)
from benchmarks.options import Options
from benchmarks.results import RESULTS, ROOT
from lorakit.config import LoraConfig
from lorakit.quickstart import compare
from lorakit.quickstart.docstrings import DocstringFiles, write_docstrings
from lorakit.quickstart.run import LORA_ALPHA, RANK, WEIGHTS_NAME, quickstart_recipe
from lorakit.recipes.recipe import Recipe
from lorakit.training.run import train

MODEL = "quickstart base"
DATA = "docstrings, ten packages"
QUICK_GRID = Grid(
    ranks=(1,),
    equal_budget=((1, ("q_proj",)),),
    learning_rates=((LORA, (2e-3,)), (FULL, (1e-3,))),
    seeds=(1,),
    epochs=1,
    rows=40,
)
ANALYSED_RANKS = (4, 8, 64)
"""Adapters on every linear layer that are kept, for `directions`."""


def grid_of(options: Options) -> Grid:
    """Return the grid to run."""
    return QUICK_GRID if options.quick else Grid()


def adapters_folder(options: Options) -> Path:
    """Return where trained adapters are kept; never beside the rows that are committed."""
    is_committed = options.output.resolve() == RESULTS
    return (ROOT / "build" / "claims" if is_committed else options.output) / "adapters"


def run_grid(options: Options) -> list[QualityRun]:
    """Make the runs that are still missing; return them."""
    grid = grid_of(options)
    done: list[QualityRun] = []
    with _data(grid) as files_of:
        rates = {}
        for method in (FULL, LORA):
            searched = grid.searches(method)
            done += _missing(options, grid, searched, files_of)
            rate = best_rate(read_runs(options.output), searched)
            if rate is None:
                raise RuntimeError(f"the search for the learning rate of {method} is not complete")
            rates[method] = rate
            print(f"  learning rate of {method}: {rate:g}", flush=True)
        for seed in grid.seeds:
            done += _missing(options, grid, grid.of_seed(rates, seed), files_of)
    return done


def _missing(options: Options, grid: Grid, wanted: list[Wanted], files_of: Any) -> list[QualityRun]:
    finished = {run.wanted for run in read_runs(options.output)}
    made = []
    for one in wanted:
        if one in finished:
            continue
        run = run_one(one, files_of(one.seed), grid, options)
        append_run(run, options.output)
        made.append(run)
        print(f"  {one.name}: {run.accuracy:.4f} in {run.wall_s:.0f} s", flush=True)
    return made


@contextmanager
def _data(grid: Grid) -> Iterator[Any]:
    """Yield a function that writes the rows of a seed, once."""
    with TemporaryDirectory(prefix="lorakit-claims-") as name:
        written: dict[int, DocstringFiles] = {}

        def files_of(seed: int) -> DocstringFiles:
            if seed not in written:
                written[seed] = write_docstrings(
                    Path(name) / str(seed),
                    max_rows=grid.rows,
                    validation_share=grid.held_out,
                    seed=seed,
                )
            return written[seed]

        yield files_of


def run_one(wanted: Wanted, files: DocstringFiles, grid: Grid, options: Options) -> QualityRun:
    """Train and measure; an adapter that is analysed later is kept."""
    with TemporaryDirectory(prefix="lorakit-claims-") as name:
        recipe = recipe_of(wanted, files, Path(name) / "run")
        measured = _full(recipe, wanted) if wanted.method == FULL else _lora(recipe)
        if wanted.r in ANALYSED_RANKS and wanted.targets == "all-linear":
            kept = adapters_folder(options) / wanted.name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(Path(recipe.output) / "adapter", kept)
    return QualityRun(
        wanted=wanted,
        model=MODEL,
        data=DATA,
        held_out_rows=grid.rows - grid.train_examples,
        origin=options.origin,
        **measured,
    )


def recipe_of(wanted: Wanted, files: DocstringFiles, output: Path) -> Recipe:
    """Return the quickstart's recipe with the wanted settings."""
    recipe = quickstart_recipe(files, output, wanted.seed)
    training = {"num_train_epochs": wanted.epochs, "learning_rate": wanted.learning_rate}
    changes: dict[str, Any] = {"training": {**recipe.training, **training}}
    if wanted.method == LORA:
        targets = wanted.targets.split()
        changes["lora"] = LoraConfig(
            r=wanted.r,
            lora_alpha=wanted.r * LORA_ALPHA // RANK,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
        )
    return recipe.model_copy(update=changes)


def _lora(recipe: Recipe) -> dict[str, Any]:
    before: list[float] = []

    def listen(name: str, payload: dict[str, Any]) -> None:
        if name == "evaluation" and not before:
            before.append(payload["metrics"]["eval_accuracy"])

    trained = train(recipe, on_event=listen)
    return {
        "trained_parameters": trained.parameter_count.trainable,
        "factor_parameters": trained.parameter_count.lora,
        "accuracy_before": before[0],
        "accuracy": trained.metrics["eval_accuracy"],
        "wall_s": trained.wall_s,
        "saved_bytes": (trained.adapter_path / WEIGHTS_NAME).stat().st_size,
    }


def _full(recipe: Recipe, wanted: Wanted) -> dict[str, Any]:
    def silent(name: str, payload: dict[str, Any]) -> None:
        """Take no notice of steps."""

    result = compare.train_without_adapter(recipe, compare.FULL, wanted.learning_rate, silent)
    return {
        "trained_parameters": result.trainable_parameters,
        "factor_parameters": 0,
        "accuracy_before": result.accuracy_before,
        "accuracy": result.accuracy,
        "wall_s": result.duration_s,
        "saved_bytes": result.saved_bytes,
    }
