"""The memory plan against what a real step takes: saved activations, and the peak.

The same batch goes through the task's trainer twice, on fake tensors and on real ones, while the
storages that live are counted. Beside it stands how far the process's resident memory rises.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import Shape, save_with_tokenizer, shape_named
from benchmarks.options import Options, parse
from benchmarks.results import Row, has_bf16_instructions, row

PLANNED, COUNTED, RESIDENT = "planned", "counted", "resident"
SAVED = "saved activations"
PEAK = "peak of tensors"
OFF = "{}, plan off by"
LARGE_SETTING = "4 bits, 1 x 512"
SECONDS = "time of a plan"
PROCESS = "memory of the planning process"
_LLAMA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LARGE = (
    ("llama-7b", dict(zip(_SIZES, (4096, 11008, 32, 32), strict=True))),
    (
        "llama-70b",
        {**dict(zip(_SIZES, (8192, 28672, 80, 64), strict=True)), "num_key_value_heads": 8},
    ),
)
_PLANS = 3
SHAPES = ("llama-69m", "llama-300m", "bert-base", "gpt2-medium", "t5-base")
_TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
_ROWS = 16
SETTINGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "dropout 0.05": {"lora": {"lora_dropout": 0.05}},
    "checkpointing": {"training": {"activation_checkpointing": True}},
    "2 batches accumulated": {"training": {"gradient_accumulation_steps": 2}},
    "4 bits": {"quantization": {"bits": 4}},
    "8 bits": {"quantization": {"bits": 8}},
    "autocast": {"training": {"bf16": True}},
    "packing": {"training": {"packing": True}},
}
_FAMILY_OF_SETTING = {"packing": "llama"}


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("memory_plan", __doc__, arguments)
    names = ("tiny-llama", "tiny-bert", "tiny-t5") if options.quick else SHAPES
    shapes = options.shapes or tuple(map(shape_named, names))
    rows = []
    for shape in shapes:
        for setting, changes in SETTINGS.items():
            family = _FAMILY_OF_SETTING.get(setting, shape.family)
            # T5's accumulation, for example, shows nothing that its plain step does not.
            is_usual = shape.name in (*SHAPES[:1], "tiny-llama")
            if family == shape.family and (is_usual or setting in ("LoRA", "4 bits")):
                rows += measure(options, shape, setting, changes)
    if options.shapes is None:
        for name, sizes in _LARGE[: 1 if options.quick else None]:
            rows += measure_planning(options, name, sizes)
    return rows


def measure(options: Options, shape: Shape, setting: str, changes: dict[str, Any]) -> list[Row]:
    """Plan a step of a shape, and count one."""
    from lorakit.planning import plan
    from lorakit.recipes.recipe import Recipe

    if setting == "autocast" and not has_bf16_instructions() and not options.force:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_with_tokenizer(shape, folder / "model")
        (folder / "rows.jsonl").write_text(_ROW[shape.family] * _ROWS, encoding="utf-8")
        recipe = recipe_of(shape, folder, changes)
        planned = plan(recipe, device=options.device)
        path = folder / "recipe.yaml"
        path.write_text(Recipe.to_yaml(recipe), encoding="utf-8")
        saved, peak, resident = count_elsewhere(path)
    common: dict[str, Any] = {"benchmark": "memory_plan", "unit": "B"}
    common |= {"shape": shape.name, "setting": setting}
    of_saved = {PLANNED: [planned.saved_activation_bytes], COUNTED: [saved]}
    of_peak = {PLANNED: [planned.peak_bytes], COUNTED: [peak], RESIDENT: [resident]}
    rows = options.compared(of_saved, (COUNTED,), measure=SAVED, **common)
    rows += options.compared(of_peak, (COUNTED,), measure=PEAK, **common)
    for measured, values in ((SAVED, of_saved), (PEAK, of_peak)):
        off = abs(values[PLANNED][0] / values[COUNTED][0] - 1)
        about = {**common, "measure": OFF.format(measured), "unit": "%"}
        rows.append(row(options.origin, [100 * off], variant=PLANNED, **about))
    return options.keep(rows)


def measure_planning(options: Options, name: str, sizes: dict[str, int]) -> list[Row]:
    """Take the time of a plan and the memory of its process, libraries included."""
    from lorakit.recipes.recipe import Recipe

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "config.json").write_text(json.dumps({**_LLAMA, **sizes}), encoding="utf-8")
        recipe = Recipe.check(
            {
                "model": scratch,
                "task": "CAUSAL_LM",
                "data": {"train": "your/data", "max_length": 512},
                "lora": {"r": 8},
                "quantization": {"bits": 4, "compute_dtype": "float32"},
                "training": {"per_device_train_batch_size": 1, "use_cpu": True},
                "output": str(folder / "run"),
            },
            "the benchmark's recipe",
        )
        path = folder / "recipe.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        rounds = [_run("--plan", path) for _ in range(_PLANS)]
    seconds, peaks = zip(*rounds, strict=True)
    common: dict[str, Any] = {"benchmark": "memory_plan", "variant": PLANNED}
    common |= {"shape": name, "setting": LARGE_SETTING}
    return options.keep(
        [
            row(options.origin, [*seconds], measure=SECONDS, unit="s", **common),
            row(options.origin, [*peaks], measure=PROCESS, unit="B", **common),
        ]
    )


_TEXT = "def adapted(x): return x @ W0.T + scaling * (x @ A.T) @ B.T  # " * 12
_ROW = {
    "llama": f'{{"text": "{_TEXT}"}}\n',
    "gpt2": f'{{"text": "{_TEXT}"}}\n',
    "bert": f'{{"text": "{_TEXT}", "label": "a"}}\n{{"text": "{_TEXT[:-40]}", "label": "b"}}\n',
    "t5": f'{{"source": "{_TEXT}", "target": "{_TEXT}"}}\n',
}


def recipe_of(shape: Shape, folder: Path, changes: dict[str, Any]) -> Any:
    """Return the recipe that trains a saved shape on every linear layer."""
    from lorakit.recipes.recipe import Recipe

    training = {
        "per_device_train_batch_size": shape.rows,
        "eval_strategy": "no",
        **changes.get("training", {}),
    }
    values: dict[str, Any] = {
        "model": str(folder / "model"),
        "task": _TASKS[shape.family],
        "data": {
            "train": str(folder / "rows.jsonl"),
            "max_length": shape.length,
            "max_target_length": max(shape.length // 4, 1),
            "validation_fraction": 0,
        },
        "lora": {"r": 8, "target_modules": list(shape.targets), **changes.get("lora", {})},
        "training": training,
        "output": str(folder / "run"),
    }
    if "quantization" in changes:
        values["quantization"] = {**changes["quantization"], "compute_dtype": "float32"}
    return Recipe.check(values, "the benchmark's recipe")


def count_elsewhere(recipe: Path) -> tuple[int, int, int]:
    """Count a recipe's step in a separate process, so that its resident memory is not shared.

    Returns: Saved activations, the peak of tensors, and how far resident memory rose, in bytes.
    """
    saved, peak, resident = map(int, _run("--count", recipe))
    return saved, peak, resident


def _run(what: str, recipe: Path) -> list[float]:
    """Run one measurement of this benchmark in a separate process; return the numbers it prints."""
    command = [sys.executable, "-m", "benchmarks.memory_plan", what, str(recipe)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in found.stdout.splitlines()[-1].split()]


def plan_here(recipe: str) -> None:
    """Plan a recipe; print the seconds after the imports, and the peak of the process's memory."""
    from lorakit.planning import plan
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.peak_memory import PeakMemory

    watch = PeakMemory(on_gpu=False)
    loaded = Recipe.load(recipe)
    began = time.perf_counter()
    plan(loaded)
    print(time.perf_counter() - began, watch.read())


def count_here(recipe: str) -> None:
    """Count a recipe's step and print what was found."""
    from lorakit.libraries.machine_memory import process_bytes
    from lorakit.planning.measurement import count_step
    from lorakit.recipes.recipe import Recipe
    from lorakit.training.peak_memory import PeakMemory
    from lorakit.training.tasks import task_for

    loaded = Recipe.load(recipe)
    task_for(loaded.task)  # imports what it stands on
    empty = process_bytes()
    watches: list[PeakMemory] = []
    # Not from the beginning: while a checkpoint is read, the pages of its file count as well.
    step = count_step(loaded, lambda: watches.append(PeakMemory(on_gpu=False)))
    print(step.saved_activation_bytes, step.peak_bytes, (watches[0].read() or 0) - empty)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        count_here(sys.argv[2])
    elif sys.argv[1:2] == ["--plan"]:
        plan_here(sys.argv[2])
    else:
        main()
