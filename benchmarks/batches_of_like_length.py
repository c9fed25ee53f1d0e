"""Training with batches of like length against random ones: accuracy, padding, processor time.

The base model of the quickstart learns its task, which is a part of the docstrings of this Python's
standard library, once with each order and seed. Accuracies are of the held-out examples after the
last epoch. Processor time is that of all threads, and other programs on the machine change it
little.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import Row
from lorakit.quickstart.docstrings import DocstringFiles, write_docstrings
from lorakit.quickstart.run import RANK, quickstart_recipe
from lorakit.training.run import train

RANDOM, LIKE_LENGTH = "random batches", "batches of like length"
STRATEGIES = {RANDOM: "random", LIKE_LENGTH: "group_by_length"}
ACCURACY, LOSS = "accuracy", "validation loss"
PADDING, CPU_TIME = "padding in the batches", "processor time of training"
UNITS = {ACCURACY: "%", LOSS: "nats", PADDING: "%", CPU_TIME: "s"}
NAME = "batches_of_like_length"
SEEDS = (1, 2, 3)
SHAPE = "quickstart"

_EXAMPLES, _EPOCHS = 2400, 5
_QUICK_EXAMPLES = 120
_VALIDATION_SHARE = 0.2


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser(NAME, __doc__ or "")
    parser.add_argument("--examples", type=int, help=f"examples, {_EXAMPLES} by default")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help=f"{_EPOCHS} by default")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    examples = found.examples or (_QUICK_EXAMPLES if options.quick else _EXAMPLES)
    epochs = 1 if options.quick else found.epochs
    return measure(options, examples, epochs)


def measure(options: Options, examples: int, epochs: int) -> list[Row]:
    """Train with each order and seed, by turns."""
    setting = f"{examples} examples, {epochs} {'epoch' if epochs == 1 else 'epochs'}"
    print(f"{SHAPE}, {setting}, seeds {', '.join(map(str, SEEDS))}", flush=True)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STRATEGIES}
    with tempfile.TemporaryDirectory() as name:
        for seed in SEEDS:
            folder = Path(name) / str(seed)
            files = write_docstrings(
                folder / "data", max_rows=examples, validation_share=_VALIDATION_SHARE, seed=seed
            )
            for variant in STRATEGIES:
                runs[variant].append(_train(files, folder, variant, seed, epochs))
                print(f"  {variant}, seed {seed}: {_text(runs[variant][-1])}", flush=True)
    rows = []
    for quantity, unit in UNITS.items():
        values = {variant: [run[quantity] for run in done] for variant, done in runs.items()}
        for variant, numbers in values.items():
            mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
            print(f"  {quantity}, {variant}: mean {mean:.4g}, standard deviation {spread:.2g}")
        rows += options.compared(
            values,
            (RANDOM,),
            benchmark=NAME,
            measure=quantity,
            shape=SHAPE,
            setting=setting,
            unit=unit,
            r=RANK,
        )
    return options.keep(rows)


def _train(
    files: DocstringFiles, folder: Path, variant: str, seed: int, epochs: int
) -> dict[str, float]:
    """Train once; return each quantity."""
    strategy = STRATEGIES[variant]
    recipe = quickstart_recipe(files, folder / strategy, seed)
    changes = {
        "train_sampling_strategy": strategy,
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
    return {
        ACCURACY: 100 * result.metrics["eval_accuracy"],
        LOSS: result.metrics["eval_loss"],
        PADDING: 100 * result.throughput.padding_share,
        CPU_TIME: cpu_s,
        "seconds by the clock": result.wall_s,
    }


def _text(run: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in run.items())


if __name__ == "__main__":
    main()
