"""The memory plan against what a real step takes: saved activations, and the peak.

The same batch goes through the task's trainer twice, on fake tensors and on real ones, while the
storages that live are counted. Beside it stands how far the process's resident memory rises.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import Shape, build_model, shape_named
from benchmarks.options import Options, parse
from benchmarks.results import Row, compared, has_bf16_instructions

PLANNED, COUNTED, RESIDENT = "planned", "counted", "resident"
SAVED = "saved activations"
PEAK = "peak of tensors"
_SHAPES = ("llama-69m", "llama-300m", "bert-base", "gpt2-medium", "t5-base")
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
    names = ("tiny-llama", "tiny-bert", "tiny-t5") if options.quick else _SHAPES
    shapes = options.shapes or tuple(map(shape_named, names))
    rows = []
    for shape in shapes:
        for setting, changes in SETTINGS.items():
            family = _FAMILY_OF_SETTING.get(setting, shape.family)
            # T5's accumulation, say, tells nothing that its plain step does not.
            is_usual = shape.name in (*_SHAPES[:1], "tiny-llama")
            if family == shape.family and (is_usual or setting in ("LoRA", "4 bits")):
                rows += measure(options, shape, setting, changes)
    return rows


def measure(options: Options, shape: Shape, setting: str, changes: dict[str, Any]) -> list[Row]:
    """Plan a step of a shape, and count one."""
    from lorakit.planning import plan
    from lorakit.training.recipe import Recipe

    if setting == "autocast" and not has_bf16_instructions() and not options.force:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(shape, folder / "model")
        (folder / "rows.jsonl").write_text(_ROW[shape.family] * _ROWS, encoding="utf-8")
        recipe = recipe_of(shape, folder, changes)
        planned = plan(recipe, device=options.device)
        path = folder / "recipe.yaml"
        path.write_text(Recipe.to_yaml(recipe), encoding="utf-8")
        saved, peak, resident = count_elsewhere(path)
    common: dict[str, Any] = {
        "benchmark": "memory_plan",
        "shape": shape.name,
        "setting": setting,
        "dtype": torch.float32,
        "r": 8,
        "unit": "B",
    }
    origin = options.origin
    of_saved = {PLANNED: [planned.saved_activation_bytes], COUNTED: [saved]}
    of_peak = {PLANNED: [planned.peak_bytes], COUNTED: [peak], RESIDENT: [resident]}
    rows = compared(origin, of_saved, (COUNTED,), measure=SAVED, **common)
    rows += compared(origin, of_peak, (COUNTED,), measure=PEAK, **common)
    return options.keep(rows)


_TEXT = "def adapted(x): return x @ W0.T + scaling * (x @ A.T) @ B.T  # " * 12
_ROW = {
    "llama": f'{{"text": "{_TEXT}"}}\n',
    "gpt2": f'{{"text": "{_TEXT}"}}\n',
    "bert": f'{{"text": "{_TEXT}", "label": "a"}}\n{{"text": "{_TEXT[:-40]}", "label": "b"}}\n',
    "t5": f'{{"source": "{_TEXT}", "target": "{_TEXT}"}}\n',
}


def write_model(shape: Shape, folder: Path) -> None:
    """Save a model of random weights with the quickstart's tokenizer."""
    from transformers import AutoTokenizer

    from lorakit.quickstart.model_files import base_model_path

    model: Any = build_model(shape)
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    if len(tokenizer) > shape.vocabulary:
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_of(shape: Shape, folder: Path, changes: dict[str, Any]) -> Any:
    """Return the recipe that trains a saved shape on every linear layer."""
    from lorakit.training.recipe import Recipe

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
    """Count a recipe's step in a process of its own, so that its resident memory is its own.

    Returns: Saved activations, the peak of tensors, and how far resident memory rose, in bytes.
    """
    command = [sys.executable, "-m", "benchmarks.memory_plan", "--count", str(recipe)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    saved, peak, resident = map(int, found.stdout.split()[-3:])
    return saved, peak, resident


def count_here(recipe: str) -> None:
    """Count a recipe's step and print what was found."""
    from lorakit.planning.machine_memory import process_bytes
    from lorakit.planning.measurement import count_step
    from lorakit.training.recipe import Recipe
    from lorakit.training.tasks import task_for

    loaded = Recipe.load(recipe)
    task_for(loaded.task)  # imports what it stands on
    before = process_bytes()
    step = count_step(loaded)
    kilobyte = 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
    print(step.saved_activation_bytes, step.peak_bytes, highest - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--count"]:
        count_here(sys.argv[2])
    else:
        main()
