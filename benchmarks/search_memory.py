"""Memory of trials that run at once: one base for all of them, and what each has for itself.

A checkpoint of random weights in bfloat16 is searched in float32, so that no trial could map the
checkpoint itself. Counted is the proportional share of resident memory (PSS) of all processes of
trials together, the libraries they import included: a page that four processes map counts once.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Shape, save_with_tokenizer, shape_named
from benchmarks.options import Options, parse
from benchmarks.results import Row, row

PEAK_SHARED = "peak memory of all trials"
BASE_BYTES = "bytes of the base"
BOUND = "one base, and four times what one trial has beside it"
TRIALS = 4
ALONE, AT_ONCE = "1 trial", f"{TRIALS} trials at once"
_ROWS = 16
_FLOAT32_BYTES = 4


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("search_memory", __doc__, arguments)
    shape = (options.shapes or [shape_named("tiny-llama" if options.quick else "llama-300m")])[0]
    print(f"{shape.name}, {_ROWS} rows of text, r=8 on every linear layer", flush=True)
    return measure(options, shape)


def measure(options: Options, shape: Shape) -> list[Row]:
    """Search with one trial, then with four at once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = save_with_tokenizer(shape, folder / "model", torch.bfloat16) * _FLOAT32_BYTES
        _write_rows(folder / "rows.jsonl")
        alone = _peak_of_search(folder, 1)
        at_once = _peak_of_search(folder, TRIALS)
    bound = base + TRIALS * (alone - base)
    common: dict[str, Any] = {"benchmark": "search_memory", "unit": "B"}
    common |= {"shape": shape.name, "setting": f"{_ROWS} rows"}
    values = {AT_ONCE: [at_once], ALONE: [alone], BOUND: [bound]}
    rows = options.compared(values, (BOUND,), measure=PEAK_SHARED, **common)
    rows.append(row(options.origin, [base], measure=BASE_BYTES, variant="base", **common))
    return options.keep(rows)


def _write_rows(path: Path) -> None:
    text = "def adapted(x): return x @ W0.T + scaling * (x @ A.T) @ B.T  # " * 4
    path.write_text(f'{{"text": "{text}"}}\n' * (_ROWS + 2), encoding="utf-8")


def _peak_of_search(folder: Path, trials: int) -> int:
    """Search with so many trials at once; return the largest sum of their memory in bytes."""
    from lorakit.recipes.recipe import Recipe
    from lorakit.tuning import tune

    recipe = Recipe.check(
        {
            "model": str(folder / "model"),
            "task": "CAUSAL_LM",
            "dtype": "float32",
            "data": {
                "train": str(folder / "rows.jsonl"),
                "max_length": 128,
                "max_train_rows": _ROWS,
                "validation_fraction": 0.1,
            },
            "lora": {"r": 8, "target_modules": "all-linear"},
            "training": {"per_device_train_batch_size": 4, "use_cpu": True},
            "search": {
                "trials": trials,
                "max_epochs": 1,
                "asha": None,
                "cpus_per_trial": 0.5,
                "max_concurrent": trials,
                "space": {"training.learning_rate": {"log_uniform": [1e-5, 1e-4]}},
            },
            "output": str(folder / f"search-{trials}"),
        },
        "the benchmark's recipe",
    )
    watch = _MemoryWatch()
    with watch:
        result = tune(recipe)
    if {record.status for record in result.records} != {"finished"}:
        raise RuntimeError(f"a trial did not finish: {result.records}")
    return watch.peak


class _MemoryWatch:
    """Looks at the memory of the trials' processes until the block ends."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        this = psutil.Process()
        while not self._ended.is_set():
            total = 0
            for process in this.children(recursive=True):
                try:
                    words = process.cmdline()
                    if words and words[0].startswith("ray::") and "Implicit" in words[0]:
                        total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.2)


if __name__ == "__main__":
    main()
